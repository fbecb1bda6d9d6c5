"""How good a draft is, in [0, 1]: what routes compare teachers by.

`PublicModel` looks at the draft and at public things, a model and the task's description: under a formal mechanism it
is post-processing and costs nothing. The classifier of `examples.typicality` is fitted on the silo's records, so it is
for screened teachers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tutelage.configs.schema import ClassificationTask, Task
from tutelage.teachers import prompts
from tutelage.teachers.engines.base import Generation, chat_prompt

_ROWS = 16
_DIGITS = 3
"""Scores are compared, and shown as thresholds, no finer than this."""


class Scorer(Protocol):
    """Scores well-formed drafts."""

    def __call__(self, drafts: Sequence[tuple[str, str]]) -> list[float]:
        """(prompt, completion) of drafts -> a number in [0, 1] each, the higher the better."""
        ...


def score(scorer: Scorer, task: Task, asked: Sequence[str | None], texts: Sequence[Generation]) -> list[float]:
    """Scores of texts as they come from a teacher.

    Args:
        scorer: Scores those that are well formed; the others get 0.
        task: The task.
        asked: The label that each should have; None for generation.
        texts: As many.
    """
    parsed = [
        prompts.parse_example(task, label, one.text, one.finished) for label, one in zip(asked, texts, strict=True)
    ]
    found = iter(scorer([one for one in parsed if one is not None]))
    return [0.0 if one is None else round(min(1.0, max(0.0, next(found))), _DIGITS) for one in parsed]


class PublicModel:
    """How sure a public model is of a draft's completion.

    For classification: the share of the label among all labels, each label's likelihood behind the text divided by its
    likelihood behind no text, since small models favour some labels whatever the text says (Zhao et al. 2021,
    arXiv:2102.09690). For generation: the geometric mean of the probabilities of the completion's tokens.

    Args:
        load: Gives model and tokenizer when the first draft is scored.
        task: The task.
    """

    def __init__(self, load: Callable[[], tuple[Any, Any]], task: Task) -> None:
        self._load, self.task = load, task
        self._loaded: tuple[Any, Any] | None = None
        self._blank: list[float] = []

    def __call__(self, drafts: Sequence[tuple[str, str]]) -> list[float]:
        """See `Scorer`."""
        if not drafts:
            return []
        if not isinstance(self.task, ClassificationTask):
            return [math.exp(total / count) for total, count in self._likelihoods(drafts)]
        labels = list(self.task.labels)
        if not self._blank:
            self._blank = [total for total, _ in self._likelihoods([("", label) for label in labels])]
        rows = [(text, label) for text, _ in drafts for label in labels]
        totals = [total for total, _ in self._likelihoods(rows)]
        found = []
        for i, (_, own) in enumerate(drafts):
            here = totals[i * len(labels) : (i + 1) * len(labels)]
            shifted = [one - blank for one, blank in zip(here, self._blank, strict=True)]
            top = max(shifted)
            shares = [math.exp(one - top) for one in shifted]
            found.append(shares[labels.index(own)] / sum(shares))
        return found

    def _likelihoods(self, rows: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(prompt, completion) -> log-probability of the completion with the end of its turn, and its tokens."""
        import torch

        if self._loaded is None:
            self._loaded = self._load()
        model, tokenizer = self._loaded
        system = prompts.public_instruction(self.task)
        encoded = []
        for prompt, completion in rows:
            before = tokenizer(chat_prompt(tokenizer, system, prompts.defuse(prompt)), add_special_tokens=False)
            after = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            encoded.append((before["input_ids"], after))
        found = [(0.0, 1)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
        for start in range(0, len(order), _ROWS):
            chosen = order[start : start + _ROWS]
            batch = tokenizer.pad(
                {"input_ids": [encoded[i][0] + encoded[i][1] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            keep = max(len(encoded[i][1]) for i in chosen) + 1
            positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits = model(**batch, position_ids=positions, logits_to_keep=keep).logits.float().log_softmax(-1)
            for row, i in enumerate(chosen):
                own = torch.tensor(encoded[i][1], device=model.device)
                taken = logits[row, -len(own) - 1 : -1].gather(1, own[:, None])
                found[i] = (float(taken.sum()), len(own))
        return found
