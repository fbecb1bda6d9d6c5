"""What people decided about released texts: accept, reject or edit, kept in a file that the next round reads.

A reviewer sees what was released and nothing else, so what they decide is post-processing and costs no budget, as long
as they know nothing of the records besides: see docs/threat-model.md.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from tutelage.configs.errors import UserError
from tutelage.configs.records import Frozen
from tutelage.configs.store import canonical_json

SILO = "_review"
"""Whose the lessons are that a reviewer edited: the run's key signs them. No silo can have this name."""

FILE = "review.jsonl"
"""In the run's folder. Decisions that no round has read yet are signed by nobody."""

_LONGEST = 1 << 20
"""Bytes of a line."""

Verdict = Literal["accept", "reject", "edit", "open"]


class Decision(Frozen):
    """What somebody decided about one lesson. A later one about the same lesson takes its place."""

    lesson: str
    """The lesson's id."""
    verdict: Verdict
    """`open`: an earlier decision is taken back."""
    by: str = Field(min_length=1, max_length=100)
    at: str
    """UTC, ISO 8601."""
    prompt: str | None = None
    """With `edit`: the text as it should be."""
    completion: str | None = None
    """With `edit`: its label or answer as it should be."""

    @model_validator(mode="after")
    def _texts_with_edits(self) -> Decision:
        if (self.verdict == "edit") != (self.prompt is not None and self.completion is not None):
            raise ValueError("an edit has a prompt and a completion, and nothing else has")
        return self


def read(path: Path) -> dict[str, Decision]:
    """Lesson id -> what was decided last, decisions taken back left out; nothing where there is no file.

    Raises:
        UserError: a line that is no decision. What a killed writer left of a last line is passed over: nobody was told
            that it was kept.
    """
    decisions: dict[str, Decision] = {}
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate([*lines, torn] if _whole(torn) else lines, 1):
        try:
            decision = Decision.model_validate_json(line)
        except ValidationError as error:
            raise UserError(
                "this line is no decision about a lesson",
                file=path,
                row=number,
                key=", ".join(str(part) for one in error.errors() for part in one["loc"]) or None,
                remedy="mend or remove it",
            ) from None
        decisions[decision.lesson] = decision
    return {lesson: one for lesson, one in decisions.items() if one.verdict != "open"}


def append(path: Path, decision: Decision) -> None:
    """Add a decision to the file. It is on the disk when this returns, and several processes may write."""
    line = canonical_json(decision.model_dump(exclude_none=True)).encode() + b"\n"
    with path.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _LONGEST))
        torn = stream.read().rpartition(b"\n")[2]
        if torn and _whole(torn):
            line = b"\n" + line
        elif torn:
            stream.truncate(size - len(torn))
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def counts(decisions: Mapping[str, Decision]) -> dict[str, int]:
    """Verdict -> how many."""
    found: dict[str, int] = {}
    for one in decisions.values():
        found[one.verdict] = found.get(one.verdict, 0) + 1
    return found


def _whole(line: bytes) -> bool:
    try:
        Decision.model_validate_json(line)
    except ValidationError:
        return False
    return True
