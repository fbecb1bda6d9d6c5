"""One test set, several ways to answer it: what the student is compared with, all measured alike."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.configs.records import Example, Metric
from tutelage.configs.schema import ClassificationTask, Recipe
from tutelage.privacy.stats import share_metric
from tutelage.students import baselines, evaluate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CALIBRATION_EXAMPLES = 32


@dataclass(frozen=True)
class Comparison:
    """The test set and how it is scored."""

    recipe: Recipe
    test: Sequence[Example] = field(repr=False)
    _answered: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Question -> its model, so that its identity stays taken, and the answers: two methods may ask the same."""

    def measure(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        instruction: str,
        taught_with: Sequence[Example] = (),
        shots: Sequence[Example] = (),
        internal: bool = False,
    ) -> tuple[Metric, ...]:
        """Answer the test set and score the answers.

        Args:
            name: The method, the last part of the metrics' names.
            model: In evaluation mode.
            tokenizer: Its tokenizer.
            instruction: As for `answers`.
            taught_with: As for `answers`.
            shots: As for `answers`.
            internal: Whether the figures must not be published.
        """
        answers = self.answers(
            model, tokenizer, instruction=instruction, taught_with=taught_with, shots=shots, progress=name
        )
        return self.score(name, answers, internal)

    def answers(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        instruction: str,
        taught_with: Sequence[Example] = (),
        shots: Sequence[Example] = (),
        progress: str | None = None,
    ) -> Sequence[str]:
        """A model's answers to the test set, in order.

        Args:
            model: In evaluation mode.
            tokenizer: Its tokenizer.
            instruction: The system prompt.
            taught_with: What the method may know: its label tokens are calibrated on a balanced handful of these.
                Empty: no calibration, as for zero-shot, which knows nothing.
            shots: Worked examples shown before every question.
            progress: What to call the progress bar; None: no bar.
        """
        task, rows = self.recipe.task, self.recipe.measure.batch_rows
        asked = (id(model), instruction, tuple(shots))
        if not isinstance(task, ClassificationTask):
            if asked not in self._answered:
                generated = evaluate.generate_answers(
                    model,
                    tokenizer,
                    self.test,
                    instruction=instruction,
                    few_shot=shots,
                    max_new_tokens=self.recipe.teach.max_new_tokens,
                    batch_rows=rows,
                )
                self._answered[asked] = model, generated
            answers: Sequence[str] = self._answered[asked][1]
            return answers
        labels = list(task.labels)
        ask = functools.partial(
            evaluate.classify,
            model,
            tokenizer,
            labels=labels,
            instruction=instruction,
            few_shot=shots,
            batch_rows=rows,
            progress=progress,
        )
        if asked not in self._answered:
            self._answered[asked] = model, ask(self.test)
        predictions: evaluate.Predictions = self._answered[asked][1]
        handful = balanced(taught_with, max(1, _CALIBRATION_EXAMPLES // len(labels)), self.recipe.seed)
        bias = evaluate.calibrate(ask(handful).scores) if handful else np.zeros(len(labels))
        return predictions.without(bias)

    def tfidf(self, taught_with: Sequence[Example]) -> tuple[Metric, ...]:
        """TF-IDF and logistic regression on the same lessons. Nothing for generation tasks or a single label."""
        task = self.recipe.task
        if not isinstance(task, ClassificationTask) or len({one.completion for one in taught_with}) < 2:
            return ()
        return self.score("tfidf", baselines.tfidf(taught_with, self.test, list(task.labels)).labels)

    def score(self, name: str, answers: Sequence[str], internal: bool = False) -> tuple[Metric, ...]:
        """Metrics of a method's answers to the test set."""
        truth = [example.completion for example in self.test]
        draws, seed, task = self.recipe.measure.bootstrap, self.recipe.seed, self.recipe.task
        if isinstance(task, ClassificationTask):
            labels = list(task.labels)
            return evaluate.metrics_of(name, answers, truth, labels, draws=draws, seed=seed, internal=internal)
        found = evaluate.generation_metrics(name, answers, truth, draws=draws, seed=seed, internal=internal)
        if self.recipe.structure is None:
            return found
        fitting = sum(self.recipe.structure.read(answer) is not None for answer in answers)
        return (*found, share_metric(f"fits.{name}", fitting, len(answers), internal=internal))


def balanced(items: Sequence[Example], per_class: int, seed: int) -> list[Example]:
    """Up to `per_class` examples of each completion, drawn with the seed."""
    draw = random.Random(f"{seed}/balanced")
    chosen = []
    for label in sorted({item.completion for item in items}):
        pool = [item for item in items if item.completion == label]
        chosen += draw.sample(pool, min(per_class, len(pool)))
    return chosen


def few_shot(lessons: Sequence[Example], recipe: Recipe) -> list[Example]:
    """Released lessons as worked examples, the same number per label; for generation as many as two labels get."""
    count = recipe.measure.few_shot_per_label
    draw = random.Random(f"{recipe.seed}/few-shot")
    if isinstance(recipe.task, ClassificationTask):
        shots = balanced(lessons, count, recipe.seed)
        draw.shuffle(shots)
        return shots
    return draw.sample(list(lessons), min(2 * count, len(lessons)))
