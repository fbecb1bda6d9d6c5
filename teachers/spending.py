"""What a silo's teachers spend: every call is reserved for at its worst before it is made, and settled after it.

The journal in the vault is the account. A reservation is on the disk before the call, so what a killed process had
begun counts as spent in full, whatever came of it: `spent` is never less than what the calls have cost. Settled calls
keep their texts, so a resumed stage gets those it has paid for and pays for the others only. Amounts are exact
fractions; only tokens stand in the journal.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from tutelage.configs.errors import HeldError, UserError
from tutelage.configs.schema import TeacherConfig
from tutelage.privacy.vault import inside_vault
from tutelage.teachers.engines.base import Generation

Texts = list[list[Generation]]


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts that were read, and of drafts that were drawn."""

    read: int = 0
    drawn: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.read + other.read, self.drawn + other.drawn)


def call_digest(*what: Any) -> str:
    """What a call is known again by: sha256 (hex) of whose it is and of all that decides its texts."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@dataclass
class _Call:
    """A reservation, and what became of it."""

    digest: str
    teacher: str
    tokens: Tokens
    texts: Texts | None = None
    """None: it is open."""


class Purse:
    """A silo's share of the budget in one round, and its journal.

    Args:
        path: The journal, below a vault. What stands there is spent.
        teachers: By whom and at what prices.
        limit: In the prices' unit; None: no bound.

    Raises:
        PrivacyError: the path is not inside a vault.
        HeldError: another process holds the journal.
        UserError: it is damaged: what was spent is not known.
    """

    def __init__(self, path: Path, teachers: Sequence[TeacherConfig], limit: Fraction | None) -> None:
        inside_vault(path)
        self.path, self.limit = path, limit
        self._teachers: Mapping[str, TeacherConfig] = {one.name: one for one in teachers}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._calls = self._read()
        except BlockingIOError:
            os.close(self._file)
            raise HeldError("another process spends from it", file=path, remedy="wait for it, or stop it") from None
        except BaseException:
            os.close(self._file)
            raise
        self._begun = len(self._calls)
        self.spent = sum((self._cost(one) for one in self._calls), Fraction(0))
        """Settled calls at what they took, open ones at their worst."""

    def close(self) -> None:
        """Let go of the journal."""
        os.close(self._file)

    @property
    def lost(self) -> Fraction:
        """Of it, what open calls of processes that ended are counted at."""
        return sum((self._cost(one) for one in self._calls[: self._begun] if one.texts is None), Fraction(0))

    def covers(self, teacher: str, tokens: Tokens) -> bool:
        """Whether the limit allows for a call that takes so much."""
        return self.limit is None or self.spent + self._teachers[teacher].cost(tokens.read, tokens.drawn) <= self.limit

    def used(self, teacher: str) -> tuple[Tokens, Fraction]:
        """What a teacher took of it, open calls at their worst."""
        own = [one for one in self._calls if one.teacher == teacher]
        return sum((one.tokens for one in own), Tokens()), sum((self._cost(one) for one in own), Fraction(0))

    def paid_before(self, digest: str) -> Texts | None:
        """The texts of a call that was settled, now or by an earlier process."""
        return next((one.texts for one in self._calls if one.digest == digest and one.texts is not None), None)

    def reserve(self, digest: str, teacher: str, worst: Tokens) -> int:
        """Put a call's worst case on the disk, before it is made.

        Args:
            digest: What the call is known again by.
            teacher: Whose.
            worst: Tokens it may take at most.

        Returns:
            Its number, to settle it by.

        Raises:
            UserError: the limit does not allow for it. Whoever asks looks at `covers` first.
        """
        if not self.covers(teacher, worst):
            raise UserError("the budget does not cover this call", key="teach.route.budget", remedy="raise it")
        self._write({"reserve": digest, "teacher": teacher, "read": worst.read, "drawn": worst.drawn})
        self._calls.append(_Call(digest, teacher, worst))
        self.spent += self._cost(self._calls[-1])
        return len(self._calls) - 1

    def settle(self, number: int, texts: Texts) -> None:
        """Put what a call gave and took on the disk. Where an engine doesn't know, what was reserved was taken.

        Raises:
            UserError: it took more than was reserved, so reservations bound nothing.
        """
        call = self._calls[number]
        told = [one for row in texts for one in row]
        known = all(one.read is not None and one.drawn is not None for one in told)
        took = Tokens(sum(one.read or 0 for one in told), sum(one.drawn or 0 for one in told)) if known else call.tokens
        rows = [[[one.text, one.finished, one.read, one.drawn] for one in row] for row in texts]
        self._write({"settle": number, "read": took.read, "drawn": took.drawn, "texts": rows})
        over = took.read > call.tokens.read or took.drawn > call.tokens.drawn
        self.spent -= self._cost(call)
        call.tokens, call.texts = took, texts
        self.spent += self._cost(call)
        if over and self.limit is not None:
            raise UserError(
                f"teacher {call.teacher!r} took more tokens than its tokenizer counts, so no budget can be kept",
                key="teach.teachers", remedy="let `model` name the model that the server has; its tokenizer counts",
            )  # fmt: skip

    def _cost(self, call: _Call) -> Fraction:
        return self._teachers[call.teacher].cost(call.tokens.read, call.tokens.drawn)

    def _write(self, row: Mapping[str, Any]) -> None:
        data = json.dumps(row).encode() + b"\n"  # ASCII: a server's text may hold half a surrogate pair
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def _read(self) -> list[_Call]:
        """What stands in the journal; a last line that was cut short is cut off: its call was not made, or is open."""
        with os.fdopen(os.dup(self._file), "rb") as stream:
            stream.seek(0)
            data = stream.read()
        whole = data.rpartition(b"\n")[0]
        os.ftruncate(self._file, len(whole) + 1 if whole else 0)
        calls: list[_Call] = []
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                row = json.loads(line)
                tokens = Tokens(int(row["read"]), int(row["drawn"]))
                if "reserve" in row:
                    self._teachers[row["teacher"]]
                    calls.append(_Call(str(row["reserve"]), str(row["teacher"]), tokens))
                else:
                    call = calls[int(row["settle"])]
                    call.tokens, call.texts = tokens, [[Generation(*one) for one in texts] for texts in row["texts"]]
            except (ValueError, KeyError, TypeError, IndexError):
                raise UserError(
                    "this line is not what was written here, so what was spent is not known",
                    file=self.path, row=number, remedy="restore the file",
                ) from None  # fmt: skip
        return calls
