from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.privacy import accounting
from tutelage.privacy import ledger as module
from tutelage.privacy.ledger import BudgetError, Ledger, Terms

TERMS = Terms(silo="a1b2", unit="record", delta=1e-6, budget=4.0)
TENTH = dp.ZCDpEvent(accounting.max_rho(4.0, 1e-6) / 10)


def begin(folder: Path, terms: Terms = TERMS) -> Ledger:
    return Ledger.begin(folder / "ledger.jsonl", terms)


def spend(ledger: Ledger, times: int = 1, **purpose: Any) -> None:
    for _ in range(times):
        ledger.reserve(TENTH, **({"run": "r"} | purpose))


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
    ledger = begin(tmp_path_factory.mktemp("ledger"), Terms("s", "record", 1e-6, budget))
    granted: list[Any] = []
    for rho in rhos:
        event = dp.SelfComposedDpEvent(dp.ZCDpEvent(rho / 4), 4)
        try:
            ledger.reserve(event)
        except BudgetError:
            assert accounting.epsilon([*granted, event], 1e-6) > budget
        else:
            granted.append(event)
    assert ledger.spent() == accounting.epsilon(granted, 1e-6) <= budget
    assert 0 <= ledger.left() <= budget * (1 + 1e-9)


@pytest.mark.parametrize("event", [dp.NonPrivateDpEvent(), dp.SelfComposedDpEvent(dp.NonPrivateDpEvent(), 2)])
def test_what_is_not_private_never_fits(tmp_path: Path, event: Any) -> None:
    with pytest.raises(BudgetError, match="inf"):
        begin(tmp_path).reserve(event)


def test_what_costs_nothing_always_fits(tmp_path: Path) -> None:
    ledger = begin(tmp_path, Terms("s", "record", 1e-6, 0.0))
    ledger.reserve(dp.NoOpDpEvent())
    ledger.note_internal(what="audit")
    assert ledger.spent() == 0
    with pytest.raises(BudgetError):
        ledger.reserve(TENTH)


def test_settling_gives_nothing_back(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    reservation = ledger.reserve(TENTH, run="r", round=1)
    spent = ledger.spent()
    ledger.settle(reservation, texts=0)
    assert ledger.spent() == spent
    with pytest.raises(PrivacyError, match="no such open reservation"):
        ledger.settle(reservation, texts=0)
    assert [entry.kind for entry in ledger.entries()] == ["terms", "reserve", "settle"]
    assert ledger.entries()[1].fields["purpose"] == {"run": "r", "round": 1}
    assert ledger.entries()[1].event == TENTH


def test_a_reservation_serves_once_and_here(tmp_path: Path) -> None:
    reservation = begin(tmp_path).reserve(TENTH)
    with pytest.raises(PrivacyError, match="does not cover"):
        reservation.use(dp.SelfComposedDpEvent(TENTH, 2))
    reservation.use(TENTH)
    with pytest.raises(PrivacyError, match="once"):
        reservation.use(TENTH)
    with pytest.raises(PrivacyError, match="pickled"):
        pickle.dumps(reservation)


# ---- terms ----------------------------------------------------------------------------------------------------------


def test_terms_are_fixed(tmp_path: Path) -> None:
    spend(begin(tmp_path))
    assert begin(tmp_path).terms == TERMS
    for change in ({"budget": 9.0}, {"delta": 1e-5}, {"unit": "owner"}, {"adjacency": "add-remove"}):
        with pytest.raises(UserError, match=next(iter(change))):
            begin(tmp_path, Terms(**{"silo": "a1b2", "unit": "record", "delta": 1e-6, "budget": 4.0} | change))
    assert len(begin(tmp_path).entries()) == 2


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"delta": 0.0}, "delta"), ({"delta": 1.0}, "delta"), ({"delta": math.nan}, "delta"), ({"budget": -1.0}, "budget"),
     ({"budget": math.nan}, "budget"), ({"budget": math.inf}, "budget")],
)  # fmt: skip
def test_impossible_terms(changes: dict[str, float], key: str) -> None:
    with pytest.raises(UserError) as caught:
        Terms(**{"silo": "s", "unit": "record", "delta": 1e-6, "budget": 4.0} | changes)
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


def test_cut_anywhere_before_it_is_refused(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    spend(ledger, 3)
    data, upcoming = files(ledger)
    for length in range(len(data) - len(upcoming)):
        put(ledger, data[:length], upcoming)
        with pytest.raises(PrivacyError, match="edited or cut short"):
            Ledger(ledger.path).spent()
        with pytest.raises(PrivacyError, match="edited or cut short"):
            spend(ledger)
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
    for stale in (ledger.path, ledger._next):
        stale.unlink(missing_ok=True)
    ledger = begin(tmp_path)
    spend(ledger, 2)
    ledger.settle(ledger.reserve(TENTH), texts=3)
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


def test_an_event_that_is_not_understood_uses_up_everything(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    line = json.dumps({"n": 1, "previous": ledger.head, "kind": "reserve", "event": {"event": "x"}, "purpose": {}})
    put(ledger, ledger.path.read_bytes() + line.encode() + b"\n", line.encode() + b"\n")
    assert ledger.spent() == math.inf
    assert ledger.left() == 0
    with pytest.raises(BudgetError):
        ledger.reserve(dp.NoOpDpEvent())


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


def _spender(path: Path, times: int, granted: Any) -> None:
    ledger = Ledger(path)
    for _ in range(times):
        try:
            ledger.reserve(TENTH)
        except BudgetError:
            return
        granted.put(1)


def test_two_at_once_never_pass_the_budget(tmp_path: Path) -> None:
    ledger = begin(tmp_path)
    context = multiprocessing.get_context("fork")
    granted = context.Queue()
    workers = [context.Process(target=_spender, args=(ledger.path, 8, granted)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    count = 0
    while not granted.empty():
        granted.get()
        count += 1
    assert count == 10
    assert len(ledger.entries()) == 11
    assert ledger.spent() <= TERMS.budget


KILLED = """
import sys
from pathlib import Path
import dp_accounting as dp
from tutelage.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    reservation = ledger.reserve(dp.ZCDpEvent(1e-6), run="killed")
    print(reservation.number, flush=True)      # stands for the first private token
    ledger.settle(reservation, texts=1)
"""


def kill_at_random(tmp_path: Path, kills: int) -> None:
    ledger = begin(tmp_path)
    seen: list[int] = []
    draw = random.Random(0)
    for _ in range(kills):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(ledger.path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(draw.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            # a last number without its line feed was cut off by the pipe's end
            seen += [int(line) for line in process.stdout.read().split(b"\n")[:-1] if line]
    reserved = [entry.number for entry in ledger.entries() if entry.kind == "reserve"]
    assert set(seen) <= set(reserved), "nothing private was read without its reservation"
    assert len(set(seen)) == len(seen), "no reservation served twice"
    assert ledger.spent() == accounting.epsilon([dp.ZCDpEvent(1e-6)] * len(reserved), TERMS.delta)
    spend(ledger)


def test_killed_a_few_times_nothing_is_lost(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # each starts a process of its own
def test_killed_two_hundred_times_nothing_is_lost(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 200)
