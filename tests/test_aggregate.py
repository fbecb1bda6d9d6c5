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
from tutelage.teachers.aggregate import aggregate, count_votes, standing

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
    voters = st.dictionaries(st.sampled_from(LABELS), st.integers(-5, 50))
    votes = data.draw(st.lists(st.dictionaries(st.sampled_from([*ids, "gone"]), voters, max_size=8), max_size=3))
    config = AggregateConfig.model_validate({"method": method, "lessons_per_class": wanted})
    chosen, per_class = aggregate(lessons.examples(), votes, task=MAIL, config=config, seed=seed)
    size = min(wanted, *counts.values())
    assert per_class == dict.fromkeys(LABELS, size)
    assert labels_of(lessons, chosen) == (Counter(dict.fromkeys(LABELS, size)) if size else Counter())
    if method == "vote":
        stands = standing(votes, {lesson.id: lesson.completion for lesson in lessons})
        for label in LABELS:
            own = [lesson.id for lesson in lessons if lesson.completion == label]
            left = [stands[id] for id in own if id not in chosen]
            kept = [stands[id] for id in own if id in chosen]
            assert not left or not kept or min(kept) >= max(left)
    assert aggregate(lessons.examples(), votes, task=MAIL, config=config, seed=seed) == (chosen, per_class)


def test_a_class_without_lessons_gives_none_at_all(key: SiloKey) -> None:
    lessons = make(key, {"ham": 5, "spam": 5})
    nothing: tuple[list[str], dict[str, int]] = ([], {"ham": 0, "news": 0, "spam": 0})
    assert aggregate(lessons.examples(), [], task=MAIL, config=AggregateConfig(), seed=0) == nothing
    assert aggregate(make(key, {}).examples(), [], task=MAIL, config=AggregateConfig(), seed=0) == nothing
    assert aggregate(make(key, {}).examples(), [], task=HELP, config=AggregateConfig(), seed=0) == ([], {"all": 0})


def test_a_generation_task_is_one_class_and_instructions_are_no_examples(key: SiloKey) -> None:
    answers = signed(key, [(f"question {i}", f"answer {i}") for i in range(9)])
    wordings = signed(key, [("Be kind.", "")], kind="instruction")
    lessons = LessonSet.combine([wordings, answers])
    config = AggregateConfig(method="random", lessons_per_class=20)
    chosen, per_class = aggregate(lessons.examples(), [], task=HELP, config=config, seed=0)
    assert per_class == {"all": 9}
    assert sorted(chosen) == sorted(lesson.id for lesson in answers)


def test_lessons_of_an_unknown_class_are_left_out(key: SiloKey) -> None:
    lessons = make(key, {"ham": 2, "news": 2, "spam": 2, "other": 9})
    chosen, per_class = aggregate(lessons.examples(), [], task=MAIL, config=AggregateConfig(method="random"), seed=0)
    assert per_class == {"ham": 2, "news": 2, "spam": 2}
    assert labels_of(lessons, chosen)["other"] == 0


def test_the_seed_decides_random_and_ties_and_nothing_else_does(key: SiloKey) -> None:
    lessons = make(key, dict.fromkeys(LABELS, 30))
    mixed = lessons.select(lesson.id for lesson in reversed(lessons.lessons))
    for method in ("random", "vote"):
        config = AggregateConfig.model_validate({"method": method, "lessons_per_class": 5})
        first, second = (aggregate(lessons.examples(), [], task=MAIL, config=config, seed=seed)[0] for seed in (1, 2))
        assert set(first) != set(second)
        assert first == aggregate(mixed.examples(), [], task=MAIL, config=config, seed=1)[0]
    clear = {lesson.id: {lesson.completion: i + 1} for i, lesson in enumerate(lessons)}
    config = AggregateConfig(method="vote", lessons_per_class=5)
    chosen = [set(aggregate(lessons.examples(), [clear], task=MAIL, config=config, seed=seed)[0]) for seed in (1, 2)]
    assert chosen[0] == chosen[1]
    assert chosen[0] == {lessons.lessons[30 * c + i].id for c in range(3) for i in range(25, 30)}
    ignored = AggregateConfig(method="random", lessons_per_class=5)
    without = aggregate(lessons.examples(), [], task=MAIL, config=ignored, seed=1)
    assert aggregate(lessons.examples(), [clear], task=MAIL, config=ignored, seed=1) == without


def test_the_silos_votes_add_up(key: SiloKey) -> None:
    lessons = make(key, dict.fromkeys(LABELS, 3))
    a, b, c = (lesson.id for lesson in lessons if lesson.completion == "ham")
    config = AggregateConfig(method="vote", lessons_per_class=2)
    ballots = [{a: {"ham": 3}}, {b: {"ham": 2}, c: {"ham": 1}}, {b: {"ham": 2}}]
    chosen, _ = aggregate(lessons.examples(), iter(ballots), task=MAIL, config=config, seed=0)
    assert [id for id in chosen if id in (a, b, c)] == [b, a]  # most voted first


def test_a_lesson_that_another_class_votes_for_is_not_chosen() -> None:
    """Nine in ten are ham: by counts alone every lesson would be ham's."""
    classes = {"good spam": "spam", "like ham": "spam", "unread": "spam", "dull ham": "ham"}
    votes = {
        "good spam": {"spam": 60, "ham": 200},
        "like ham": {"spam": 40, "ham": 500},
        "unread": {"spam": 0, "ham": 0},
        "dull ham": {"spam": 0, "ham": 200},
    }
    stands = standing([votes, votes], classes)
    assert stands["good spam"] == pytest.approx(0.6 - 200 / 900)
    assert sorted(classes, key=lambda id: -stands[id]) == ["good spam", "dull ham", "unread", "like ham"]
    assert standing([], classes) == dict.fromkeys(classes, 0)
    noise = {"unread": {"spam": -7, "ham": 3}}
    assert standing([noise], classes)["unread"] < 0


def test_lessons_of_several_silos_pass_verification(key: SiloKey, tmp_path: Path) -> None:
    north, south = make(key, dict.fromkeys(LABELS, 2)), signed(key, [("spam 0", "spam")], silo="silo-1")
    lessons = verified(LessonSet.combine([north, south]), key, tmp_path)
    chosen, _ = aggregate(lessons.examples(), [], task=MAIL, config=AggregateConfig(), seed=0)
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


def test_each_record_votes_once_for_the_nearest_lesson_and_says_its_class(
    key: SiloKey, record_vectors: np.ndarray
) -> None:
    lessons = signed(key, WRITTEN)
    football, pills, parliament, mortgage = (lesson.id for lesson in lessons)
    votes = count_votes(RECORDS, record_vectors, lessons.examples(), MAIL)
    assert votes.keys() == {football, pills, parliament, mortgage}
    assert all(by_class.keys() == set(LABELS) for by_class in votes.values())
    assert votes[football]["news"] == 2
    assert votes[pills] == {"spam": 1, "news": 1, "ham": 0}  # record 4 speaks of pills too, but is of another class
    assert votes[mortgage]["spam"] == 1
    assert sum(by_class["ham"] for by_class in votes.values()) == 1  # nobody wrote a ham lesson; it votes all the same
    one_by_one: Counter[tuple[str, str]] = Counter()
    for i in range(len(RECORDS)):
        alone = count_votes(RECORDS[i : i + 1], record_vectors[i : i + 1], lessons.examples(), MAIL)
        one_by_one.update({(id, name): n for id, by_class in alone.items() for name, n in by_class.items()})
    assert one_by_one == {(id, name): n for id, by_class in votes.items() for name, n in by_class.items()}


def test_in_a_generation_task_every_record_votes(key: SiloKey, record_vectors: np.ndarray) -> None:
    lessons = signed(key, [(text, f"answer {i}") for i, (text, _) in enumerate(WRITTEN)])
    votes = count_votes(RECORDS, record_vectors, lessons.examples(), HELP)
    assert sum(by_class["all"] for by_class in votes.values()) == len(RECORDS)
    stands = standing([votes], {lesson.id: "all" for lesson in lessons})
    assert all(stands[id] == pytest.approx(by_class["all"] / len(RECORDS)) for id, by_class in votes.items())


def test_nothing_to_vote_for_and_nobody_to_vote(key: SiloKey, record_vectors: np.ndarray) -> None:
    written = signed(key, WRITTEN).examples()
    assert count_votes(RECORDS, record_vectors, [], MAIL) == {}
    nobody = count_votes([], np.zeros((0, 384), dtype=np.float32), written, MAIL)
    assert {n for by_class in nobody.values() for n in by_class.values()} == {0}
