"""The protected units, and their split into batches by a draw that never looks at what they hold.

A unit is a record, or an owner with all its records: then an owner takes one place in one batch like anybody else,
and brings one of its records, drawn at random. So whatever a unit holds, it stands behind one text at most, and texts
of different batches compose in parallel. How many units there are is public: replacing one by null leaves its place.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tutelage.configs.lazy import Lazy
from tutelage.privacy.vault import PrivateRecord


@dataclass(frozen=True)
class Unit:
    """What is protected as a whole. Two units share no record."""

    records: tuple[PrivateRecord, ...]

    def one(self) -> PrivateRecord:
        """One of its records, by the operating system's randomness."""
        return secrets.choice(self.records)


class Units(Lazy[Unit]):
    """A silo's units. Held are the numbers of their records, which may lie on a disk.

    Args:
        records: The silo's.
        rows: Unit -> its records, by number. None: each record is one.
    """

    def __init__(self, records: Sequence[PrivateRecord], rows: Sequence[Sequence[int]] | None = None) -> None:
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._records if self._rows is None else self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} units, redacted>"

    def _one(self, at: int) -> Unit:
        return Unit(tuple(self._records[row] for row in self._rows_of(at)))

    def _rows_of(self, at: int) -> Sequence[int]:
        return (at,) if self._rows is None else self._rows[at]

    def some(self, numbers: Sequence[int]) -> Units:
        """Some of them, by number."""
        return Units(self._records, [self._rows_of(at) for at in numbers])


def by_record(records: Sequence[PrivateRecord]) -> Units:
    """Every record a unit of its own."""
    return Units(records)


def by_owner(records: Sequence[PrivateRecord], owner_of: Mapping[str, str]) -> Units:
    """All records of an owner are one unit.

    Args:
        records: A silo's.
        owner_of: Record id -> owner.

    Raises:
        KeyError: a record without an owner; it shows the record's id and no text.
    """
    owned: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        owned[owner_of[record.id]].append(row)
    return Units(records, list(owned.values()))


def split(units: Units, size: int) -> list[Units]:
    """Deal units into batches of `size`, by the operating system's randomness and nothing else.

    Every unit is in one batch. The last one may have fewer than `size`; its texts are written with as many places and
    the same divisor as the others', so it costs no more.

    Args:
        units: A silo's, in any order.
        size: Places in a batch, at least 1.
    """
    if size < 1:
        raise ValueError("a batch has at least one place")
    order = list(range(len(units)))
    secrets.SystemRandom().shuffle(order)
    return [units.some(order[start : start + size]) for start in range(0, len(order), size)]
