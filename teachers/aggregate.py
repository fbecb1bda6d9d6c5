"""Several silos' lessons become one set, the same number for each class.

`random` and `vote` are the aggregators of the social-learning paper (Mohtashami et al. 2023, arXiv
2312.11441, section 4). There, voting amplified class imbalance; here each class is filled separately.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tutelage.configs.schema import AggregateConfig, ClassificationTask, Task
from tutelage.privacy.release import LessonSet
from tutelage.privacy.similarity import embed
from tutelage.privacy.vault import PrivateRecord


def choices(
    records: Sequence[PrivateRecord], embeddings: np.ndarray, lessons: LessonSet, task: Task
) -> tuple[list[str], list[int | None]]:
    """Which lesson each record votes for: the one of its own class that is nearest to it.

    Args:
        records: A silo's, or one of each of its units.
        embeddings: (records, 384) of `similarity.embed`, in the same order.
        lessons: The candidates, every silo's.
        task: The task.

    Returns:
        The candidates' ids, and per record an index into them; None where no candidate is of its class.
    """
    candidates = [lesson for lesson in lessons if lesson.kind == "example"]
    vectors = embed([lesson.prompt for lesson in candidates])
    classes = [class_of(lesson.completion, task) for lesson in candidates]
    own = [class_of(record.completion, task) for record in records]
    return [lesson.id for lesson in candidates], nearest(vectors, classes, embeddings, own)


def nearest(
    candidates: np.ndarray,
    candidate_classes: Sequence[str | None],
    voters: np.ndarray,
    voter_classes: Sequence[str | None],
) -> list[int | None]:
    """Every voter's nearest candidate of its own class, by cosine.

    A voter's choice depends on that voter and the candidates alone. So replacing a voter by null takes one vote away
    and moves no other: the histogram of the choices has an L2 sensitivity of 1 (`NoisyHistogram`).

    Args:
        candidates: (C, d), rows of unit norm.
        candidate_classes: C of them.
        voters: (V, d), rows of unit norm.
        voter_classes: V of them.

    Returns:
        V indices of candidates, the first of several equally near; None where there is none of that class.
    """
    if len(candidate_classes) != len(candidates) or len(voter_classes) != len(voters):
        raise ValueError("every candidate and every voter has one class")
    # Rounded to multiples of 2^-20, products and sums are exact in float64. Unrounded, their last bits would depend on
    # how many rows are multiplied at a time, and one voter's presence could turn another's vote.
    candidates, voters = (np.round(rows.astype(np.float64) * 2**20) for rows in (candidates, voters))
    chosen: list[int | None] = [None] * len(voters)
    for name in set(candidate_classes):
        among = [i for i, one in enumerate(candidate_classes) if one == name]
        asking = [i for i, one in enumerate(voter_classes) if one == name]
        best = np.argmax(voters[asking] @ candidates[among].T, axis=1)
        for voter, at in zip(asking, best.tolist(), strict=True):
            chosen[voter] = among[at]
    return chosen


def count_votes(
    records: Sequence[PrivateRecord], embeddings: np.ndarray, lessons: LessonSet, task: Task
) -> dict[str, int]:
    """One silo's votes, unprotected: an exact function of private records, and the report says so.

    Args and candidates are those of `choices`.

    Returns:
        Lesson id -> votes; lessons without a vote are left out.
    """
    ids, chosen = choices(records, embeddings, lessons, task)
    return dict(sorted(Counter(ids[i] for i in chosen if i is not None).items()))


def aggregate(
    lessons: LessonSet, votes: Iterable[Mapping[str, int]], *, task: Task, config: AggregateConfig, seed: int
) -> tuple[list[str], dict[str, int]]:
    """Choose the lessons the student will see.

    Args:
        lessons: All silos' released lessons.
        votes: Each silo's `count_votes`; ignored by `random`.
        task: The task.
        config: The recipe's `aggregate` section.
        seed: Decides `random`, and ties among votes.

    Returns:
        The chosen ids, and how many there are per class. Classes are cut to the size of the smallest, so that
        scarce classes are not drowned.
    """
    total: Counter[str] = Counter()
    for ballot in votes:
        total.update(ballot)
    by_class: dict[str, list[str]] = defaultdict(list)
    for lesson in lessons:
        if lesson.kind == "example":
            by_class[class_of(lesson.completion, task)].append(lesson.id)
    wanted = set(task.labels) if isinstance(task, ClassificationTask) else {_ANY}
    size = min([config.lessons_per_class, *(len(by_class[name]) for name in wanted)])
    draw = random.Random(f"{seed}/aggregate")
    chosen: list[str] = []
    for name in sorted(wanted):
        ids = sorted(by_class[name])
        draw.shuffle(ids)
        if config.method == "vote":
            ids.sort(key=lambda id: -total[id])  # stable: ties stay shuffled
        chosen += ids[:size]
    return chosen, dict.fromkeys(sorted(wanted), size)


_ANY = "all"


def class_of(completion: str, task: Task) -> str:
    """The class to balance over: the label, or one class for all of a generation task."""
    return completion if isinstance(task, ClassificationTask) else _ANY
