"""Signed lessons for the tests, without the screening that `release` does first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tutelage.privacy import release
from tutelage.privacy.drafts import Draft
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.release import LessonSet


def signed(key: SiloKey, texts: Iterable[tuple[str, str]], *, kind: Literal["example", "instruction"] = "example",
           silo: str = "silo-0") -> LessonSet:  # fmt: skip
    """(prompt, completion) pairs as the lessons of round 1 of run `run`."""
    drafts = [Draft(str(i), kind, prompt, completion, "1") for i, (prompt, completion) in enumerate(texts)]
    candidates = [release._Candidate(one, (one.prompt,), one.prompt, one.completion) for one in drafts]
    lessons = [release._sign(candidate, silo, 1, "run", key) for candidate in candidates]
    return LessonSet(lessons, "run", release._SEAL)


def verified(lessons: LessonSet, key: SiloKey, folder: Path) -> LessonSet:
    """The same lessons by the ordinary way in: saved, and loaded with every signature checked."""
    return LessonSet.load(lessons.save(folder / "lessons.jsonl"), "run", dict.fromkeys(_silos(lessons), key.public_hex))


def _silos(lessons: LessonSet) -> set[str]:
    return {lesson.silo for lesson in lessons}
