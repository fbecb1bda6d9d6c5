"""Exact match, ROUGE-L and chrF of answers as an `evaluate.Metric` that loads offline, one reference per answer."""

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

_DESCRIPTION = (
    "Exact match up to case and white space, ROUGE-L (Lin 2004) with stemming, and sentence chrF (Popovic 2015)."
)
_INPUTS = """
Args:
    predictions: Answers.
    references: The right answers, one each.
    per_item: Whether to give lists, one entry per answer, in place of means.
Returns:
    exact_match, rouge_l, chrf: In [0, 1].
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class Generation(evaluate.Metric):
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
        self, predictions: list[str], references: list[str], per_item: bool = False
    ) -> dict[str, float] | dict[str, list[float]]:
        rouge, chrf = RougeScorer(["rougeL"], use_stemmer=True), CHRF()
        pairs = list(zip(predictions, references, strict=True))
        items = {
            "exact_match": [float(a.casefold().split() == b.casefold().split()) for a, b in pairs],
            "rouge_l": [float(rouge.score(b, a)["rougeL"].fmeasure) for a, b in pairs],
            "chrf": [chrf.sentence_score(a, [b]).score / 100 for a, b in pairs],
        }
        return items if per_item else {name: sum(values) / len(values) for name, values in items.items()}
