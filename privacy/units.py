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

from tutelage.privacy.vault import PrivateRecord


@dataclass(frozen=True)
class Unit:
    """What is protected as a whole. Two units share no record."""

    records: tuple[PrivateRecord, ...]

    def one(self) -> PrivateRecord:
        """One of its records, by the operating system's randomness."""
        return secrets.choice(self.records)


def by_record(records: Sequence[PrivateRecord]) -> list[Unit]:
    """Every record a unit of its own."""
    return [Unit((record,)) for record in records]


def by_owner(records: Sequence[PrivateRecord], owner_of: Mapping[str, str]) -> list[Unit]:
    """All records of an owner are one unit.

    Args:
        records: A silo's.
        owner_of: Record id -> owner.

    Raises:
        KeyError: a record without an owner; it shows the record's id and no text.
    """
    owned: dict[str, list[PrivateRecord]] = defaultdict(list)
    for record in records:
        owned[owner_of[record.id]].append(record)
    return [Unit(tuple(group)) for group in owned.values()]


def split(units: Sequence[Unit], size: int) -> list[list[Unit]]:
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
    return [[units[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
