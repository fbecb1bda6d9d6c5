"""How much of a draft is copied from the silo's own records.

Four measures, each the worst over all records: the longest common run of words, the share of the draft's word n-grams
that some record holds, the word 3-gram Jaccard (near-duplicates) and the cosine of sentence embeddings (meaning).

A teacher may copy a record and swap the names, so drafts and records are compared twice: raw with raw, and scrubbed
with scrubbed, where the placeholders are left out altogether. A placeholder thus neither breaks a run nor counts as a
copied word, and `<PERSON>` here against `<PHONE_NUMBER>` there makes no difference. The worse figure counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.privacy.pii import PLACEHOLDER, Scrubber
from tutelage.privacy.similarity import embed, max_cosine, max_jaccard, words
from tutelage.privacy.vault import PrivateRecord


@dataclass(frozen=True, slots=True)
class Overlap:
    """What one text shares with the records; every field is the largest over the records."""

    longest_run_tokens: int
    """Longest run of consecutive normalised words that is also in a record."""
    ngram_share: float
    """Share of the text's word n-grams that are in some record; a text shorter than n is its own only n-gram."""
    jaccard: float
    """Word 3-gram Jaccard to the nearest record."""
    cosine: float | None
    """Cosine of the sentence embeddings to the nearest record; None where it was not asked for."""


def indexed_texts(records: Sequence[PrivateRecord], public_completions: frozenset[str] = frozenset()) -> list[str]:
    """The texts that drafts are compared with: every prompt in order, then every completion that is not public."""
    private = [one.completion for one in records if one.completion and one.completion not in public_completions]
    return [one.text for one in records] + private


class OverlapIndex:
    """One silo's records, indexed in memory for measuring texts against them.

    Args:
        records: The silo's records.
        ngram: Words per n-gram of `ngram_share`.
        scrubber: Compare the scrubbed forms too; None: the raw ones only.
        public_completions: Completions that are no private text, such as the labels of a classification task. Every
            other completion is indexed as a text of its own beside its prompt.
        embeddings: (texts, 384) of `indexed_texts`, where they have been computed before; embedding is slow, some
            25 texts a second on one core.

    Raises:
        ValueError: `embeddings` has not one row per indexed text.
    """

    def __init__(
        self,
        records: Sequence[PrivateRecord],
        *,
        ngram: int = 8,
        scrubber: Scrubber | None = None,
        public_completions: frozenset[str] = frozenset(),
        embeddings: np.ndarray | None = None,
    ) -> None:
        self._scrubber = scrubber
        self._scrubbed: dict[str, str] = {}
        self._texts = indexed_texts(records, public_completions)
        if embeddings is not None and len(embeddings) != len(self._texts):
            raise ValueError(f"{len(embeddings)} embeddings were given for {len(self._texts)} indexed texts")
        self._embeddings = embeddings
        self._corpora = [_Corpus(form, ngram) for form in self._forms(self._texts)]

    def __repr__(self) -> str:
        return f"<OverlapIndex of {len(self._texts)} texts, redacted>"

    def measure(self, texts: Sequence[str], *, meaning: bool = True) -> list[Overlap]:
        """Measure texts against all records.

        Args:
            texts: Drafts, unscrubbed; each text is scrubbed here where the index has a scrubber.
            meaning: Whether to take the slow measure, the cosine, too.
        """
        cosines = self.cosines(texts).tolist() if meaning else [None] * len(texts)
        return [
            Overlap(run, share, jaccard, cosine)
            for (run, share, jaccard), cosine in zip(self.copying(texts), cosines, strict=True)
        ]

    def copying(self, texts: Sequence[str]) -> list[tuple[int, float, float]]:
        """The first three measures of `Overlap`, which take no model and are fast."""
        forms = [corpus.copying(form) for corpus, form in zip(self._corpora, self._forms(texts), strict=True)]
        return [
            (max(f[0] for f in each), max(f[1] for f in each), max(f[2] for f in each))
            for each in zip(*forms, strict=True)
        ]

    def cosines(self, texts: Sequence[str]) -> np.ndarray:
        """The cosine of `Overlap` for each text, the slow measure.

        Both forms of a text are compared with the raw records only, since names weigh little in an embedding.
        """
        if self._embeddings is None:
            self._embeddings = embed(self._texts)
        raw, *others = self._forms(texts)
        best = max_cosine(embed(raw), self._embeddings)
        for form in others:
            changed = [i for i, (one, other) in enumerate(zip(raw, form, strict=True)) if one != other]
            cosines = max_cosine(embed([form[i] for i in changed]), self._embeddings)
            best[changed] = np.maximum(best[changed], cosines)
        return best

    def _forms(self, texts: Sequence[str]) -> list[list[str]]:
        """The texts raw and, with a scrubber, also scrubbed and without placeholders."""
        if self._scrubber is None:
            return [list(texts)]
        new = [text for text in dict.fromkeys(texts) if text not in self._scrubbed]
        for text, one in zip(new, self._scrubber.scrub_many(new), strict=True):
            self._scrubbed[text] = PLACEHOLDER.sub(" ", one.text)
        return [list(texts), [self._scrubbed[text] for text in texts]]


class _Corpus:
    """Texts in one form: their words in a suffix automaton (Blumer et al. 1985), which knows every run of them."""

    def __init__(self, texts: Sequence[str], ngram: int) -> None:
        self._texts, self._ngram = texts, ngram
        self._ids: dict[str, int] = {}
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length = array("q", [-1]), array("q", [0])
        last = 0
        for number, text in enumerate(texts):
            for word in words(text):
                last = self._extend(last, self._ids.setdefault(word, len(self._ids)))
            # A symbol of its own after each text: no run goes across two of them.
            last = self._extend(last, -1 - number)

    def _extend(self, last: int, symbol: int) -> int:
        state = self._state({}, self._length[last] + 1)
        node = last
        while node != -1 and symbol not in self._next[node]:
            self._next[node][symbol] = state
            node = self._link[node]
        if node == -1:
            self._link[state] = 0
            return state
        target = self._next[node][symbol]
        if self._length[target] != self._length[node] + 1:
            clone = self._state(dict(self._next[target]), self._length[node] + 1)
            self._link[clone], self._link[target] = self._link[target], clone
            while node != -1 and self._next[node].get(symbol) == target:
                self._next[node][symbol] = clone
                node = self._link[node]
            target = clone
        self._link[state] = target
        return state

    def _state(self, transitions: dict[int, int], length: int) -> int:
        self._next.append(transitions)
        self._length.append(length)
        self._link.append(-1)
        return len(self._next) - 1

    def _run_lengths(self, text: str) -> list[int]:
        """For each word of the text, the longest run ending there that some record holds."""
        state = matched = 0
        lengths = []
        for word in words(text):
            symbol = self._ids.get(word)
            if symbol is None:
                state = matched = 0
            else:
                while state and symbol not in self._next[state]:
                    state = self._link[state]
                    matched = self._length[state]
                following = self._next[state].get(symbol)
                state, matched = (following, matched + 1) if following is not None else (0, 0)
            lengths.append(matched)
        return lengths

    def copying(self, texts: Sequence[str]) -> list[tuple[int, float, float]]:
        """(longest run, n-gram share, Jaccard) of each text."""
        found = []
        for text, jaccard in zip(texts, max_jaccard(texts, self._texts), strict=True):
            lengths = self._run_lengths(text)
            n = min(self._ngram, len(lengths))
            ends = lengths[n - 1 :] if n else []
            share = sum(length >= n for length in ends) / len(ends) if ends else 0.0
            found.append((max(lengths, default=0), share, float(jaccard)))
        return found
