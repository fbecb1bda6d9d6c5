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


def write_texts(
    engine: Engine,
    task: Task,
    asked: Sequence[Request],
    n: int,
    sampling: Sampling,
    seed: int,
    on_progress: Callable[[int], object] | None = None,
) -> list[list[Generation]]:
    """As `Engine.generate` for example prompts; `on_progress` hears of each text `steps` times.

    A text whose prompt does not end is given as it is, without a completion, so it is malformed.
    """
    if not (isinstance(task, GenerationTask) and task.completion):
        return engine.generate([one.prompt for one in asked], n, sampling, seed, on_progress)
    opened = engine.generate(
        [one.prompt for one in asked], n, replace(sampling, stop=prompts.ANSWER), seed, on_progress
    )
    answerable = [
        (at, j) for at, row in enumerate(opened) for j, one in enumerate(row) if prompts.asks(one.text, one.finished)
    ]
    answers = engine.generate(
        [prompts.answer_prompt(asked[at].prompt, opened[at][j].text) for at, j in answerable],
        1,
        replace(sampling, structure=task.completion),
        random.Random(f"{seed}/answers").getrandbits(48),
        on_progress,
    )
    if on_progress:
        on_progress(len(asked) * n - len(answerable))
    for (at, j), [answer] in zip(answerable, answers, strict=True):
        opened[at][j] = Generation(prompts.answer_prompt("", opened[at][j].text) + answer.text, answer.finished)
    return opened
