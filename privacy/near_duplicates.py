"""Which of many texts are near-duplicates of each other, with a few numbers held of each.

Two texts are, from some word 3-gram Jaccard similarity on. Candidates are pairs that share a rare one: that loses none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tutelage.configs.lazy import parts
from tutelage.privacy.similarity import SHINGLE_WORDS, words

_AT_A_TIME = 256
"""Texts that are held at once."""
_READ_AT_A_TIME = 4096
_RANGES = 16
"""Of hashes: candidates are sought in one after the other."""
_PAIRS = 1 << 11
"""Pairs that are compared at once."""
_FEWEST_SLOTS, _MOST_SLOTS = 12, 24
"""Of counts of shingles: powers of 2, two bytes each. With one byte all that is common would count as equally rare."""
_ROUNDING = 1e-9
"""0.7 * 10 is a little more than 7."""


def near_duplicate_groups(texts: Sequence[str], threshold: float) -> np.ndarray:
    """Group texts that are near-duplicates, directly or through a chain of others.

    Exact: a MinHash index was tried first and missed 4 of the 1,335 near-duplicate pairs among 5,836 mails, and a
    missed pair puts a record's twin across a border. What is held of a text is a few numbers, so the texts are asked
    for twice, and those with a candidate once more. (3-grams are told apart by 64-bit hashes: among a million texts of
    a dozen words two of them are taken for one with a chance of some 3 in a million.)

    Args:
        texts: Any number of texts.
        threshold: Word 3-gram Jaccard in (0, 1] from which two texts belong together.

    Returns:
        int64 of shape (len(texts),): a group number per text, numbered from 0 in the order of first appearance. Two
        calls agree.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(texts):
        return np.zeros(0, dtype=np.int64)
    digests, sizes, rarity = _surveyed(texts)
    # Identical sets are taken as one: a thousand copies would otherwise mean a million pairs.
    _, rows, same = np.unique(digests, return_index=True, return_inverse=True)
    del digests
    sizes = sizes[rows]
    rare = _rare(texts, rows, sizes, rarity, threshold)
    del rarity
    near = [np.zeros((2, 0), dtype=np.int64)]
    for a, b in _candidates(rare, sizes, threshold):
        near.append(np.stack([a, b])[:, _jaccard_of(texts, rows, a, b) >= threshold])
    edges = np.concatenate(near, axis=1)  # (2, near-duplicate pairs)
    graph = coo_matrix((np.ones(edges.shape[1], dtype=np.int8), tuple(edges)), shape=(len(rows), len(rows)))
    return by_appearance(connected_components(graph, directed=False)[1][same])


def by_appearance(labels: np.ndarray) -> np.ndarray:
    """Labels of any kind, numbered from 0 in the order of first appearance."""
    _, first, number = np.unique(labels, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[number]


def _surveyed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A digest of each text's shingles, how many it has, and in how many texts a slot's shingles are.

    A shingle's slot is by its hash, and others may share it: so a count is at least the shingle's own.
    """
    digests, sizes = np.empty(len(texts), dtype=np.int64), np.empty(len(texts), dtype=np.int32)
    rarity = np.zeros(1 << min(_MOST_SLOTS, max(_FEWEST_SLOTS, (64 * len(texts)).bit_length())), dtype=np.uint16)
    start = 0
    for part in parts(texts, _AT_A_TIME):
        hashes, lengths = _hashed(part)
        end = start + len(part)
        digests[start:end] = [hash(one.tobytes()) for one in np.split(hashes, np.cumsum(lengths)[:-1])]
        sizes[start:end] = lengths
        slots, counts = np.unique(_slot(hashes, rarity), return_counts=True)
        rarity[slots] = np.minimum(rarity[slots] + counts, np.iinfo(np.uint16).max)
        start = end
    return digests, sizes, rarity


def _slot(hashes: np.ndarray, rarity: np.ndarray) -> np.ndarray:
    return (hashes & np.uint64(len(rarity) - 1)).astype(np.int64)


_FACTORS = tuple(np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
"""Any odd numbers without a pattern."""


def _hashed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of each text's shingles (uint64), text by text, each text's sorted, and how many each has.

    They come of Python's own hashes of words, and so hold within this process only.
    """
    tokens = [words(text) for text in texts]
    lengths = np.array([len(one) for one in tokens])
    every = itertools.chain.from_iterable(tokens)
    found = np.fromiter(map(hash, every), dtype=np.int64, count=int(lengths.sum())).view(np.uint64)
    owner = np.repeat(np.arange(len(texts)), lengths)
    # A shingle of three words for each that has two after it in its text; of a shorter text its words.
    whole = np.flatnonzero(owner[: -SHINGLE_WORDS + 1] == owner[SHINGLE_WORDS - 1 :])
    alone = np.flatnonzero(lengths[owner] < SHINGLE_WORDS)
    grams = sum((found[whole + at] * factor for at, factor in enumerate(_FACTORS)), np.uint64(0))
    hashes, owner = np.concatenate([grams, found[alone]]), np.concatenate([owner[whole], owner[alone]])
    order = np.lexsort((hashes, owner))
    hashes, owner = hashes[order], owner[order]
    first = np.ones(len(hashes), dtype=bool)
    first[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    return hashes[first], np.bincount(owner[first], minlength=len(texts))


class _Rare(NamedTuple):
    """Shingles of sets, an entry for each set that has one."""

    hashes: np.ndarray
    """uint64"""
    owners: np.ndarray
    """int32: number of the set, an index into the rows that stand for all."""
    places: np.ndarray
    """int32: how many of the set are rarer."""


def _rare(
    texts: Iterable[str], rows: np.ndarray, sizes: np.ndarray, rarity: np.ndarray, threshold: float
) -> list[_Rare]:
    """The rarest shingles of each set that any near-duplicate of it must share one of.

    Two sets of a Jaccard similarity of `threshold` have so much in common that one of the rarest
    |x| - ceil(threshold |x|) + 1 members of one is among those of the other, in whatever order all agree on what is
    rare (prefix filtering: Chaudhuri et al. 2006, Bayardo et al. 2007). Else every pair would have to be looked at
    that shares a common phrase, which grows with the square of texts.

    Returns:
        By some bits of their hashes: all that is compared with each other is in one. What is in one set only is left
        out.
    """
    found: list[list[_Rare]] = [[] for _ in range(_RANGES)]
    first = np.minimum(sizes, sizes - np.ceil(threshold * sizes - _ROUNDING).astype(np.int64) + 1)
    numbers = np.argsort(rows).astype(np.int32)  # of the sets, in the order in which their texts come
    chosen = np.zeros(int(rows.max()) + 1, dtype=bool)
    chosen[rows] = True
    start = 0
    for part in parts(itertools.compress(texts, chosen), _READ_AT_A_TIME):
        hashes, lengths = _hashed(part)
        owners = np.repeat(numbers[start : start + len(part)], lengths)
        times = rarity[_slot(hashes, rarity)]
        order = np.lexsort((hashes, times, np.repeat(np.arange(len(part)), lengths)))
        place = np.arange(len(hashes)) - np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
        kept = (place < first[owners]) & (times[order] > 1)
        hashes, owners, places = hashes[order[kept]], owners[order[kept]], place[kept].astype(np.int32)
        bits = hashes >> np.uint64(64 - _RANGES.bit_length() + 1)
        for number, some in enumerate(found):
            own = bits == number
            some.append(_Rare(hashes[own], owners[own], places[own]))
        start += len(part)
    return [_Rare(*map(np.concatenate, zip(*some, strict=True))) for some in found]


def _candidates(rare: Iterable[_Rare], sizes: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of sets that may be near-duplicates, some thousands at a time; some twice.

    They share a rare shingle, and if it is the first that they share, they have no more in common than what is less
    rare in either (positional filtering: Xiao et al. 2008).
    """
    held, count = [], 0
    for one in rare:
        order = np.argsort(one.hashes)
        hashes, owners, places = one.hashes[order], one.owners[order], one.places[order]
        ends = np.append(np.flatnonzero(np.diff(hashes)) + 1, len(hashes))
        end = np.repeat(ends, np.diff(ends, prepend=0))  # of the run of equal hashes that an entry is in
        entries = np.arange(len(hashes))
        for apart in range(1, len(hashes)):
            entries = entries[entries + apart < end[entries]]
            if not len(entries):
                break
            for start in range(0, len(entries), _PAIRS):
                first = entries[start : start + _PAIRS]
                second = first + apart
                a, b = owners[first], owners[second]
                most = np.minimum(sizes[a] - places[first], sizes[b] - places[second])  # that they have in common
                may = most >= threshold * (sizes[a] + sizes[b] - most) - _ROUNDING
                held.append((np.minimum(a, b)[may], np.maximum(a, b)[may]))
                count += int(may.sum())
                if count >= _PAIRS:
                    yield _once(held)
                    held, count = [], 0
    if count:
        yield _once(held)


def _once(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.unique(np.concatenate([np.stack(one) for one in pairs], axis=1), axis=1)
    return a, b


def _jaccard_of(texts: Sequence[str], rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of pairs of sets, given as indices into `rows`: their Jaccard similarities."""
    from scipy.sparse import csr_matrix

    asked, at = np.unique(np.concatenate([a, b]), return_inverse=True)
    hashes, sizes = _hashed([texts[row] for row in rows[asked].tolist()])
    known, columns = np.unique(hashes, return_inverse=True)
    ones = np.ones(len(columns), dtype=np.int32)
    matrix = csr_matrix((ones, columns, np.cumsum([0, *sizes])), shape=(len(asked), len(known)))
    left, right = np.split(at, 2)
    common = np.asarray(matrix[left].multiply(matrix[right]).sum(1)).ravel()
    return np.asarray(common / (sizes[left] + sizes[right] - common))
