"""Which of many texts are near-duplicates of each other, with a few numbers held of each.

Two texts are, from some word 3-gram Jaccard similarity on. Candidates are pairs that share a rare one: that loses none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tutelage.privacy.similarity import SHINGLE_WORDS, words

_AT_A_TIME = 256
"""Texts that are held at once."""
_PAIRS = 1 << 11
"""Pairs that are compared at once."""
_FEWEST_SLOTS, _MOST_SLOTS = 12, 25
"""Of counts of shingles: powers of 2, a byte each."""
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
    hashes, owners = _rare(texts, rows, sizes, rarity, threshold)
    del rarity
    near = [np.zeros((2, 0), dtype=np.int64)]
    for a, b in _candidates(hashes, owners, sizes, threshold):
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
    """A digest of each text's shingles, how many it has, and in how many texts a slot's shingles are, up to 255.

    A shingle's slot is by its hash, and others may share it: so a count is at least the shingle's own.
    """
    digests, sizes = np.empty(len(texts), dtype=np.int64), np.empty(len(texts), dtype=np.int32)
    rarity = np.zeros(1 << min(_MOST_SLOTS, max(_FEWEST_SLOTS, (64 * len(texts)).bit_length())), dtype=np.uint8)
    start = 0
    for part in _parts(texts):
        hashes, lengths = _hashed(part)
        end = start + len(part)
        digests[start:end] = [hash(one.tobytes()) for one in np.split(hashes, np.cumsum(lengths)[:-1])]
        sizes[start:end] = lengths
        slots, counts = np.unique(_slot(hashes, rarity), return_counts=True)
        rarity[slots] = np.minimum(rarity[slots] + counts, 255)
        start = end
    return digests, sizes, rarity


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while part := list(itertools.islice(rest, _AT_A_TIME)):
        yield part


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


def _rare(
    texts: Iterable[str], rows: np.ndarray, sizes: np.ndarray, rarity: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The rarest shingles of each set that any near-duplicate of it must share one of.

    Two sets of a Jaccard similarity of `threshold` have so much in common that one of the rarest
    |x| - ceil(threshold |x|) + 1 members of one is among those of the other, in whatever order all agree on what is
    rare (prefix filtering: Chaudhuri et al. 2006, Bayardo et al. 2007). Else every pair would have to be looked at
    that shares a common phrase, which grows with the square of texts.

    Returns:
        Hashes (uint64) and the number of the set (int32, an index into `rows`) that each is of. What is in one set
        only is left out.
    """
    hashes, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int32)]
    first = np.minimum(sizes, sizes - np.ceil(threshold * sizes - _ROUNDING).astype(np.int64) + 1)
    numbers = np.argsort(rows).astype(np.int32)  # of the sets, in the order in which their texts come
    chosen = np.zeros(int(rows.max()) + 1, dtype=bool)
    chosen[rows] = True
    start = 0
    for part in _parts(itertools.compress(texts, chosen)):
        found, lengths = _hashed(part)
        owner = np.repeat(numbers[start : start + len(part)], lengths)
        times = rarity[_slot(found, rarity)]
        row = np.repeat(np.arange(len(part)), lengths)
        order = np.lexsort((found, times, row))
        place = np.arange(len(found)) - np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
        kept = order[(place < first[owner]) & (times[order] > 1)]
        hashes.append(found[kept])
        owners.append(owner[kept])
        start += len(part)
    return np.concatenate(hashes), np.concatenate(owners)


def _candidates(
    hashes: np.ndarray, owners: np.ndarray, sizes: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of sets that share a rare shingle and are of like size, some ten thousands at a time; some twice."""
    order = np.argsort(hashes)
    hashes, owners = hashes[order], owners[order]
    ends = np.append(np.flatnonzero(np.diff(hashes)) + 1, len(hashes))
    end = np.repeat(ends, np.diff(ends, prepend=0))  # of the run of equal hashes that a place is in
    places, held, count = np.arange(len(hashes)), [], 0
    for apart in range(1, len(hashes)):
        places = places[places + apart < end[places]]
        if not len(places):
            break
        for start in range(0, len(places), _PAIRS):
            here = places[start : start + _PAIRS]
            a, b = owners[here], owners[here + apart]
            alike = np.minimum(sizes[a], sizes[b]) >= threshold * np.maximum(sizes[a], sizes[b]) - 1
            held.append((np.minimum(a, b)[alike], np.maximum(a, b)[alike]))
            count += int(alike.sum())
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
