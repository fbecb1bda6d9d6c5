"""Files of one JSON object per line, written and read without ever being in memory as a whole."""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tutelage.configs.errors import UserError
from tutelage.configs.lazy import Lazy
from tutelage.configs.store import canonical_json, write_atomic

T = TypeVar("T")
_AT_A_TIME = 256
"""Lines that are read at once where all are."""


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Atomically write one JSON object per line."""
    return write_atomic(path, (canonical_json(row) + "\n" for row in rows))


class Rows(Lazy[T]):
    """What `write_jsonl` wrote, read when it is asked for: held is where each line begins, 8 bytes a row.

    The file is held open, so it is read as it was found even after another took its place. (Users' files are read by
    privacy/sources.py, which checks each value.)

    Args:
        path: The file.
        make: What a row is made into, anew whenever it is asked for.

    Raises:
        UserError: the file is missing. When a row is asked for: it is damaged; its content is not quoted.
    """

    def __init__(self, path: Path, make: Callable[[dict[str, Any]], T]) -> None:
        self._path, self._make = path, make
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UserError("there is no such file", file=path, remedy="run the stage that writes it") from None
        weakref.finalize(self, os.close, self._file)
        self._starts = array("q", [0])
        with open(self._file, "rb", closefd=False) as stream:
            for line in stream:  # at line feeds only: a text may hold U+2028
                self._starts.append(self._starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _AT_A_TIME):
            yield from self._read(start, min(start + _AT_A_TIME, len(self)))

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {self._path.name}>"

    def _one(self, at: int) -> T:
        return self._read(at, at + 1)[0]

    def _read(self, first: int, end: int) -> list[T]:
        start = self._starts[first]
        data = os.pread(self._file, self._starts[end] - start, start)
        return [self._parse(data[self._starts[n] - start : self._starts[n + 1] - start], n) for n in range(first, end)]

    def _parse(self, line: bytes, number: int) -> T:
        try:
            row = json.loads(line.decode())
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(
                "this line is not a JSON object", file=self._path, row=number + 1, remedy="restore the file"
            )
        return self._make(row)


def read_jsonl(path: Path) -> Rows[dict[str, Any]]:
    """Read back what `write_jsonl` wrote; errors as for `Rows`."""
    return Rows(path, dict)
