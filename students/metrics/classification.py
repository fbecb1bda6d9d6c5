"""Accuracy and macro F1 of labels as an `evaluate.Metric` that loads offline, by the path of this file."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score

_DESCRIPTION = "Accuracy, and the F1 of every label averaged without weights."
_INPUTS = """
Args:
    predictions: Predicted labels.
    references: True labels.
    labels: The labels to average F1 over; the ones that occur, where not given.
Returns:
    accuracy: Share of predictions that are right.
    macro_f1: Mean F1 over the labels; a label neither predicted nor true counts as 0.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class Classification(evaluate.Metric):
    """Scores strings; see `_INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], labels: list[str] | None = None
    ) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(f1_score(references, predictions, labels=labels, average="macro", zero_division=0)),
        }
