from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.privacy import units as module
from tutelage.privacy.units import by_owner, by_record, split
from tutelage.privacy.vault import PrivateRecord


def records(count: int, prefix: str = "text") -> list[PrivateRecord]:
    return [PrivateRecord(f"r{i}", f"{prefix} {i}", "ham") for i in range(count)]


@given(st.integers(0, 60), st.integers(1, 20))
def test_every_unit_is_in_one_batch(count: int, size: int) -> None:
    batches = split(by_record(records(count)), size)
    ids = [record.id for batch in batches for unit in batch for record in unit.records]
    assert sorted(ids) == sorted(record.id for record in records(count))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(0 < len(batch) <= size for batch in batches)


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_the_split_never_looks_at_contents(count: int, size: int, seed: int) -> None:
    """The same randomness deals the same places, whatever the units hold."""
    with pytest.MonkeyPatch.context() as patch:

        def deal(prefix: str) -> list[list[str]]:
            patch.setattr(module.secrets, "SystemRandom", lambda: random.Random(seed))
            return [[unit.records[0].id for unit in batch] for batch in split(by_record(records(count, prefix)), size)]

        assert deal("the meeting") == deal("something else, and longer")


def test_the_split_takes_no_seed() -> None:
    units = by_record(records(200))
    drawn = []
    for _ in range(2):
        random.seed(0)
        drawn.append([unit.records[0].id for batch in split(units, 7) for unit in batch])
    assert drawn[0] != drawn[1]


@given(st.lists(st.sampled_from("abcde"), max_size=30))
def test_an_owners_records_are_one_unit(owners: list[str]) -> None:
    kept = records(len(owners))
    owner_of = {record.id: owner for record, owner in zip(kept, owners, strict=True)}
    found = by_owner(kept, owner_of)
    assert len(found) == len(set(owners))
    for unit in found:
        assert len({owner_of[record.id] for record in unit.records}) == 1
        assert unit.one() in unit.records
    assert Counter(len(unit.records) for unit in found) == Counter(Counter(owners).values())


def test_a_record_without_an_owner() -> None:
    with pytest.raises(KeyError, match="r1") as caught:
        by_owner(records(2), {"r0": "a"})
    assert "text" not in str(caught.value)


def test_an_empty_batch_size() -> None:
    with pytest.raises(ValueError, match="at least one"):
        split([], 0)


def test_nothing_shown_holds_text() -> None:
    assert "text" not in repr(by_record(records(2)))
