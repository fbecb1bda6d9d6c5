"""The budget of several teachers: never exceeded, whatever is asked, answered, torn or killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from forked import ending
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import make_tiny_model

from tutelage.configs.errors import HeldError, PrivacyError, UserError
from tutelage.configs.schema import TeacherConfig
from tutelage.teachers.answers import Request
from tutelage.teachers.engines.base import Engine, Generation, Sampling
from tutelage.teachers.engines.transformers import TransformersEngine
from tutelage.teachers.spending import Purse, Tokens
from tutelage.teachers.staff import Staff

CHEAP = TeacherConfig(name="cheap", model="m", prompt_price=1, draft_price=2)
DEAR = TeacherConfig(name="dear", model="m", prompt_price=3.3, draft_price=10.1)
TEACHERS = (CHEAP, DEAR)
SAMPLING = Sampling(8, 1.0, 1.0, 0, "\n###")


def texts(*drawn: int, read: int = 3) -> list[list[Generation]]:
    return [[Generation(f"text {i} \ud83d", True, read, one)] for i, one in enumerate(drawn)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vault" / "spending.jsonl"


# ---- one purse ------------------------------------------------------------------------------------------------------


def test_what_is_reserved_is_spent_until_it_is_settled(path: Path) -> None:
    purse = Purse(path, TEACHERS, Fraction(1, 10))
    number = purse.reserve("a", "dear", Tokens(10, 100))
    assert purse.spent == Fraction("0.001043")
    purse.settle(number, texts(40))
    assert purse.spent == DEAR.cost(3, 40) == Fraction("0.0004139")
    assert purse.used("dear") == (Tokens(3, 40), purse.spent)
    assert purse.used("cheap") == (Tokens(), 0)
    assert purse.lost == 0
    purse.close()


def test_an_open_call_of_a_process_that_ended_is_lost_in_full(path: Path) -> None:
    purse = Purse(path, TEACHERS, Fraction(1))
    purse.settle(purse.reserve("a", "cheap", Tokens(5, 50)), texts(10))
    purse.reserve("b", "dear", Tokens(5, 50))
    before = purse.spent
    purse.close()
    again = Purse(path, TEACHERS, Fraction(1))
    assert again.spent == before
    assert again.lost == DEAR.cost(5, 50)
    paid = again.paid_before("a")
    assert paid == texts(10)
    assert [(one.read, one.drawn) for row in paid or [] for one in row] == [(3, 10)]
    assert again.paid_before("b") is None
    again.close()


def test_the_last_call_fits_exactly_and_the_next_not_at_all(path: Path) -> None:
    purse = Purse(path, TEACHERS, DEAR.cost(7, 9))
    assert purse.covers("dear", Tokens(7, 9))
    assert not purse.covers("dear", Tokens(7, 10))
    purse.reserve("a", "dear", Tokens(7, 9))
    assert purse.covers("cheap", Tokens(0, 0))
    assert not purse.covers("cheap", Tokens(1, 0))
    with pytest.raises(UserError, match="does not cover"):
        purse.reserve("b", "cheap", Tokens(1, 0))
    purse.close()


def test_what_an_engine_does_not_know_is_taken_at_its_worst(path: Path) -> None:
    purse = Purse(path, TEACHERS, Fraction(1))
    number = purse.reserve("a", "dear", Tokens(10, 100))
    purse.settle(number, [[Generation("so", True, 3, None)]])
    assert purse.spent == DEAR.cost(10, 100)
    purse.close()


def test_an_engine_that_takes_more_than_its_worst_stops_the_run_and_is_counted(path: Path) -> None:
    purse = Purse(path, TEACHERS, Fraction(1))
    number = purse.reserve("a", "dear", Tokens(3, 100))
    with pytest.raises(UserError, match="more tokens than its tokenizer counts"):
        purse.settle(number, texts(100, read=4))
    assert purse.spent == DEAR.cost(4, 100)
    purse.close()


def test_a_journal_is_one_processs_and_lies_in_a_vault(path: Path, tmp_path: Path) -> None:
    purse = Purse(path, TEACHERS, None)
    with pytest.raises(HeldError):
        Purse(path, TEACHERS, None)
    purse.close()
    Purse(path, TEACHERS, None).close()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PrivacyError):
        Purse(tmp_path / "spending.jsonl", TEACHERS, None)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"read": 1}', '{"reserve":"a","teacher":"gone","read":1,"drawn":1}', '{"settle":5,"read":1}']
)
def test_a_damaged_journal_is_refused_without_a_quote(path: Path, line: str) -> None:
    path.parent.mkdir()
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match="what was spent is not known") as caught:
        Purse(path, TEACHERS, Fraction(1))
    assert line not in str(caught.value)


@given(st.data())
@settings(max_examples=60)
def test_spent_is_what_a_plain_sum_says_and_a_cut_anywhere_forgets_nothing_that_was_begun(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A journal cut at any byte counts at least what the calls whose reservation it holds have really taken."""
    path = tmp_path_factory.mktemp("purse") / "vault" / "spending.jsonl"
    limit = Fraction(data.draw(st.integers(1, 3000)), 1_000_000)
    purse = Purse(path, TEACHERS, limit)
    took: list[tuple[int, Fraction]] = []  # bytes of the journal when a call was made, and what it really took
    for i in range(data.draw(st.integers(0, 8))):
        teacher = data.draw(st.sampled_from(TEACHERS))
        worst = Tokens(data.draw(st.integers(0, 40)), data.draw(st.integers(0, 80)))
        if not purse.covers(teacher.name, worst):
            continue
        number = purse.reserve(f"call {i}", teacher.name, worst)
        real = Tokens(data.draw(st.integers(0, worst.read)), data.draw(st.integers(0, worst.drawn)))
        took.append((path.stat().st_size, teacher.cost(real.read, real.drawn)))
        if data.draw(st.booleans()):
            purse.settle(number, texts(real.drawn, read=real.read))
        assert sum(cost for _, cost in took) <= purse.spent <= limit
    purse.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    again = Purse(path, TEACHERS, limit)
    assert sum(cost for size, cost in took if size <= cut) <= again.spent <= limit
    again.close()


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**9), st.integers(0, 10**9))
def test_costs_are_exact(prompt: float, draft: float, read: int, drawn: int) -> None:
    teacher = TeacherConfig(name="t", model="m", prompt_price=prompt, draft_price=draft)
    assert teacher.cost(read, drawn) == teacher.cost(read, 0) + teacher.cost(0, drawn)
    assert float(teacher.cost(read, drawn)) == pytest.approx((prompt * read + draft * drawn) / 1e6)


# ---- calls ----------------------------------------------------------------------------------------------------------


class Metered:
    """A real engine, and beside it a meter of its own: what a call may take before it, what it took after it."""

    def __init__(self, engine: Engine, config: TeacherConfig, meter: Path) -> None:
        self.engine, self.config, self.meter = engine, config, meter

    def generate(
        self, prompts: Sequence[str], n: int, sampling: Sampling, seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:  # fmt: skip
        worst = sum(self.engine.most_read(one, n) for one in prompts), len(prompts) * n * sampling.max_new_tokens
        with self.meter.open("a") as stream:
            stream.write(json.dumps(["begun", str(self.config.cost(*worst))]) + "\n")
        written = self.engine.generate(prompts, n, sampling, seed, on_progress)
        tokenizer = self.engine.tokenizer  # type: ignore[attr-defined]
        read = sum(len(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in prompts)
        drawn = sum(one.drawn or 0 for row in written for one in row)
        with self.meter.open("a") as stream:
            stream.write(json.dumps(["took", str(self.config.cost(read, drawn))]) + "\n")
        return written

    def most_read(self, prompt: str, n: int) -> int:
        return self.engine.most_read(prompt, n)

    def chat(self, system: str, user: str) -> str:
        return self.engine.chat(system, user)

    def close(self) -> None: ...


def spent_by_the_meter(meter: Path) -> Fraction:
    """What all calls have taken at most: those that were killed at their worst."""
    total, begun = Fraction(0), Fraction(0)
    for line in meter.read_text().splitlines() if meter.exists() else []:
        what, cost = json.loads(line)
        total += begun if what == "begun" else Fraction(cost)  # two begun in a row: the first was killed
        begun = Fraction(cost) if what == "begun" else Fraction(0)
    return total + begun


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return TransformersEngine(make_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), 16)


WANTED = [(Request(None, f"prompt {i} about the meeting and the report"), 1 + i % 3) for i in range(14)]


def work(engine: Engine, path: Path, limit: Fraction | None) -> tuple[list[Any], Fraction]:
    staff = Staff(
        TEACHERS, lambda one: Metered(engine, one, path.with_suffix(".meter")), Purse(path, TEACHERS, limit), 4
    )
    try:
        return [staff.ask(k, WANTED, SAMPLING, f"7/{k}") for k in range(2)], staff.purse.spent
    finally:
        staff.close()


def work_alone(engine: Engine, path: str, limit: str) -> None:
    import torch

    torch.set_num_threads(1)  # the threads of the process that this was forked from are not here
    work(engine, Path(path), Fraction(limit))


def test_texts_are_those_asked_for_and_a_second_asking_costs_nothing(engine: TransformersEngine, path: Path) -> None:
    first, spent = work(engine, path, None)
    assert [len(row) for row in first[0]] == [n for _, n in WANTED]
    meter = path.with_suffix(".meter")
    assert spent == spent_by_the_meter(meter) > 0
    calls = meter.read_text()
    assert work(engine, path, None) == (first, spent)
    assert meter.read_text() == calls


@pytest.mark.parametrize("part", [0.0, 0.2, 0.55, 0.9])
def test_a_budget_that_covers_a_part_gives_a_part(engine: TransformersEngine, path: Path, part: float) -> None:
    _, cost = work(engine, path.with_name("whole.jsonl"), None)
    limit = Fraction(part).limit_denominator(100) * cost
    rows, spent = work(engine, path, limit)
    assert spent_by_the_meter(path.with_suffix(".meter")) == spent <= limit
    written = sum(row is not None for rows_of in rows for row in rows_of)
    assert written < 2 * len(WANTED)
    assert bool(written) == bool(part)


def test_killed_at_random_times_it_never_takes_more_than_the_budget(engine: TransformersEngine, path: Path) -> None:
    """By a meter of the engine's own that counts a killed call at its worst; and what is left does some of the work."""
    whole, cost = work(engine, path.with_name("whole.jsonl"), None)
    limit, draw = cost * Fraction(6, 5), random.Random(3)
    context, killed = multiprocessing.get_context("fork"), 0
    meter = path.with_suffix(".meter")
    for _ in range(25):
        process = context.Process(target=ending(work_alone), args=(engine, str(path), str(limit)))
        process.start()
        process.join(draw.uniform(0.02, 0.4))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            killed += 1
        process.join()
        assert spent_by_the_meter(meter) <= limit
        if process.exitcode == 0:
            break
    rows, spent = work(engine, path, limit)
    assert killed >= 2
    assert spent_by_the_meter(meter) <= spent <= limit
    done = [row for one in rows for row in one if row is not None]
    assert done, "what was left must have done something"
    assert [a for a, b in zip(rows[0], whole[0], strict=True) if a is not None and a != b] == []
