"""The ledger damaged, cut short, shared between processes and killed: no spend is lost."""

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
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
from forked import ending
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_ledger import TENTH, TERMS, begin, files, put, spend, two, uses

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.privacy import accounting
from tutelage.privacy import ledger as module
from tutelage.privacy.ledger import BudgetError, Ledger

# ---- damage ---------------------------------------------------------------------------------------------------------


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
