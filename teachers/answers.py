"""Continues example prompts, in two steps where the task says what a completion must be.

First the prompt of the example is written, which is free text; then its completion, constrained. So every engine needs
to know structures for a whole text only, which is what servers offer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tutelage.configs.schema import GenerationTask, Task
from tutelage.teachers import prompts
from tutelage.teachers.engines.base import Engine, Generation, Sampling


@dataclass(frozen=True)
class Request:
    """One prompt, and the label that its drafts should have; None for generation.

    Its repr, as it would stand in a traceback with locals, shows no text.
    """

    label: str | None
    prompt: str = field(repr=False)


def steps(task: Task) -> int:
    """How often progress is told of for one text."""
    return 2 if isinstance(task, GenerationTask) and task.completion else 1


Ask = Callable[[Sequence[Request], int, Sampling, str], list[list[Generation]]]
"""(prompts, texts of each, sampling, name of the step) -> the texts of the first prompts, as many as can be had."""


def write_texts(
    engine: Engine,
    task: Task,
    asked: Sequence[Request],
    n: int,
    sampling: Sampling,
    seed: int,
    on_progress: Callable[[int], object] | None = None,
) -> list[list[Generation]]:
    """As `Engine.generate` for example prompts; `on_progress` hears of each text `steps` times."""

    def ask(asked: Sequence[Request], n: int, sampling: Sampling, step: str) -> list[list[Generation]]:
        own = random.Random(f"{seed}/{step}").getrandbits(48) if step else seed
        return engine.generate([one.prompt for one in asked], n, sampling, own, on_progress)

    return in_steps(task, asked, n, sampling, ask, on_progress)


def in_steps(
    task: Task | None,
    asked: Sequence[Request],
    n: int,
    sampling: Sampling,
    ask: Ask,
    on_progress: Callable[[int], object] | None = None,
) -> list[list[Generation]]:
    """Have example prompts continued, by whatever can continue a text. Without a task any prompts, and in one step.

    A text whose prompt does not end, or whose completion cannot be had, is given as it is and so is malformed.
    """
    if not (isinstance(task, GenerationTask) and task.completion):
        return ask(asked, n, sampling, "")
    opened = [list(row) for row in ask(asked, n, replace(sampling, stop=prompts.ANSWER), "")]
    answerable = [
        (at, j) for at, row in enumerate(opened) for j, one in enumerate(row) if prompts.asks(one.text, one.finished)
    ]
    begun = [Request(None, prompts.answer_prompt(asked[at].prompt, opened[at][j].text)) for at, j in answerable]
    answers = ask(begun, 1, replace(sampling, structure=task.completion), "answers")
    if on_progress:
        on_progress(len(opened) * n - len(answers))
    for (at, j), [answer] in zip(answerable, answers, strict=False):
        opened[at][j] = Generation(prompts.answer_prompt("", opened[at][j].text) + answer.text, answer.finished)
    return opened
