"""Several teachers behind a route: who writes what, what is learnt, and what is left where the budget ends."""

from __future__ import annotations

import itertools
import random
import traceback
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.configs.schema import (
    CascadeRoute,
    ClassificationTask,
    GenerationTask,
    LabelRoute,
    SkillRoute,
    TeacherConfig,
)
from tutelage.teachers import thresholds
from tutelage.teachers.answers import Request
from tutelage.teachers.cascade import Routed, dealt
from tutelage.teachers.engines.base import Generation, Sampling
from tutelage.teachers.prompts import ANSWER, parse_example
from tutelage.teachers.scoring import PublicModel, score
from tutelage.teachers.spending import Purse
from tutelage.teachers.staff import Staff

MAIL = ClassificationTask(
    description="Decide whether an e-mail is spam or ham.",
    labels={"spam": "unsolicited bulk mail that sells something", "ham": "a wanted, personal e-mail"},
    text_noun="e-mail",
)
TEACHERS = tuple(
    TeacherConfig(name=name, model="m", prompt_price=0, draft_price=price)
    for name, price in (("small", 1), ("middle", 4), ("large", 20))
)
SAMPLING = Sampling(10, 1.0, 1.0, 0, "\n###")


class Writer:
    """A teacher of a known quality: every draft says who wrote it and how good it is; 10 tokens each."""

    def __init__(self, name: str, quality: Callable[[str, random.Random], float], log: list[str]) -> None:
        self.name, self.quality, self.log = name, quality, log

    def generate(
        self, prompts: Sequence[str], n: int, sampling: Sampling, seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:  # fmt: skip
        draw = random.Random(seed)
        self.log += [self.name] * (n * len(prompts))
        return [
            [Generation(f"{self.name} {self.quality(one, draw):.3f}", True, 0, 10) for _ in range(n)] for one in prompts
        ]

    def most_read(self, prompt: str, n: int) -> int:
        return 0

    def chat(self, system: str, user: str) -> str:
        return user

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


def as_written(drafts: Sequence[tuple[str, str]]) -> list[float]:
    return [float(text.split()[1]) for text, _ in drafts]


QUALITY: dict[str, Callable[[str, random.Random], float]] = {
    "small": lambda prompt, draw: draw.choice([0.1, 0.9]),
    "middle": lambda prompt, draw: draw.choice([0.3, 0.9]),
    "large": lambda prompt, draw: 0.8,
}


ASK = GenerationTask(description="Ask and answer.", completion={"regex": "0\\.[0-9]"})


class Answerer(Writer):
    """One that writes a question, and an answer where it is asked for one alone."""

    def generate(
        self, prompts: Sequence[str], n: int, sampling: Sampling, seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:  # fmt: skip
        rows = super().generate(prompts, n, sampling, seed, on_progress)
        if sampling.structure:
            assert all(one.endswith(f"{ANSWER} ") for one in prompts)
            assert sampling.structure == ASK.completion
        text = "{answer}" if sampling.structure else "question of {name}"
        return [
            [Generation(text.format(answer=one.text.split()[1][:3], name=self.name), True, 5, 10) for one in row]
            for row in rows
        ]

    def most_read(self, prompt: str, n: int) -> int:
        return 5 * n


class Ask:
    """A routed teacher on a journal of its own."""

    def __init__(self, folder: Path, route: Any, limit: float | None = None, drafts: int = 120, **changes: Any) -> None:
        self.log: list[str] = []
        teachers = changes.get("teachers", TEACHERS)
        quality = changes.get("quality", QUALITY)
        share = None if limit is None else Fraction(str(limit))
        purse = Purse(folder / "vault" / "spending.jsonl", teachers, share)
        writer, self.task = changes.get("writer", Writer), changes.get("task", MAIL)
        staff = Staff(teachers, lambda one: writer(one.name, quality[one.name], self.log), purse, 8)
        self.routed = Routed(staff, route, self.task, changes.get("scorer", as_written), drafts)

    def write(self, requests: int = 30, n: int = 4, seed: int = 1) -> list[list[Generation]]:
        labels = ("spam", "ham") if self.task is MAIL else (None, None)
        asked = [Request(labels[i % 2], f"prompt {i}") for i in range(requests)]
        return self.routed.write(asked, n, SAMPLING, seed)


CASCADE = CascadeRoute(by="cascade", budget=1, calibration_prompts=6)


def writers(rows: Sequence[Sequence[Generation]]) -> list[str]:
    return [one.text.split()[0] for row in rows for one in row]


# ---- thresholds -----------------------------------------------------------------------------------------------------

TABLES = st.integers(2, 3).flatmap(
    lambda k: st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=k, max_size=k), max_size=6).map(
        lambda rows: np.array(rows, dtype=float).reshape(-1, k).T
    )
)


@given(TABLES, st.floats(0, 40))
def test_no_choice_of_who_stands_by_thresholds_is_better_within_the_budget(scores: np.ndarray, budget: float) -> None:
    """Against a plain search over every threshold between and beyond the scores there are."""
    costs = (1.0, 4.0, 20.0)[: len(scores)]
    grid = (0.0, 0.125, 0.3, 0.6, 0.8, 1.0, 1.2)
    chosen = thresholds.learn(scores, costs, budget)
    if not scores.shape[1]:
        assert chosen == (0.0,) * (len(scores) - 1)
        return

    def outcome(taus: Sequence[float]) -> tuple[float, float]:
        total = cost = 0.0
        for column in scores.T:
            at = next((k for k, tau in enumerate(taus) if column[k] >= tau), len(column) - 1)
            total, cost = total + column[at], cost + sum(costs[: at + 1])
        return total / scores.shape[1], cost / scores.shape[1]

    allowed = [outcome(taus) for taus in itertools.product(grid, repeat=len(scores) - 1)]
    allowed = [one for one in allowed if one[1] <= budget]
    mean, cost = outcome(chosen)
    if allowed:
        assert cost <= budget
        assert mean == pytest.approx(max(one for one, _ in allowed))
        assert cost <= min(spent for one, spent in allowed if one == pytest.approx(mean)) + 1e-9
    else:
        assert chosen == (0.0,) * (len(scores) - 1)


def test_many_scores_are_thinned_out_and_the_ends_stay() -> None:
    draw = np.random.default_rng(0)
    scores = np.stack([draw.random(500), np.ones(500)])
    assert thresholds.learn(scores, (1.0, 2.0), 1.0) == (0.0,)
    [found] = thresholds.learn(scores, (1.0, 2.0), 2.0)
    assert 1 < 1 + (scores[0] < found).mean() <= 2
    assert thresholds.learn(scores, (1.0, 2.0), 100.0) == (thresholds.NONE,)


def test_held_out_scores_do_not_come_from_thresholds_of_their_own_half() -> None:
    """Pure noise: in sample a threshold looks better than the dearest, held out it doesn't."""
    draw, gains = np.random.default_rng(1), []
    inside = []
    for _ in range(200):
        scores = draw.random((2, 8))
        groups = list(range(8))
        at = thresholds.stands(scores, thresholds.learn(scores, (1.0, 1.0), 10.0))
        inside.append(scores[at, np.arange(8)].mean() - scores[1].mean())
        gains.append(thresholds.held_out(scores, groups, (1.0, 1.0), 10.0).mean() - scores[1].mean())
    assert np.mean(inside) > 0.1
    assert np.mean(gains) < np.mean(inside) - 0.03


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=12), st.integers(2, 6))
def test_calibration_takes_labels_in_turn(labels: list[str | None], count: int) -> None:
    chosen = dealt(labels, count)
    assert len(chosen) == min(count, len(labels)) == len(set(chosen))
    counts = [sum(labels[i] == label for i in chosen) for label in set(labels)]
    there = [labels.count(label) for label in set(labels)]
    for a, of in zip(counts, there, strict=True):
        assert a == of or a >= max(counts) - 1


# ---- a cascade ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [MAIL, ASK], ids=["labels", "completions"])
def test_a_teacher_that_breaks_gives_an_error_without_text(task: Any, tmp_path: Path) -> None:
    class Breaks(Answerer):
        def generate(self, prompts: Sequence[str], n: int, sampling: Sampling, *others: Any) -> Any:
            if task is ASK and not sampling.structure:
                return super().generate(prompts, n, sampling, *others)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError) as caught:
        Ask(tmp_path, CASCADE, 1.0, task=task, writer=Breaks).write()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [frame for frame in shown.stack if "teachers" in Path(frame.filename).parts]
    assert len(frames) > 3
    assert not [frame.name for frame in frames if "prompt 1" in str(frame.locals)]


@pytest.mark.parametrize("limit", [0.0005, 0.001, 0.003, 0.004, 0.008])
def test_what_the_budgets_end_left_is_there_again_when_a_stage_is_resumed(limit: float, tmp_path: Path) -> None:
    """Also the call that it covered a part of, for which it has nothing left by then."""
    ask = Ask(tmp_path, CASCADE, limit)
    rows = ask.write()
    ask.routed.close()
    again = Ask(tmp_path, CASCADE, limit)
    assert again.write() == rows
    assert [one for one in again.log if not one.endswith("closed")] == []
    again.routed.close()


@pytest.mark.parametrize("limit", [0.001, 0.003, 0.008, 0.02, 1.0])
def test_completions_are_asked_for_in_a_step_of_their_own_and_paid_for(limit: float, tmp_path: Path) -> None:
    def own(drafts: Sequence[tuple[str, str]]) -> list[float]:
        return [float(answer) for _, answer in drafts]

    asked: dict[str, Any] = {"task": ASK, "writer": Answerer, "scorer": own}
    ask = Ask(tmp_path, CASCADE, limit, **asked)
    rows = ask.write()
    found = ask.routed.spending("north")
    ask.routed.close()
    assert 0 < found.cost <= limit
    answers = [parse_example(ASK, None, one.text, one.finished) for row in rows for one in row]
    assert answers.count(None) <= 8, "no more than a call's texts lack what the budget no longer covered"
    if limit == 1:
        assert None not in answers
        later = [parse_example(ASK, None, one.text, True) for row in rows[6:] for one in row]
        assert min(float(one[1]) for one in later if one) >= 0.8, "what is weak is written again, question and all"
    again = Ask(tmp_path, CASCADE, limit, **asked)
    assert again.write() == rows
    assert [one for one in again.log if not one.endswith("closed")] == [], "all of it was paid for"
    again.routed.close()


def test_a_rich_cascade_has_the_best_mean_and_asks_the_dear_only_for_what_is_weak(tmp_path: Path) -> None:
    ask = Ask(tmp_path, CASCADE)
    rows = ask.write()
    found = ask.routed.spending("north")
    assert all(len(row) == 4 for row in rows[6:])
    assert all(len(row) == 12 for row in rows[:6]), "calibration drafts are kept"
    assert found.calibration_drafts == 24
    assert 0.1 < found.thresholds[0] <= 0.9
    scores = [float(one.text.split()[1]) for row in rows[6:] for one in row]
    assert min(scores) >= 0.8, "nothing weak stands while a better teacher is covered"
    assert [one.drafts for one in found.teachers] == [writers(rows[6:]).count(one.name) for one in TEACHERS]
    assert found.score is not None
    assert found.score_dearest is not None
    assert found.score_gain is not None
    assert found.score_dearest.value == pytest.approx(0.8)
    assert found.score_gain.value == pytest.approx(found.score.value - 0.8)
    assert found.score.n == 24
    assert found.unwritten == 0
    assert found.cost_dearest == pytest.approx(20 * 10 / 1e6)
    assert found.cost_expected is not None
    assert found.cost_expected < found.cost_dearest
    closed = [one for one in ask.log if one.endswith("closed")]
    assert len(closed) == len([a for a, b in itertools.pairwise(["", *written(ask.log)]) if a and a != b])


def written(log: Sequence[str]) -> list[str]:
    return [one for one in log if not one.endswith("closed")]


@pytest.mark.parametrize("limit", [0.0001, 0.0012, 0.0059, 0.0065, 0.0075, 0.0095, 0.02])
def test_a_tight_budget_is_kept_and_gives_what_it_can(tmp_path: Path, limit: float) -> None:
    """Every teacher's 24 calibration drafts cost 0.00024, 0.00096 and 0.0048; 96 drafts more of the first 0.00096."""
    ask = Ask(tmp_path, CASCADE, limit)
    rows = ask.write()
    found = ask.routed.spending("north")
    prices = {one.name: one.draft_price for one in TEACHERS}
    assert sum(prices[name] * 10 / 1e6 for name in written(ask.log)) == pytest.approx(found.cost)
    assert found.cost <= limit
    assert found.unwritten == sum(max(0, 4 - len(row)) for row in rows)
    if limit >= 0.0075:
        assert found.unwritten == 0, "the cheap teacher's drafts stand where the dear one is not covered"
    if limit <= 0.0012:
        assert found.thresholds == (0.0, 0.0), "nothing was learnt, so the first teacher's drafts stand"
    assert found.lost == 0


def test_expected_cost_keeps_the_budget_for_all_drafts(tmp_path: Path) -> None:
    """Were thresholds blind to the budget, the first prompts would get the dear teacher and the last ones none."""
    ask = Ask(tmp_path, CASCADE, 0.0094)
    rows = ask.write()
    late = writers(rows[18:])
    assert late.count("middle") + late.count("large") > 0
    assert ask.routed.spending("north").unwritten == 0


def test_killed_and_resumed_it_decides_as_before_and_pays_for_the_rest(tmp_path: Path) -> None:
    whole = Ask(tmp_path / "whole", CASCADE, 0.02)
    rows = whole.write()
    cost = whole.routed.spending("north").cost
    whole.routed.close()
    lines = (tmp_path / "whole/vault/spending.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 7, len(lines) // 2, len(lines) - 1):
        path = tmp_path / f"killed-{kept}/vault/spending.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(lines[:kept]))
        again = Ask(tmp_path / f"killed-{kept}", CASCADE, 0.02)
        assert again.write() == rows
        found = again.routed.spending("north")
        assert found.cost == pytest.approx(cost + found.lost)
        assert (found.lost > 0) == (b"reserve" in lines[kept - 1])
        assert len(written(again.log)) < len(written(whole.log)) or kept == 1
        again.routed.close()


def test_advice_is_by_the_dearest_that_is_covered(tmp_path: Path) -> None:
    for limit, name in ((None, "large"), (0.0003, "middle"), (0.00005, "small"), (0.000001, None)):
        ask = Ask(tmp_path / str(name), CASCADE, limit)
        texts = ask.routed.advise("be brief", "why", 4, SAMPLING, 3)
        assert {one.text.split()[0] for one in texts} == ({name} if name else set())


# ---- mixtures -------------------------------------------------------------------------------------------------------


def test_labels_go_to_the_teachers_that_the_recipe_names(tmp_path: Path) -> None:
    ask = Ask(tmp_path, LabelRoute(by="label", teachers={"spam": "small", "ham": "large"}))
    rows = ask.write()
    assert set(writers(rows[::2])) == {"small"}
    assert set(writers(rows[1::2])) == {"large"}
    found = ask.routed.spending("north")
    assert [one.labels for one in found.teachers] == [("spam",), (), ("ham",)]
    assert found.score is None
    assert found.calibration_drafts == 0


def test_labels_go_to_the_teacher_whose_drafts_of_them_score_best(tmp_path: Path) -> None:
    quality = {
        "small": lambda prompt, draw: 0.9 if int(prompt.split()[1]) % 2 else 0.2,
        "middle": lambda prompt, draw: 0.6,
        "large": lambda prompt, draw: 0.1,
    }
    ask = Ask(tmp_path, SkillRoute(by="skill", calibration_prompts=4), quality=quality)
    rows = ask.write()
    assert all(len(row) == 12 for row in rows[:4])
    assert set(writers(rows[4::2])) == {"middle"}
    assert set(writers(rows[5::2])) == {"small"}
    found = ask.routed.spending("north")
    assert [one.labels for one in found.teachers] == [("ham",), ("spam",), ()]
    assert [one.score.value for one in found.teachers if one.score] == pytest.approx([0.55, 0.6, 0.1])


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_scores_nothing() -> None:
    texts = [Generation("small 0.7", True), Generation("### ham", True), Generation("", True), Generation("a 7", True)]
    assert score(as_written, MAIL, ["spam"] * 4, texts) == [0.7, 0.0, 0.0, 1.0]


def test_a_public_model_tells_spam_from_ham_better_than_chance(smollm: Path) -> None:
    from tutelage.configs.models import load_model

    scorer = PublicModel(lambda: load_model(smollm), MAIL)
    spam = ["Buy cheap pills now, free shipping, limited offer! Click here to order and save 80%.",
            "You have won a prize of $1,000,000. Send us your bank details to claim the money today."]  # fmt: skip
    ham = ["Hi Anna, shall we meet for lunch on Friday? I'll bring the notes from the meeting.",
           "Thanks for the patch. It applies cleanly here, but one of the tests still fails for me."]  # fmt: skip
    for own, texts, other in (("spam", spam, "ham"), ("ham", ham, "spam")):
        right, wrong = (scorer([(text, label) for text in texts]) for label in (own, other))
        assert [a + b for a, b in zip(right, wrong, strict=True)] == pytest.approx([1.0, 1.0])
    assert sum(scorer([(text, "spam") for text in spam])) > sum(scorer([(text, "spam") for text in ham])) + 0.2
    alone = [scorer([(text, "spam")])[0] for text in spam]
    together = scorer([(text, "spam") for text in [*ham, *spam]])
    assert together[2:] == pytest.approx(alone, abs=1e-3), "padding is no text"


def test_a_public_model_scores_answers_by_how_likely_they_are(smollm: Path) -> None:
    from tutelage.configs.models import load_model

    scorer = PublicModel(lambda: load_model(smollm), GenerationTask(description="Answer the question."))
    right, wrong = scorer([("What is the capital of France?", one) for one in ("Paris.", "Purple elephant seventeen.")])
    assert 0 < wrong < right <= 1
