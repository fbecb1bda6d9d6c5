"""One set of lessons out of several silos': balanced over the classes whatever the silos sent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lesson_sets import signed, verified

from tutelage.configs.schema import AggregateConfig, ClassificationTask, GenerationTask
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.release import LessonSet
from tutelage.privacy.similarity import embed
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers.aggregate import aggregate, count_votes

LABELS = ("ham", "news", "spam")
MAIL = ClassificationTask(description="Sort mail.", labels=dict.fromkeys(LABELS, "some mail"))
HELP = GenerationTask(description="Answer.")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SiloKey:
    return SiloKey.create(tmp_path_factory.mktemp("run") / "vault" / "key.pem")


def make(key: SiloKey, counts: dict[str, int]) -> LessonSet:
    return signed(key, [(f"{label} {i}", label) for label, n in counts.items() for i in range(n)])


def labels_of(lessons: LessonSet, ids: list[str]) -> Counter[str]:
    return Counter(lesson.completion for lesson in lessons.select(ids))


counts = st.fixed_dictionaries({label: st.integers(0, 12) for label in LABELS})
methods = st.sampled_from(["random", "vote"])


@settings(max_examples=60, deadline=None)
@given(counts=counts, method=methods, wanted=st.integers(2, 8), seed=st.integers(0, 9), data=st.data())
def test_always_the_same_number_per_class(
    key: SiloKey, counts: dict[str, int], method: str, wanted: int, seed: int, data: st.DataObject
) -> None:
    lessons = make(key, counts)
    ids = [lesson.id for lesson in lessons]
    ballots = st.dictionaries(st.sampled_from([*ids, "gone"]), st.integers(1, 50))
    votes = data.draw(st.lists(ballots, max_size=3))
    config = AggregateConfig.model_validate({"method": method, "lessons_per_class": wanted})
    chosen, per_class = aggregate(lessons, votes, task=MAIL, config=config, seed=seed)
    size = min(wanted, *counts.values())
    assert per_class == dict.fromkeys(LABELS, size)
    assert labels_of(lessons, chosen) == (Counter(dict.fromkeys(LABELS, size)) if size else Counter())
    if method == "vote":
        total: Counter[str] = Counter()
        for ballot in votes:
            total.update(ballot)
        for label in LABELS:
            own = [lesson.id for lesson in lessons if lesson.completion == label]
            left = [total[id] for id in own if id not in chosen]
            kept = [total[id] for id in own if id in chosen]
            assert not left or not kept or min(kept) >= max(left)
    assert aggregate(lessons, votes, task=MAIL, config=config, seed=seed) == (chosen, per_class)


def test_a_class_without_lessons_gives_none_at_all(key: SiloKey) -> None:
    lessons = make(key, {"ham": 5, "spam": 5})
    nothing: tuple[list[str], dict[str, int]] = ([], {"ham": 0, "news": 0, "spam": 0})
    assert aggregate(lessons, [], task=MAIL, config=AggregateConfig(), seed=0) == nothing
    assert aggregate(make(key, {}), [], task=MAIL, config=AggregateConfig(), seed=0) == nothing
    assert aggregate(make(key, {}), [], task=HELP, config=AggregateConfig(), seed=0) == ([], {"all": 0})


def test_a_generation_task_is_one_class_and_instructions_are_no_examples(key: SiloKey) -> None:
    answers = signed(key, [(f"question {i}", f"answer {i}") for i in range(9)])
    wordings = signed(key, [("Be kind.", "")], kind="instruction")
    lessons = LessonSet.combine([wordings, answers])
    config = AggregateConfig(method="random", lessons_per_class=20)
    chosen, per_class = aggregate(lessons, [], task=HELP, config=config, seed=0)
    assert per_class == {"all": 9}
    assert sorted(chosen) == sorted(lesson.id for lesson in answers)


def test_lessons_of_an_unknown_class_are_left_out(key: SiloKey) -> None:
    lessons = make(key, {"ham": 2, "news": 2, "spam": 2, "other": 9})
    chosen, per_class = aggregate(lessons, [], task=MAIL, config=AggregateConfig(method="random"), seed=0)
    assert per_class == {"ham": 2, "news": 2, "spam": 2}
    assert labels_of(lessons, chosen)["other"] == 0


def test_the_seed_decides_random_and_ties_and_nothing_else_does(key: SiloKey) -> None:
    lessons = make(key, dict.fromkeys(LABELS, 30))
    mixed = lessons.select(lesson.id for lesson in reversed(lessons.lessons))
    for method in ("random", "vote"):
        config = AggregateConfig.model_validate({"method": method, "lessons_per_class": 5})
        first, second = (aggregate(lessons, [], task=MAIL, config=config, seed=seed)[0] for seed in (1, 2))
        assert set(first) != set(second)
        assert first == aggregate(mixed, [], task=MAIL, config=config, seed=1)[0]
    clear = {lesson.id: i + 1 for i, lesson in enumerate(lessons)}
    config = AggregateConfig(method="vote", lessons_per_class=5)
    chosen = [set(aggregate(lessons, [clear], task=MAIL, config=config, seed=seed)[0]) for seed in (1, 2)]
    assert chosen[0] == chosen[1]
    assert chosen[0] == {lessons.lessons[30 * c + i].id for c in range(3) for i in range(25, 30)}
    ignored = AggregateConfig(method="random", lessons_per_class=5)
    without = aggregate(lessons, [], task=MAIL, config=ignored, seed=1)
    assert aggregate(lessons, [clear], task=MAIL, config=ignored, seed=1) == without


def test_the_silos_votes_add_up(key: SiloKey) -> None:
    lessons = make(key, dict.fromkeys(LABELS, 3))
    a, b, c = (lesson.id for lesson in lessons if lesson.completion == "ham")
    config = AggregateConfig(method="vote", lessons_per_class=2)
    chosen, _ = aggregate(lessons, iter([{a: 3}, {b: 2, c: 1}, {b: 2}]), task=MAIL, config=config, seed=0)
    assert [id for id in chosen if id in (a, b, c)] == [b, a]  # most voted first


def test_lessons_of_several_silos_pass_verification(key: SiloKey, tmp_path: Path) -> None:
    north, south = make(key, dict.fromkeys(LABELS, 2)), signed(key, [("spam 0", "spam")], silo="silo-1")
    lessons = verified(LessonSet.combine([north, south]), key, tmp_path)
    chosen, _ = aggregate(lessons, [], task=MAIL, config=AggregateConfig(), seed=0)
    assert len(lessons.select(chosen)) == 6


# ---- votes ----------------------------------------------------------------------------------------------------------

WRITTEN = [
    ("The football match ended in a draw after extra time.", "news"),
    ("Cheap pills and a free prize, order them online now!", "spam"),
    ("Parliament passes the new budget after a long debate.", "news"),
    ("Lower your mortgage rate today, no credit check needed.", "spam"),
]
RECORDS = [
    PrivateRecord("0", "Our team scored a late goal and won the soccer cup final.", "news"),
    PrivateRecord("1", "Buy discount medicine and pills without prescription!!!", "spam"),
    PrivateRecord("2", "The football coach resigned after losing the match.", "news"),
    PrivateRecord("3", "Refinance your home loan at the lowest mortgage rates.", "spam"),
    PrivateRecord("4", "Buy pills online, order pills cheaply.", "news"),
    PrivateRecord("5", "Lunch at noon?", "ham"),
]


@pytest.fixture(scope="module")
def record_vectors() -> np.ndarray:
    return embed([record.text for record in RECORDS])


def test_each_record_votes_once_for_the_nearest_lesson_of_its_class(key: SiloKey, record_vectors: np.ndarray) -> None:
    lessons = LessonSet.combine(
        [signed(key, WRITTEN), signed(key, [("Discount pills and medicine.", "")], kind="instruction")]
    )
    football, pills, parliament, mortgage = (lesson.id for lesson in lessons if lesson.kind == "example")
    votes = count_votes(RECORDS, record_vectors, lessons, MAIL)
    assert votes.get(football, 0) >= 2
    assert votes[pills] == 1  # record 4 speaks of pills too, but is of another class
    assert votes[mortgage] == 1
    assert votes.get(football, 0) + votes.get(parliament, 0) == 3
    assert sum(votes.values()) == 5  # nobody wrote a ham lesson, so one record has nothing to vote for
    one_by_one: Counter[str] = Counter()
    for i in range(len(RECORDS)):
        one_by_one.update(count_votes(RECORDS[i : i + 1], record_vectors[i : i + 1], lessons, MAIL))
    assert votes == one_by_one


def test_in_a_generation_task_every_record_votes(key: SiloKey, record_vectors: np.ndarray) -> None:
    lessons = signed(key, [(text, f"answer {i}") for i, (text, _) in enumerate(WRITTEN)])
    votes = count_votes(RECORDS, record_vectors, lessons, HELP)
    assert sum(votes.values()) == len(RECORDS)


def test_nothing_to_vote_for_and_nobody_to_vote(key: SiloKey, record_vectors: np.ndarray) -> None:
    assert count_votes(RECORDS, record_vectors, make(key, {}), MAIL) == {}
    assert count_votes([], np.zeros((0, 384), dtype=np.float32), signed(key, WRITTEN), MAIL) == {}
    assert count_votes(RECORDS[5:], record_vectors[5:], signed(key, WRITTEN), MAIL) == {}
