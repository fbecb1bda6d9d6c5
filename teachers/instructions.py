"""A silo's teacher words advice for the task, and one silo's wording is chosen for the student."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tutelage.configs.schema import Task, TeachConfig
from tutelage.privacy.drafts import Draft
from tutelage.privacy.release import LessonSet
from tutelage.privacy.similarity import embed
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers import prompts
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.teacher import Teacher

_DRAFTS = 4
_MAX_NEW_TOKENS = 64


def write_instruction(
    teacher: Teacher,
    records: Sequence[PrivateRecord],
    *,
    task: Task,
    config: TeachConfig,
    silo: str,
    round: int,
    seed: int,
) -> tuple[Draft, ...]:
    """Several wordings by one silo's teacher, unscreened. Empty if the recipe wants the public description only."""
    if config.instruction == "description":
        return ()
    draw = random.Random(f"{seed}/{silo}/{round}/instruction")
    rows = draw.sample(range(len(records)), min(2 * config.references_per_prompt, len(records)))
    system, user = prompts.instruction_request(task, [records[row].example() for row in rows])
    sampling = Sampling(_MAX_NEW_TOKENS, min(config.temperature, 0.7), config.top_p, config.top_k, "\n")
    texts = teacher.advise(system, user, _DRAFTS, sampling, draw.getrandbits(48))
    wordings = [sentences(text.text) for text in texts]
    return tuple(
        Draft(f"{silo}-r{round}-instruction-{j}", "instruction", wording, "", prompts.VERSION)
        for j, wording in enumerate(wordings)
        if wording
    )


def sentences(wording: str) -> str:
    """The whole sentences of a wording: what stops short, or only announces ("Here is some advice:"), is left out."""
    end = max(wording.rfind(mark) for mark in ".!?")
    return wording[: end + 1].strip()


def choose_instruction(lessons: LessonSet) -> str | None:
    """The released wording most like all the others (the medoid by embedding); None if none was released.

    It looks at released text only, so it costs no privacy.
    """
    return medoid([lesson.prompt for lesson in lessons if lesson.kind == "instruction"])


def medoid(wordings: Sequence[str]) -> str | None:
    """The wording most like all the others, by embedding; None of none."""
    if not wordings:
        return None
    vectors = embed(wordings)
    return wordings[int((vectors @ vectors.T).sum(1).argmax())]
