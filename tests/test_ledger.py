"""The ledger: what is granted, to whom, and that a budget is never passed."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_ledger import TENTH, TERMS, begin, files, kinds, put, spend, two, uses

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.privacy import accounting
from tutelage.privacy.ledger import BudgetError, Ledger, Reservation, Terms

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
