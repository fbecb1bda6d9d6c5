"""Deal the records out: silos, the test set, and the non-members that the attacks compare with.

No near-duplicates lie on two sides of a border, or the test set would measure memory and the attacks would call a
member's twin a non-member. Where the data names owners, all records of one owner that are used lie in one silo. Apart
from that grouping and the labels the deal does not look at the texts.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tutelage.configs.errors import UserError
from tutelage.configs.schema import ClassificationTask, DataConfig, Recipe, Task
from tutelage.privacy.similarity import near_duplicate_groups
from tutelage.privacy.sources import Loaded
from tutelage.privacy.vault import PrivateRecord

Group = list[PrivateRecord]


@dataclass(frozen=True)
class Partition:
    """Where every record went."""

    silos: dict[str, list[PrivateRecord]]
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
    records = sorted(loaded.records, key=lambda record: record.id)
    rng = random.Random(seed)
    pools = _pools(records, labels, data.near_duplicate_jaccard, rng, loaded.owner_of)
    test = _draw(pools, data.test_records, "data.test_records", rng)
    nonmembers = _draw(pools, data.nonmember_records, "data.nonmember_records", rng)
    if loaded.silo_of:
        full = _named(pools, loaded.silo_of)
    else:
        full = _deal(pools, [f"silo-{number}" for number in range(data.silos)], rng)
    silos = {name: _cap(members, labels, data.records_per_silo, rng) for name, members in full.items()}
    check_labels(silos, task, min_per_label)
    dealt = sum(map(len, full.values()))
    return Partition(
        silos=silos,
        test=test,
        nonmembers=nonmembers,
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
    pool = sorted((record for records in dealt.silos.values() for record in records), key=lambda record: record.id)
    rng.shuffle(pool)
    inside = []
    for label, count in Counter(_label(record, labels) for record in outside).items():
        inside += [record for record in pool if _label(record, labels) == label][:count]
    return inside, outside, carriers


def _pools(
    records: Sequence[PrivateRecord],
    labels: Sequence[str],
    threshold: float,
    rng: random.Random,
    owner_of: Mapping[str, str],
) -> dict[str, list[Group]]:
    """The groups of near-duplicates and of one owner's records in random order, each under the label most of it has."""
    groups: dict[int, Group] = defaultdict(list)
    texts = [r.text if len(labels) > 1 else f"{r.text}\n{r.completion}" for r in records]
    numbers = near_duplicate_groups(texts, threshold)
    if owner_of:
        numbers = _joined(numbers, [owner_of[record.id] for record in records])
    for record, number in zip(records, numbers, strict=True):
        groups[number].append(record)
    pools: dict[str, list[Group]] = {label: [] for label in labels}
    for group in groups.values():
        counts = Counter(_label(record, labels) for record in group)
        pools[max(labels, key=lambda label: counts[label])].append(group)
    for pool in pools.values():
        rng.shuffle(pool)
    return pools


def _joined(numbers: Sequence[int], owners: Sequence[str]) -> list[int]:
    """Group numbers such that neither an old group nor an owner's records are in two of them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    index: dict[str, int] = {}
    column = [index.setdefault(owner, len(index)) for owner in owners]
    groups = max(numbers) + 1
    edges = (list(numbers), [groups + at for at in column])
    size = groups + len(index)
    graph = coo_matrix(([1] * len(column), edges), shape=(size, size))
    component = connected_components(graph, directed=False)[1]
    return [int(component[number]) for number in numbers]


def _label(record: PrivateRecord, labels: Sequence[str]) -> str:
    return record.completion if len(labels) > 1 else ""


def _draw(pools: dict[str, list[Group]], n: int, key: str, rng: random.Random) -> list[PrivateRecord]:
    """Take `n` groups out of the pools, as many of every label, and of each one record of that label."""
    drawn = []
    for label, quota in zip(pools, _shares([1] * len(pools), n), strict=True):
        if quota > len(pools[label]):
            raise UserError(
                f"needs {quota} records{_of(label)} that are no near-duplicates; {len(pools[label])} are left",
                key=key,
                remedy=f"lower {key} or bring more records",
            )
        for group in (pools[label].pop() for _ in range(quota)):
            drawn.append(rng.choice([record for record in group if _label(record, list(pools)) == label]))
    rng.shuffle(drawn)
    return drawn


def _deal(pools: dict[str, list[Group]], names: Sequence[str], rng: random.Random) -> dict[str, Group]:
    """Every group to the silo that has fewest of its label; large groups first, so that the small ones even out."""
    silos: dict[str, Group] = {name: [] for name in names}
    for pool in pools.values():
        dealt = dict.fromkeys(names, 0)
        for group in sorted(pool, key=len, reverse=True):
            name = min(names, key=lambda name: (dealt[name], len(silos[name]), rng.random()))
            silos[name] += group
            dealt[name] += len(group)
    return silos


def _named(pools: dict[str, list[Group]], silo_of: dict[str, str]) -> dict[str, Group]:
    """Every record to its own silo, if that is the one with most of its group."""
    silos: dict[str, Group] = {name: [] for name in sorted(set(silo_of.values()))}
    for pool in pools.values():
        for group in pool:
            counts = Counter(silo_of[record.id] for record in group)
            home = max(sorted(counts), key=lambda name: counts[name])
            silos[home] += [record for record in group if silo_of[record.id] == home]
    return silos


def _cap(members: Group, labels: Sequence[str], cap: int | None, rng: random.Random) -> Group:
    """At most `cap` of the silo's records, with the silo's mix of labels, in random order."""
    by_label: dict[str, Group] = {label: [] for label in labels}
    for record in members:
        by_label[_label(record, labels)].append(record)
    quotas = _shares([len(group) for group in by_label.values()], min(cap or len(members), len(members)))
    kept = [r for group, quota in zip(by_label.values(), quotas, strict=True) for r in rng.sample(group, quota)]
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
        for label in labels:
            if counts[label] < min_per_label:
                raise UserError(
                    f"silo {name} has {counts[label]} records{_of(label)}, needs {min_per_label}",
                    key="data.silos",
                    remedy="fewer silos, test records or references per prompt, a higher data.records_per_silo, "
                    "or more records",
                )


def _of(label: str) -> str:
    return f" of label {label}" if label else ""
