"""Several silos' lessons become one set, the same number for each class.

`random` and `vote` are the aggregators of the social-learning paper (Mohtashami et al. 2023, arXiv
2312.11441, section 4). There, voting amplified class imbalance; here each class is filled separately.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tutelage.configs.records import Example
from tutelage.configs.schema import AggregateConfig, ClassificationTask, Task
from tutelage.privacy.similarity import embed
from tutelage.privacy.vault import PrivateRecord

_VOTERS = 4096
"""Voters whose choices are found at once."""
Ballot = Mapping[str, Mapping[str, int]]
"""Lesson id -> class of the voters -> how many of them voted for it. Noised counts may be negative."""


def choices(
    records: Sequence[PrivateRecord], embeddings: np.ndarray, candidates: Sequence[Example], task: Task
) -> tuple[list[tuple[str, str]], list[int]]:
    """Which bin each record's vote falls into: the lesson nearest to it, and its own class.

    So a lesson's votes say not only how many records are like it but also of which class these are: where they are of
    another than the lesson's, its teacher wrote ham, say, and called it spam.

    Args:
        records: A silo's, or one of each of its units.
        embeddings: (records, 384) of `similarity.embed`, in the same order.
        candidates: Examples to choose from, every silo's.
        task: The task.

    Returns:
        The bins, (lesson id, class), and per record an index into them; no choices where there are no candidates.
    """
    names = sorted(classes(task))
    bins = [(candidate.id, name) for candidate in candidates for name in names]
    if not bins:
        return [], []
    closest = nearest(embed([candidate.prompt for candidate in candidates]), embeddings)
    own = [names.index(class_of(record.completion, task)) for record in records]
    return bins, [at * len(names) + name for at, name in zip(closest, own, strict=True)]


def nearest(candidates: np.ndarray, voters: np.ndarray) -> list[int]:
    """Every voter's nearest candidate, by cosine.

    A voter's choice depends on that voter and the candidates alone. So replacing a voter by null takes one vote away
    and moves no other: the histogram of the choices has an L2 sensitivity of 1 (`NoisyHistogram`).

    Args:
        candidates: (C, d), C >= 1, rows of unit norm.
        voters: (V, d), rows of unit norm.

    Returns:
        V indices of candidates, the first of several equally near.
    """
    # Rounded to multiples of 2^-20, products and sums are exact in float64. Unrounded, their last bits would depend on
    # how many rows are multiplied at a time, and one voter's presence could turn another's vote.
    asked, found = _whole(candidates).T, []
    for start in range(0, len(voters), _VOTERS):
        found += np.argmax(_whole(voters[start : start + _VOTERS]) @ asked, axis=1).tolist()
    return found


def _whole(rows: np.ndarray) -> np.ndarray:
    return np.round(rows.astype(np.float64) * 2**20)


def ballot(bins: Sequence[tuple[str, str]], counts: Sequence[int]) -> dict[str, dict[str, int]]:
    """Counts by bin as a `Ballot`."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for (id, name), count in zip(bins, counts, strict=True):
        found[id][name] = count
    return dict(found)


def count_votes(
    records: Sequence[PrivateRecord], embeddings: np.ndarray, candidates: Sequence[Example], task: Task
) -> dict[str, dict[str, int]]:
    """One silo's votes, unprotected: an exact function of private records, and the report says so.

    Args are those of `choices`.
    """
    bins, chosen = choices(records, embeddings, candidates, task)
    exact = Counter(chosen)
    return ballot(bins, [exact[i] for i in range(len(bins))])


def standing(ballots: Iterable[Ballot], class_by_id: Mapping[str, str]) -> dict[str, float]:
    """How well each lesson stands for its class: the share of its class that voted for it, less that of all others.

    Shares and not counts: where nine records in ten are ham, every lesson has mostly ham for voters.

    Args:
        ballots: Every silo's.
        class_by_id: The lessons' own classes.
    """
    votes: Counter[tuple[str, str]] = Counter()
    voters: Counter[str] = Counter()
    for one in ballots:
        for id, by_class in one.items():
            for name, count in by_class.items():
                votes[id, name] += count
                voters[name] += count
    everybody = sum(voters.values())
    found = {}
    for id, own in class_by_id.items():
        others = sum(votes[id, name] for name in voters if name != own)
        found[id] = votes[id, own] / max(1, voters[own]) - others / max(1, everybody - voters[own])
    return found


def aggregate(
    candidates: Sequence[Example], ballots: Iterable[Ballot], *, task: Task, config: AggregateConfig, seed: int
) -> tuple[list[str], dict[str, int]]:
    """Choose the lessons the student will see.

    Args:
        candidates: All silos' examples.
        ballots: Each silo's; ignored by `random`.
        task: The task.
        config: The recipe's `aggregate` section.
        seed: Decides `random`, and ties among votes.

    Returns:
        The chosen ids, and how many there are per class. Classes are cut to the size of the smallest, so that
        scarce classes are not drowned.
    """
    by_class: dict[str, list[str]] = {name: [] for name in sorted(classes(task))}
    for candidate in candidates:
        own = class_of(candidate.completion, task)
        if own in by_class:
            by_class[own].append(candidate.id)
    size = min([config.lessons_per_class, *map(len, by_class.values())])
    stands = standing(ballots, {id: name for name, ids in by_class.items() for id in ids})
    draw = random.Random(f"{seed}/aggregate")
    chosen: list[str] = []
    for ids in by_class.values():
        ids.sort()
        draw.shuffle(ids)
        if config.method == "vote":
            ids.sort(key=lambda id: -stands[id])  # stable: ties stay shuffled
        chosen += ids[:size]
    return chosen, dict.fromkeys(by_class, size)


_ANY = "all"


def class_of(completion: str, task: Task) -> str:
    """The class to balance over: the label, or one class for all of a generation task."""
    return completion if isinstance(task, ClassificationTask) else _ANY


def classes(task: Task) -> frozenset[str]:
    """All of the task's classes."""
    return frozenset(task.labels) if isinstance(task, ClassificationTask) else frozenset({_ANY})
