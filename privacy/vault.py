"""Private records: kept under a run's vault/, read from there one by one, and hard to let slip.

A `PrivateRecord` shows its length but never its text, refuses to be pickled (so it cannot ride a task
queue or a result store) and has no `__str__` of its content. `.example()` and `.text` are the deliberate ways in.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from tutelage.configs.errors import PrivacyError
from tutelage.configs.jsonl import Rows, write_jsonl
from tutelage.configs.lazy import Lazy
from tutelage.configs.records import Example
from tutelage.configs.store import canonical_json


class PrivateRecord:
    """One record of a silo: an id, the prompt (the text, for classification) and the completion (the label)."""

    __slots__ = ("_completion", "_prompt", "id", "source")

    def __init__(self, id: str, prompt: str, completion: str, source: str = "") -> None:
        """`source` is a digest of the text before it was cut, by which a ledger knows the record again."""
        self.id, self._prompt, self._completion = id, prompt, completion
        self.source = source or source_digest(prompt)

    @property
    def text(self) -> str:
        """The private text. Whoever calls this answers for where it goes."""
        return self._prompt

    @property
    def completion(self) -> str:
        """The label, or the private completion."""
        return self._completion

    def example(self) -> Example:
        """The record as an example, for prompts and training inside the vault."""
        return Example(id=self.id, prompt=self._prompt, completion=self._completion)

    def __repr__(self) -> str:
        return f"<PrivateRecord {len(self._prompt)} chars, redacted>"

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("a private record must not be pickled: pass its silo's path instead")

    def __getstate__(self) -> NoReturn:
        raise PrivacyError("a private record must not be pickled: pass its silo's path instead")


def source_digest(text: str) -> str:
    """sha256 (hex) of a record's text as its silo has it, without outer white space. As private as the text."""
    return hashlib.sha256(text.strip().encode(errors="surrogatepass")).hexdigest()


def write_records(path: Path, records: Iterable[PrivateRecord]) -> Path:
    """Write records below a vault.

    Raises:
        PrivacyError: the path is not inside a `vault` folder.
    """
    inside_vault(path)
    return write_jsonl(path, (record.example().model_dump() | {"source": record.source} for record in records))


def read_records(path: Path) -> Rows[PrivateRecord]:
    """What `write_records` wrote, read when it is asked for: a silo's records need not fit into memory.

    Raises:
        PrivacyError: the path is not inside a `vault` folder.
    """
    inside_vault(path)
    return Rows(path, lambda row: PrivateRecord(**row))


class Chosen(Lazy[PrivateRecord]):
    """Some of the records of a sequence, in an order of their own; and others among them.

    Args:
        records: The sequence, which may be far larger than memory.
        rows: Which of its records, by number; `len(records) + i` is number i of `more`.
        more: Others.
    """

    def __init__(
        self, records: Sequence[PrivateRecord], rows: Iterable[int], more: Sequence[PrivateRecord] = ()
    ) -> None:
        self.records, self.rows, self.more = records, array("q", rows), more

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<{len(self)} private records, redacted>"

    def _one(self, at: int) -> PrivateRecord:
        row = self.rows[at]
        return self.records[row] if row < len(self.records) else self.more[row - len(self.records)]


class Joined(Lazy[PrivateRecord]):
    """Several sequences of records as one."""

    def __init__(self, parts: Sequence[Sequence[PrivateRecord]]) -> None:
        self._parts, self._ends = parts, list(itertools.accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._ends[-1]

    def _one(self, at: int) -> PrivateRecord:
        part = bisect.bisect_right(self._ends, at) - 1
        return self._parts[part][at - self._ends[part]]

    def __iter__(self) -> Iterator[PrivateRecord]:
        return itertools.chain.from_iterable(self._parts)


def dump_records(records: Sequence[PrivateRecord]) -> bytes:
    """Records in one piece, to be sealed (privacy/keys.py). Whoever calls this answers for where it goes."""
    return "".join(f"{canonical_json(r.example().model_dump() | {'source': r.source})}\n" for r in records).encode()


def parse_records(data: bytes) -> list[PrivateRecord]:
    """What `dump_records` made."""
    return [PrivateRecord(**json.loads(line)) for line in data.decode().split("\n") if line]


def inside_vault(path: Path) -> None:
    """Refuse a path that is not inside a run's vault.

    Raises:
        PrivacyError: of the folders named `vault` and `release` above it, the nearest is not `vault`.
    """
    nearest = next((part for part in reversed(path.resolve().parts[:-1]) if part in ("vault", "release")), None)
    if nearest != "vault":
        raise PrivacyError("private records are kept inside a run's vault/ only")
