"""Private records: held in memory and under a run's vault/, and hard to let slip.

A `PrivateRecord` shows its length but never its text, refuses to be pickled (so it cannot ride a task
queue or a result store) and has no `__str__` of its content. `.example()` and `.text` are the deliberate ways in.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NoReturn

from tutelage.configs.errors import PrivacyError
from tutelage.configs.records import Example
from tutelage.configs.store import canonical_json, read_jsonl, write_jsonl


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


def write_records(path: Path, records: list[PrivateRecord]) -> Path:
    """Write records below a vault.

    Raises:
        PrivacyError: the path is not inside a `vault` folder.
    """
    inside_vault(path)
    rows: list[dict[str, Any]] = [r.example().model_dump() | {"source": r.source} for r in records]
    return write_jsonl(path, rows)


def read_records(path: Path) -> list[PrivateRecord]:
    """Read back what `write_records` wrote."""
    inside_vault(path)
    return [PrivateRecord(**row) for row in read_jsonl(path)]


def dump_records(records: list[PrivateRecord]) -> bytes:
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
