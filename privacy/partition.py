"""Deal the records out: silos, the test set, and the non-members that the attacks compare with.

No near-duplicates lie on two sides of a border, or the test set would measure memory and the attacks would call a
member's twin a non-member. Where the data names owners, all records of one owner that are used lie in one silo. Apart
from that grouping and the labels the deal does not look at the texts.

Records are dealt by their numbers: what is held of each is its number, label and group, and not its text.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.configs.errors import UserError
from tutelage.configs.lazy import Lazy, parts
from tutelage.configs.schema import ClassificationTask, DataConfig, Recipe, Task
from tutelage.privacy.near_duplicates import by_appearance, near_duplicate_groups
from tutelage.privacy.sources import Loaded
from tutelage.privacy.vault import Chosen, Joined, PrivateRecord

_AT_A_TIME = 4096
"""Ids that are held at once before they are put together."""


@dataclass(frozen=True)
class Partition:
    """Where every record went."""

    silos: Mapping[str, Sequence[PrivateRecord]]
    test: list[PrivateRecord]
    nonmembers: list[PrivateRecord]
    twins_unused: int
    """Records left out because a near-duplicate of theirs is in the test set, a non-member or in another silo."""
    over_cap: int
    """Records left out because their silo was full (`data.records_per_silo`)."""


def partition(loaded: Loaded, data: DataConfig, task: Task, seed: int, min_per_label: int) -> Partition:
    """Deal the records out, the same way for the same records and seed, whatever order they come in.

    Groups of near-duplicates stay whole. The test set and the non-members take one record each from groups of their
    own, as many of every label; the groups left are dealt to the silos, so that these come out alike in size and
    labels as far as the groups allow. Where the data names the silos, a group lies in the silo that has most of it.

    Args:
        loaded: The records, and their silos where the data names them.
        data: How many silos, test records and non-members, the cap, and what counts as a near-duplicate.
        task: A classification's labels are balanced; for a generation all records count as of one label.
        seed: Seeds the deal.
        min_per_label: Fewest records of each label (for a generation: in all) that a silo can teach from.

    Raises:
        UserError: too few records for the test set, the non-members, or a silo.
    """
    labels = sorted(task.labels) if isinstance(task, ClassificationTask) else [""]
    order = by_id(loaded.records)
    records = Chosen(loaded.records, order)
    rng = random.Random(seed)
    groups = _Groups.of(loaded, order, labels, data.near_duplicate_jaccard)
    pools = groups.pools(rng)
    test = _draw(groups, pools, data.test_records, "data.test_records", rng)
    nonmembers = _draw(groups, pools, data.nonmember_records, "data.nonmember_records", rng)
    if loaded.silo_of:
        full = _named(groups, pools, [loaded.silo_of[record.id] for record in records])
    else:
        full = _deal(groups, pools, [f"silo-{number}" for number in range(data.silos)], rng)
    silos = {name: _cap(groups, members, data.records_per_silo, rng) for name, members in full.items()}
    for name, members in silos.items():
        counts = np.bincount(groups.label[members], minlength=len(labels)).tolist()
        _check_counts(name, dict(zip(labels, counts, strict=True)), min_per_label)
    dealt = sum(map(len, full.values()))
    return Partition(
        silos={name: Chosen(loaded.records, (records.rows[row] for row in rows)) for name, rows in silos.items()},
        test=[records[row] for row in test],
        nonmembers=[records[row] for row in nonmembers],
        twins_unused=len(records) - len(test) - len(nonmembers) - dealt,
        over_cap=dealt - sum(map(len, silos.values())),
    )


def controls(
    dealt: Partition, recipe: Recipe, rng: random.Random | None = None
) -> tuple[list[PrivateRecord], list[PrivateRecord], list[PrivateRecord]]:
    """What the attacks tell apart, and what canaries are put into.

    Records of no silo are halved: canaries take theirs from one half, the other are the non-members. Members are drawn
    from all silos, as many of each label as there are non-members of it, or an attack would tell the labels apart.

    Args:
        dealt: The partition.
        recipe: `attack` says how many.
        rng: Draws the members; None: seeded by the recipe.

    Returns:
        Members, non-members, carriers. Fewer than asked for where there are not enough.
    """
    rng = rng or random.Random(f"{recipe.seed}/controls")
    labels = sorted(recipe.task.labels) if isinstance(recipe.task, ClassificationTask) else [""]
    by_label: dict[str, list[PrivateRecord]] = {label: [] for label in labels}
    for record in dealt.nonmembers:
        by_label[_label(record, labels)].append(record)
    carriers, outside = [], []
    for pool in by_label.values():
        half = min(len(pool) // 2, -(-recipe.attack.canaries // len(labels)))
        carriers += pool[:half]
        outside += pool[half:][: max(1, recipe.attack.members // len(labels))]
    held = Joined(list(dealt.silos.values()))
    order = array("q", by_id(held))
    rng.shuffle(order)
    inside = matched(held, order, Counter(_label(one, labels) for one in outside), lambda one: _label(one, labels))
    return inside, outside, carriers


def matched(
    records: Sequence[PrivateRecord],
    order: Iterable[int],
    wanted: Mapping[str, int],
    label_of: Callable[[PrivateRecord], str],
) -> list[PrivateRecord]:
    """The first records, in some order, of which as many have each label as is wanted, while there are enough.

    Args:
        records: To choose from; no more of them are read than it takes.
        order: Their numbers.
        wanted: Label -> how many.
        label_of: What counts as a record's label.
    """
    found: dict[str, list[PrivateRecord]] = {label: [] for label in wanted}
    for row in order:
        if all(len(found[label]) == count for label, count in wanted.items()):
            break
        record = records[row]
        label = label_of(record)
        if len(found.get(label, ())) < wanted.get(label, 0):
            found[label].append(record)
    return [record for some in found.values() for record in some]


class _Texts(Lazy[str]):
    """What of records is compared: the text, and with it the completion where that is no label."""

    def __init__(self, records: Sequence[PrivateRecord], labelled: bool) -> None:
        self._records, self._labelled = records, labelled

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[str]:
        return map(self._text, self._records)

    def _one(self, at: int) -> str:
        return self._text(self._records[at])

    def _text(self, record: PrivateRecord) -> str:
        return record.text if self._labelled else f"{record.text}\n{record.completion}"


@dataclass(frozen=True)
class _Groups:
    """Records that must not be parted: near-duplicates of each other, and one owner's. All are numbers."""

    labels: Sequence[str]
    label: np.ndarray
    """Record -> number of its label."""
    members: np.ndarray
    """All records, group by group."""
    starts: np.ndarray
    """Group -> where its records begin in `members`; one more at the end."""

    @classmethod
    def of(cls, loaded: Loaded, order: np.ndarray, labels: Sequence[str], threshold: float) -> _Groups:
        """The groups of what was loaded, in another order."""
        records, number = loaded.records, {label: at for at, label in enumerate(labels)}
        label = np.fromiter((number[_label(record, labels)] for record in records), dtype=np.int32, count=len(records))
        group = np.asarray(near_duplicate_groups(_Texts(records, len(labels) > 1), threshold))
        if loaded.owner_of:
            group = _joined(group, [loaded.owner_of[record.id] for record in records])
        group = by_appearance(group[order])
        return cls(labels, label[order], np.argsort(group, kind="stable"), np.cumsum([0, *np.bincount(group)]))

    def __getitem__(self, group: int) -> np.ndarray:
        return self.members[self.starts[group] : self.starts[group + 1]]

    def pools(self, rng: random.Random) -> dict[str, array[int]]:
        """The groups in random order, each under the label that most of it has."""
        most = self.label[self.members[self.starts[:-1]]]
        for group in np.flatnonzero(np.diff(self.starts) > 1).tolist():
            most[group] = np.bincount(self.label[self[group]]).argmax()
        pools = {label: array("q", np.flatnonzero(most == at)) for at, label in enumerate(self.labels)}
        for pool in pools.values():
            rng.shuffle(pool)
        return pools


def by_id(records: Sequence[PrivateRecord]) -> np.ndarray:
    """The numbers of the records, in the order of their ids: int64 of shape (len(records),)."""
    ids = (record.id.encode() for record in records)  # UTF-8 sorts as characters do, in a quarter of their memory
    found = [np.array(part, dtype=np.bytes_) for part in parts(ids, _AT_A_TIME)]
    return np.argsort(np.concatenate([np.zeros(0, dtype=np.bytes_), *found]), kind="stable")


def _joined(numbers: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    """Group numbers such that neither an old group nor an owner's records are in two of them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    index: dict[str, int] = {}
    column = np.fromiter((index.setdefault(owner, len(index)) for owner in owners), np.int64, len(owners))
    groups = int(numbers.max()) + 1
    size = groups + len(index)
    graph = coo_matrix((np.ones(len(column), dtype=np.int8), (numbers, groups + column)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][numbers])


def _label(record: PrivateRecord, labels: Sequence[str]) -> str:
    return record.completion if len(labels) > 1 else ""


def _draw(groups: _Groups, pools: dict[str, array[int]], n: int, key: str, rng: random.Random) -> list[int]:
    """Take `n` groups out of the pools, as many of every label, and of each one record of that label."""
    drawn: list[int] = []
    for (label, pool), quota in zip(pools.items(), _shares([1] * len(pools), n), strict=True):
        if quota > len(pool):
            raise UserError(
                f"needs {quota} records{_of(label)} that are no near-duplicates; {len(pool)} are left",
                key=key,
                remedy=f"lower {key} or bring more records",
            )
        number = groups.labels.index(label)
        for group in (pool.pop() for _ in range(quota)):
            drawn.append(rng.choice([row for row in groups[group].tolist() if groups.label[row] == number]))
    rng.shuffle(drawn)
    return drawn


def _deal(
    groups: _Groups, pools: Mapping[str, array[int]], names: Sequence[str], rng: random.Random
) -> dict[str, array[int]]:
    """Every group to the silo that has fewest of its label; large groups first, so that the small ones even out."""
    silos = {name: array("q") for name in names}
    for pool in pools.values():
        dealt = dict.fromkeys(names, 0)
        sizes = np.diff(groups.starts)[pool]
        for at in np.argsort(-sizes, kind="stable"):
            name = min(names, key=lambda name: (dealt[name], len(silos[name]), rng.random()))
            silos[name].extend(groups[pool[at]])
            dealt[name] += int(sizes[at])
    return silos


def _named(groups: _Groups, pools: Mapping[str, array[int]], silo_of: Sequence[str]) -> dict[str, array[int]]:
    """Every record to its own silo, if that is the one with most of its group."""
    silos = {name: array("q") for name in sorted(set(silo_of))}
    for pool in pools.values():
        for group in pool:
            rows = groups[group].tolist()
            counts = Counter(silo_of[row] for row in rows)
            home = max(sorted(counts), key=lambda name: counts[name])
            silos[home].extend(row for row in rows if silo_of[row] == home)
    return silos


def _cap(groups: _Groups, members: array[int], cap: int | None, rng: random.Random) -> array[int]:
    """At most `cap` of the silo's records, with the silo's mix of labels, in random order."""
    rows = np.asarray(members, dtype=np.int64)
    by_label = [array("q", rows[groups.label[rows] == number]) for number in range(len(groups.labels))]
    quotas = _shares([len(some) for some in by_label], min(cap or len(members), len(members)))
    kept = array("q")
    for some, quota in zip(by_label, quotas, strict=True):
        kept.extend(rng.sample(some, quota))
    rng.shuffle(kept)
    return kept


def _shares(weights: Sequence[int], n: int) -> list[int]:
    """`n` in whole parts in proportion to the weights, by largest remainders."""
    total = sum(weights) or 1
    parts = [weight * n // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda at: -(weights[at] * n % total))
    for at in by_remainder[: n - sum(parts)]:
        parts[at] += 1
    return parts


def check_labels(silos: Mapping[str, Sequence[PrivateRecord]], task: Task, min_per_label: int) -> None:
    """Be sure that every silo has so many records of each label (for a generation: in all).

    Raises:
        UserError: one has fewer.
    """
    labels = sorted(task.labels) if isinstance(task, ClassificationTask) else [""]
    for name, members in silos.items():
        counts = Counter(_label(record, labels) for record in members)
        _check_counts(name, {label: counts[label] for label in labels}, min_per_label)


def _check_counts(name: str, counts: Mapping[str, int], min_per_label: int) -> None:
    for label, count in counts.items():
        if count < min_per_label:
            raise UserError(
                f"silo {name} has {count} records{_of(label)}, needs {min_per_label}",
                key="data.silos",
                remedy="fewer silos, test records or references per prompt, a higher data.records_per_silo, "
                "or more records",
            )


def _of(label: str) -> str:
    return f" of label {label}" if label else ""
