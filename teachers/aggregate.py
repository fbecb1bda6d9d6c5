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


def count_votes(
    records: Sequence[PrivateRecord], embeddings: np.ndarray, lessons: LessonSet, task: Task
) -> dict[str, int]:
    """One silo's votes: each record votes once, for the lesson of its own class nearest to it.

    The counts are an unprotected function of private records; the report says so. (A noised histogram of the
    same form is the formal version.)

    Args:
        records: The silo's records.
        embeddings: (records, 384) of `similarity.embed`, in the same order.
        lessons: The candidates, every silo's.
        task: The task.

    Returns:
        Lesson id -> votes; lessons without a vote are left out.
    """
    candidates: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for lesson in lessons:
        if lesson.kind == "example":
            candidates[_class_of(lesson.completion, task)].append((lesson.id, lesson.prompt))
    votes: Counter[str] = Counter()
    for name, pairs in sorted(candidates.items()):
        voters = [i for i, record in enumerate(records) if _class_of(record.completion, task) == name]
        if voters:
            nearest = np.argmax(embeddings[voters] @ embed([text for _, text in pairs]).T, axis=1)  # (voters,)
            votes.update(pairs[i][0] for i in nearest.tolist())
    return dict(sorted(votes.items()))


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
            by_class[_class_of(lesson.completion, task)].append(lesson.id)
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


def _class_of(completion: str, task: Task) -> str:
    """The class to balance over: the label, or one class for all of a generation task."""
    return completion if isinstance(task, ClassificationTask) else _ANY
