from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
from forked import ending
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.privacy import accounting
from tutelage.privacy import ledger as module
from tutelage.privacy.ledger import BudgetError, Ledger, Reservation, Terms

TERMS = Terms(silo="a1b2", unit="record", units=100, delta=1e-6, budget=4.0)
TENTH = dp.ZCDpEvent(accounting.max_rho(4.0, 1e-6) / 10)


def begin(folder: Path, terms: Terms = TERMS) -> Ledger:
    return Ledger.begin(folder / "ledger.jsonl", terms)


def spend(ledger: Ledger, times: int = 1, **purpose: Any) -> None:
    """Reserve for purposes that were never reserved for."""
    for _ in range(times):
        ledger.reserve(TENTH, run="r", line=len(ledger.entries()), **purpose)


def kinds(ledger: Ledger) -> list[str]:
    return [entry.kind for entry in ledger.entries()]


def uses(ledger: Ledger) -> list[tuple[int, int]]:
    """Reservation and part of everything that was ever claimed."""
    found = [entry.fields for entry in ledger.entries() if entry.kind == "use"]
    return [(fields["reservation"], part) for fields in found for part in fields["parts"]]


# ---- the budget -----------------------------------------------------------------------------------------------------


def test_a_budget_is_spent_to_its_end_and_no_further(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    assert (ledger.spent(), len(ledger.entries())) == (0, 1)
    assert ledger.left() == pytest.approx(4.0, rel=1e-6)
    spend(ledger, 10)
    assert ledger.spent() == pytest.approx(4.0, rel=1e-6)
    assert ledger.left() == pytest.approx(0, abs=1e-2)
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetError) as caught:
        spend(ledger)
    for said in ("spent 4 of 4", "asked for 1.1", "unit record", "replace-by-null", "delta 1e-06"):
        assert said in str(caught.value)
    assert caught.value.remedy
    assert ledger.path.read_bytes() == before, "a refusal spends nothing"


@given(st.lists(st.floats(0, 0.5), max_size=12), st.floats(0.1, 8))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_granted_never_passes_the_budget(
    tmp_path_factory: pytest.TempPathFactory, rhos: list[float], budget: float
) -> None:
    ledger = begin(tmp_path_factory.mktemp("ledger"), Terms("s", "record", 100, 1e-6, budget))
    granted: list[Any] = []
    for i, rho in enumerate(rhos):
        event = dp.SelfComposedDpEvent(dp.ZCDpEvent(rho / 4), 4)
        try:
            ledger.reserve(event, i=i)
        except BudgetError:
            assert accounting.epsilon([*granted, event], 1e-6) > budget
        else:
            granted.append(event)
    assert ledger.spent() == accounting.epsilon(granted, 1e-6) <= budget * (1 + 1e-9)
    assert 0 <= ledger.left() <= budget * (1 + 1e-9)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.floats(0.1, 8))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_shares_of_a_budget_all_fit_and_nothing_beside_them(
    tmp_path_factory: pytest.TempPathFactory, weights: list[float], budget: float
) -> None:
    ledger = begin(tmp_path_factory.mktemp("ledger"), Terms("s", "record", 100, 1e-6, budget))
    rho = accounting.max_rho(budget, 1e-6)
    for i, weight in enumerate(weights):
        ledger.reserve(dp.ZCDpEvent(rho * weight / sum(weights)), i=i)
    with pytest.raises(BudgetError):
        ledger.reserve(dp.ZCDpEvent(rho * 1e-6), i=len(weights))


@pytest.mark.parametrize(("short", "granted"), [(1e-12, 3), (1e-6, 2)])
def test_rounding_takes_nothing_away_and_gives_next_to_nothing(tmp_path: Path, short: float, granted: int) -> None:
    ledger = begin(tmp_path, Terms("s", "record", 100, 1e-6, accounting.epsilon([TENTH] * 3, 1e-6) * (1 - short)))
    with pytest.raises(BudgetError):
        spend(ledger, 4)
    assert len(ledger.entries()) == 1 + granted


@pytest.mark.parametrize("event", [dp.NonPrivateDpEvent(), dp.SelfComposedDpEvent(dp.NonPrivateDpEvent(), 2)])
def test_what_is_not_private_never_fits(tmp_path: Path, event: Any) -> None:
    with pytest.raises(BudgetError, match="inf"):
        begin(tmp_path).reserve(event)


def test_what_costs_nothing_always_fits(tmp_path: Path) -> None:
    ledger = begin(tmp_path, Terms("s", "record", 100, 1e-6, 0.0))
    ledger.reserve(dp.NoOpDpEvent()).claim(dp.NoOpDpEvent())
    ledger.internal(what="audit")
    assert ledger.spent() == 0
    with pytest.raises(BudgetError):
        ledger.reserve(TENTH, run="r")


def test_settling_gives_nothing_back(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    reservation = ledger.reserve(TENTH, 3, run="r", round=1)
    spent = ledger.spent()
    reservation.claim(TENTH, [1])
    reservation.settle(texts=0)
    assert ledger.spent() == spent
    reservation.settle(texts=5)
    begin(tmp_path).reserve(TENTH, 3, run="r", round=1).settle()
    assert kinds(ledger) == ["terms", "reserve", "use", "settle"], "settled once"
    assert ledger.entries()[3].fields == {"reservation": 1, "outcome": {"texts": 0}}
    assert ledger.entries()[1].fields["purpose"] == {"run": "r", "round": 1}
    assert ledger.entries()[1].event == TENTH
    assert reservation.unused == [0, 2], "what is left over is not given back"
    with pytest.raises(PrivacyError, match="settled"):
        reservation.claim(TENTH, [0])
    assert len(ledger.entries()) == 4


# ---- purposes and parts ---------------------------------------------------------------------------------------------


def test_the_same_purpose_is_the_same_reservation(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    first = ledger.reserve(TENTH, 2, run="r", round=1)
    first.claim(TENTH, [1])
    again = Ledger(ledger.path).reserve(TENTH, 2, round=1, run="r")
    assert (again.number, again.event, again.parts, again.unused) == (first.number, TENTH, 2, [0])
    for other in ({"run": "r", "round": 2}, {"run": "q", "round": 1}, {"run": "r"}, {"run": "r", "round": "1"}):
        assert ledger.reserve(TENTH, 2, **other).unused == [0, 1]
    assert ledger.spent() == accounting.epsilon([TENTH] * 5, 1e-6)


def test_a_purpose_that_changes_its_mind_is_refused(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    ledger.reserve(TENTH, 2, run="r")
    before = ledger.path.read_bytes()
    cheaper, dearer = dp.ZCDpEvent(TENTH.rho / 2), dp.SelfComposedDpEvent(TENTH, 2)
    for event, parts in ((cheaper, 2), (dearer, 2), (dp.NoOpDpEvent(), 2), (TENTH, 3), (TENTH, 1)):
        with pytest.raises(PrivacyError, match="another event"):
            ledger.reserve(event, parts, run="r")
    assert ledger.path.read_bytes() == before


def test_what_was_refused_can_be_asked_for_again_smaller(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    with pytest.raises(BudgetError):
        ledger.reserve(dp.SelfComposedDpEvent(TENTH, 11), run="r")
    ledger.reserve(dp.SelfComposedDpEvent(TENTH, 10), run="r").claim(TENTH)


def test_what_was_granted_is_found_again_when_nothing_is_left(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    first = ledger.reserve(TENTH, run="first")
    spend(ledger, 9)
    assert ledger.reserve(TENTH, run="first").number == first.number
    with pytest.raises(BudgetError):
        ledger.reserve(TENTH, run="second")


def test_a_reservation_serves_each_part_once(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    reservation = ledger.reserve(TENTH, 4)
    assert ledger.spent() == accounting.epsilon([TENTH], 1e-6), "disjoint parts cost what one costs"
    assert reservation.unused == [0, 1, 2, 3]
    for wrong in (dp.SelfComposedDpEvent(TENTH, 2), dp.NonPrivateDpEvent()):
        with pytest.raises(PrivacyError, match="does not cover"):
            reservation.claim(wrong, [0])
    reservation.claim(dp.NoOpDpEvent(), [3])
    reservation.claim(TENTH, [2, 0])
    assert reservation.unused == [1]
    for handle in (reservation, begin(tmp_path).reserve(TENTH, 4)):
        for parts in ([0], [3], [1, 2], [1, 1]):
            with pytest.raises(PrivacyError, match="used once"):
                handle.claim(TENTH, parts)
        for parts in ([4], [-1], [1, 4]):
            with pytest.raises(PrivacyError, match="no such part"):
                handle.claim(TENTH, parts)
    assert reservation.unused == [1], "what was refused used nothing up"
    reservation.claim(TENTH, [1])
    assert kinds(ledger) == ["terms", "reserve", "use", "use", "use"]
    assert [entry.fields["parts"] for entry in ledger.entries()[2:]] == [[3], [0, 2], [1]]


def test_a_reservation_has_at_least_one_part(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    for parts in (0, -1):
        with pytest.raises((PrivacyError, ValueError)):
            ledger.reserve(TENTH, parts)
    assert ledger.spent() == 0


def test_what_is_internal_is_written_once_and_costs_nothing(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    for _ in range(2):
        internal = begin(tmp_path).internal(run="r", what="audit")
        for _ in range(2):
            internal.claim(dp.NonPrivateDpEvent(), [0, 7])
    ledger.internal(run="q", what="audit")
    assert kinds(ledger) == ["terms", "internal", "internal"]
    assert ledger.spent() == 0


SHARES = st.sampled_from([1, 3, 5])
PARTS = st.integers(1, 4)
STEPS = st.one_of(
    st.tuples(st.just("reserve"), st.integers(0, 3), SHARES, PARTS),
    st.tuples(st.just("claim"), st.integers(0, 3), st.lists(st.integers(0, 4), max_size=3)),
    st.tuples(st.just("settle"), st.integers(0, 3)),
    st.tuples(st.just("cut"), st.floats(0, 1)),
)


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_history_uses_a_part_twice_or_passes_the_budget(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    """Against the plainest model of it, with crashes in between after which other processes go on."""
    ledger = begin(tmp_path_factory.mktemp("ledger"))
    held: dict[int, tuple[int, int]] = {}  # purpose -> tenths of the budget, parts
    used: dict[int, list[int]] = {}
    settled: set[int] = set()
    handles: dict[int, Reservation] = {}
    for kind, what, *rest in steps:
        if kind == "cut":
            assert ledger.entries()  # completes what an earlier cut left
            data, upcoming = files(ledger)
            put(ledger, data[: len(data) - round(what * len(upcoming))], upcoming)
            ledger = Ledger(ledger.path)
        elif kind == "reserve":
            share, parts = rest
            event = dp.SelfComposedDpEvent(TENTH, share)
            fits = sum(tenths for tenths, _ in held.values()) + share <= 10
            if held.get(what, (share, parts)) != (share, parts):
                with pytest.raises(PrivacyError, match="another event"):
                    ledger.reserve(event, parts, purpose=what)
            elif what not in held and not fits:
                with pytest.raises(BudgetError):
                    ledger.reserve(event, parts, purpose=what)
            else:
                handles[what] = ledger.reserve(event, parts, purpose=what)
                held[what] = (share, parts)
                used.setdefault(what, [])
        elif what in held and kind == "settle":
            handles[what].settle(at=len(used[what]))
            settled.add(what)
        elif what in held:
            [parts] = rest
            once = len(set(parts)) == len(parts) and not set(parts) & set(used[what])
            if once and what not in settled and all(part < held[what][1] for part in parts):
                handles[what].claim(TENTH, parts)
                used[what] += parts
            else:
                with pytest.raises(PrivacyError):
                    handles[what].claim(TENTH, parts)
    ledger = Ledger(ledger.path)
    for what, (share, parts) in held.items():
        found = ledger.reserve(dp.SelfComposedDpEvent(TENTH, share), parts, purpose=what)
        assert (found.number, found.unused) == (
            handles[what].number,
            [part for part in range(parts) if part not in used[what]],
        )
    events = [dp.SelfComposedDpEvent(TENTH, share) for share, _ in held.values()]
    assert ledger.spent() == accounting.epsilon(events, 1e-6) <= TERMS.budget * (1 + 1e-9)
    written = uses(ledger)
    assert sorted(written) == sorted((handles[what].number, part) for what in used for part in used[what])
    assert len(set(written)) == len(written)
    assert kinds(ledger).count("settle") == len(settled)


# ---- what another ledger has spent ----------------------------------------------------------------------------------


def two(folder: Path) -> tuple[Ledger, Ledger]:
    return begin(folder / "here"), begin(folder / "there")


def test_another_ledgers_spending_is_charged_once(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    here.charge(there, "there")
    assert kinds(here) == ["terms"], "nothing to charge"
    spend(there, 2)
    there.reserve(TENTH, 3, run="x").claim(TENTH, [1])
    there.internal(what="audit")
    for _ in range(3):
        here.charge(there, "there")
        here = Ledger(here.path)
    assert (kinds(here), here.spent()) == (["terms", "charge"], there.spent())
    assert here.left() == there.left()
    spend(there)
    spend(here)
    here.charge(there, "there")
    assert kinds(here) == ["terms", "charge", "reserve", "charge"]
    assert here.spent() == accounting.epsilon([TENTH] * 5, 1e-6)


def test_a_charge_is_not_charged_back(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    spend(here)
    spend(there, 2)
    for _ in range(3):
        here.charge(there, "there")
        there.charge(here, "here")
    assert here.spent() == there.spent() == accounting.epsilon([TENTH] * 3, 1e-6)


def test_two_ledgers_are_charged_apart(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    third = begin(tmp_path / "third")
    spend(there, 2)
    spend(third, 3)
    for _ in range(2):
        here.charge(there, "there")
        here.charge(third, "third")
    assert here.spent() == accounting.epsilon([TENTH] * 5, 1e-6)


def test_a_charge_may_pass_the_budget_and_then_nothing_is_left(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    mine = here.reserve(TENTH, run="mine")
    spend(there, 10)
    here.charge(there, "there")
    assert here.spent() == accounting.epsilon([TENTH] * 11, 1e-6) > TERMS.budget
    assert here.left() == 0
    with pytest.raises(BudgetError):
        here.reserve(dp.ZCDpEvent(1e-9), run="new")
    here.reserve(TENTH, run="mine").claim(TENTH)
    assert mine.unused == [], "what was granted before stays granted"


def test_a_damaged_ledger_is_not_charged(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    spend(there, 2)
    put(there, *((files(there)[0][:-5] + b"xxxx\n"), files(there)[1]))
    before = here.path.read_bytes()
    with pytest.raises(PrivacyError, match="edited or cut short"):
        here.charge(there, "there")
    assert here.path.read_bytes() == before


# ---- terms ----------------------------------------------------------------------------------------------------------


def test_terms_are_fixed(tmp_path: Path) -> None:
    spend(begin(tmp_path))
    assert begin(tmp_path).terms == TERMS
    for change in ({"budget": 9.0}, {"delta": 1e-5}, {"unit": "owner"}, {"units": 101}, {"adjacency": "add-remove"}):
        with pytest.raises(UserError, match=next(iter(change))):
            begin(tmp_path, Terms(**asdict(TERMS) | change))
    assert len(begin(tmp_path).entries()) == 2


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"delta": 0.0}, "delta"), ({"delta": 1.0}, "delta"), ({"delta": math.nan}, "delta"), ({"budget": -1.0}, "budget"),
     ({"budget": math.nan}, "budget"), ({"budget": math.inf}, "budget")],
)  # fmt: skip
def test_impossible_terms(changes: dict[str, float], key: str) -> None:
    with pytest.raises(UserError) as caught:
        Terms(**asdict(TERMS) | changes)
    assert caught.value.key == f"privacy.{key}"


def test_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ledger"):
        Ledger(tmp_path / "ledger.jsonl").entries()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be a ledger"):
        Ledger.begin(blocked / "ledger.jsonl", TERMS)


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    ledger = begin(tmp_path / "new")
    spend(ledger)
    assert ledger.path.stat().st_mode & 0o077 == 0
    assert ledger._next.stat().st_mode & 0o077 == 0
    assert ledger.path.parent.stat().st_mode & 0o077 == 0


# ---- damage ---------------------------------------------------------------------------------------------------------


def files(ledger: Ledger) -> tuple[bytes, bytes]:
    return ledger.path.read_bytes(), ledger._next.read_bytes()


def put(ledger: Ledger, data: bytes, upcoming: bytes | None) -> None:
    ledger.path.write_bytes(data)
    if upcoming is None:
        ledger._next.unlink(missing_ok=True)
    else:
        ledger._next.write_bytes(upcoming)


def test_cut_at_any_byte_of_the_last_line_it_is_completed_and_spent(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    spend(ledger, 3, what="ü")
    data, upcoming = files(ledger)
    spent = ledger.spent()
    for length in range(len(data) - len(upcoming), len(data) + 1):
        put(ledger, data[:length], upcoming)
        assert Ledger(ledger.path).spent() == spent
        assert files(ledger) == (data, upcoming)


def test_a_use_that_was_cut_short_counts_as_used(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    reservation = ledger.reserve(TENTH, 4, run="r")
    reservation.claim(TENTH, [0])
    reservation.claim(TENTH, [1, 2])
    data, upcoming = files(ledger)
    assert json.loads(upcoming)["kind"] == "use"
    for length in range(len(data) - len(upcoming), len(data) + 1):
        put(ledger, data[:length], upcoming)
        found = Ledger(ledger.path).reserve(TENTH, 4, run="r")
        for used in (0, 1, 2):
            with pytest.raises(PrivacyError, match="used once"):
                found.claim(TENTH, [used, 3])
        assert found.unused == [3]
        assert files(ledger) == (data, upcoming)
    found.claim(TENTH, [3])
    assert reservation.unused == []


def test_a_charge_that_was_cut_short_is_charged_once(tmp_path: Path) -> None:
    here, there = two(tmp_path)
    spend(there, 2)
    here.charge(there, "there")
    data, upcoming = files(here)
    for length in range(len(data) - len(upcoming), len(data) + 1, 7):
        put(here, data[:length], upcoming)
        Ledger(here.path).charge(there, "there")
        assert files(here) == (data, upcoming)


def test_cut_anywhere_before_it_is_refused(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    reservation = ledger.reserve(TENTH, 3, run="r")
    reservation.claim(TENTH, [0])
    spend(ledger)
    data, upcoming = files(ledger)
    for length in range(len(data) - len(upcoming)):
        put(ledger, data[:length], upcoming)
        with pytest.raises(PrivacyError, match="edited or cut short"):
            Ledger(ledger.path).spent()
        for ask in (
            lambda: ledger.reserve(TENTH, 3, run="r"),
            lambda: ledger.reserve(TENTH, run="new"),
            lambda: reservation.claim(TENTH, [1]),
            lambda: reservation.settle(),
        ):
            with pytest.raises(PrivacyError, match="edited or cut short"):
                ask()
        assert files(ledger) == (data[:length], upcoming), "nothing is made worse"


def test_a_crash_at_the_first_line(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    data, upcoming = files(ledger)
    for length in range(len(data)):
        put(ledger, data[:length], upcoming)
        assert begin(tmp_path).spent() == 0
    put(ledger, b"", None)
    assert begin(tmp_path).spent() == 0


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_found(tmp_path: Path, data: st.DataObject) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    other = Ledger(tmp_path / "other" / "ledger.jsonl")
    for stale in (ledger.path, ledger._next, other.path, other._next):
        stale.unlink(missing_ok=True)
    ledger, other = begin(tmp_path), begin(tmp_path / "other")
    spend(other)
    ledger.charge(other, "other")
    reservation = ledger.reserve(TENTH, 2)
    reservation.claim(TENTH, [1])
    reservation.settle(texts=3)
    whole, upcoming = files(ledger)
    spent = ledger.spent()
    where = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[where]))
    put(ledger, whole[:where] + bytes([byte]) + whole[where + 1 :], upcoming)
    with pytest.raises(PrivacyError):
        ledger.spent()
    put(ledger, whole, upcoming)
    assert ledger.spent() == spent


def test_lines_left_out_swapped_or_repeated(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    spend(ledger, 3)
    data, upcoming = files(ledger)
    lines = data.splitlines(keepends=True)
    for wrong in (
        [lines[0], *lines[2:]],
        [lines[0], lines[2], lines[1], lines[3]],
        [*lines, lines[3]],
        lines[1:],
        [*lines[:2]],
    ):
        put(ledger, b"".join(wrong), upcoming)
        with pytest.raises(PrivacyError):
            ledger.spent()
    put(ledger, data, None)
    with pytest.raises(PrivacyError):
        ledger.spent()


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "reserve", "event": {"event": "no_op"}},
        {"kind": "reserve", "event": {"event": "no_op"}, "purpose": {}},
        {"kind": "reserve", "event": {"event": "no_op"}, "purpose": {}, "parts": 0},
        {"kind": "reserve", "event": {"event": "no_op"}, "purpose": {}, "parts": True},
        {"kind": "use", "reservation": 1},
        {"kind": "use", "reservation": 7, "parts": [0]},
        {"kind": "use", "reservation": 0, "parts": [0]},
        {"kind": "use", "reservation": 1, "parts": [1]},
        {"kind": "use", "reservation": 1, "parts": [0, 0]},
        {"kind": "use", "reservation": 1, "parts": ["0"]},
        {"kind": "use", "reservation": 1, "parts": 0},
        {"kind": "charge", "ledger": "x", "events": []},
        {"kind": "charge", "ledger": "x", "through": 0, "events": []},
        {"kind": "charge", "ledger": "x", "through": "1", "events": []},
        {"kind": "charge", "ledger": "x", "through": 1, "events": [1]},
        {"kind": "charge", "ledger": ["x"], "through": 1, "events": []},
        {"kind": "refund", "purpose": {}},
        {"kind": "terms", **TERMS.__dict__},
        {"kind": "settle", "reservation": 7, "outcome": {}},
        {"kind": "settle", "reservation": [1], "outcome": {}},
        {"kind": "internal", "purpose": {}, "event": {}},
        {},
    ],
)
def test_a_line_that_follows_but_means_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    ledger = begin(tmp_path)
    spend(ledger)
    entry = {"n": 2, "previous": ledger.head, **fields}
    line = json.dumps(entry).encode() + b"\n"
    put(ledger, ledger.path.read_bytes() + line, line)
    with pytest.raises(PrivacyError):
        ledger.spent()


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "reserve", "event": {"event": "x"}, "purpose": {}, "parts": 1},
        {"kind": "charge", "ledger": "x", "through": 1, "events": [{"event": "x"}]},
    ],
)
def test_an_event_that_is_not_understood_uses_up_everything(tmp_path: Path, fields: dict[str, Any]) -> None:
    ledger = begin(tmp_path)
    line = json.dumps({"n": 1, "previous": ledger.head, **fields})
    put(ledger, ledger.path.read_bytes() + line.encode() + b"\n", line.encode() + b"\n")
    assert ledger.spent() == math.inf
    assert ledger.left() == 0
    with pytest.raises(BudgetError):
        ledger.reserve(dp.NoOpDpEvent(), run="new")


def test_a_disk_that_fills_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = begin(tmp_path)
    real = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) > 40:
            return real(file, data[:40])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", half)
        with pytest.raises(UserError, match="disk is full"):
            spend(ledger)
    spent = ledger.spent()
    assert spent == accounting.epsilon([TENTH], 1e-6), "begun and cut short: spent"
    spend(ledger)
    assert ledger.spent() > spent


# ---- several processes, and death -----------------------------------------------------------------------------------


def together(*workers: Any) -> None:
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def drain(queue: Any) -> list[Any]:
    found = []
    while not queue.empty():
        found.append(queue.get())
    return found


def _spender(path: Path, name: int, times: int, granted: Any) -> None:
    ledger = Ledger(path)
    for i in range(times):
        try:
            ledger.reserve(TENTH, worker=name, i=i)
        except BudgetError:
            return
        granted.put(1)


def test_two_at_once_never_pass_the_budget(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    context = multiprocessing.get_context("fork")
    granted = context.SimpleQueue()
    together(*(context.Process(target=ending(_spender), args=(ledger.path, name, 8, granted)) for name in range(2)))
    assert len(drain(granted)) == 10
    assert len(ledger.entries()) == 11
    assert ledger.spent() <= TERMS.budget * (1 + 1e-9)


def _claimer(path: Path, order: int, claimed: Any) -> None:
    for i in range(4):
        reservation = Ledger(path).reserve(TENTH, 5, i=i)
        for part in range(5)[::order]:
            with contextlib.suppress(PrivacyError):
                reservation.claim(TENTH, [part])
                claimed.put((i, part))


def test_two_at_once_on_the_same_purposes_share_them(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    context = multiprocessing.get_context("fork")
    claimed = context.SimpleQueue()
    together(*(context.Process(target=ending(_claimer), args=(ledger.path, order, claimed)) for order in (1, -1)))
    assert sorted(drain(claimed)) == [(i, part) for i in range(4) for part in range(5)]
    assert ledger.spent() == accounting.epsilon([TENTH] * 4, 1e-6)


SMALL = dp.ZCDpEvent(1e-6)
KILLED = """
import itertools
import sys
from pathlib import Path
import dp_accounting as dp
from tutelage.privacy.ledger import Ledger
ledger, event = Ledger(Path(sys.argv[1])), dp.ZCDpEvent(1e-6)
print("ready", flush=True)
for i in itertools.count(int(sys.argv[2])):
    reservation = ledger.reserve(event, run="killed", i=i)
    if not reservation.unused:
        continue
    reservation.claim(event)
    print(i, flush=True)      # stands for the first private token
    reservation.settle(texts=1)
"""


def kill_at_random(tmp_path: Path, kills: int) -> None:
    ledger = begin(tmp_path)
    seen: list[int] = []
    draw = random.Random(0)
    for _ in range(kills):
        # Going through all that was done before would take the time: the last five must be found again.
        start = max(0, sum(entry.kind == "reserve" for entry in ledger.entries()) - 5)
        arguments = [sys.executable, "-c", KILLED, str(ledger.path), str(start)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(draw.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            # a last number without its line feed was cut off by the pipe's end
            seen += [int(line) for line in process.stdout.read().split(b"\n")[:-1] if line]
    entries = ledger.entries()
    number_of = {entry.fields["purpose"]["i"]: entry.number for entry in entries if entry.kind == "reserve"}
    used = uses(ledger)
    assert sorted(number_of) == list(range(len(number_of))), "one reservation for each purpose, none left out"
    assert {number_of[i] for i in seen} <= {number for number, _ in used}, "nothing private was read unclaimed"
    assert len(set(seen)) == len(seen), "nothing was read twice"
    assert len(set(used)) == len(used), "no part was claimed twice"
    assert len(seen) >= len(used) - kills, "a kill loses what was being read and no more"
    assert len(used) >= len(number_of) - 1, "what was reserved is used by who comes next"
    assert ledger.spent() == accounting.epsilon([SMALL] * len(number_of), TERMS.delta) <= TERMS.budget
    for i, number in number_of.items():
        found = ledger.reserve(SMALL, run="killed", i=i)
        assert found.number == number
        assert found.unused == [] or i == max(number_of)
    assert len(seen) >= kills // 4, "it did get somewhere"
    spend(ledger)


def test_killed_a_few_times_nothing_is_lost(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # each starts a process of its own
def test_killed_two_hundred_times_nothing_is_lost(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 200)
