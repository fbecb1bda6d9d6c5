"""How much of a draft is copied from the silo's own records.

Four measures, each the worst over all records: the longest common run of words, the share of the draft's word n-grams
that some record holds, the word 3-gram Jaccard (near-duplicates) and the cosine of sentence embeddings (meaning).

A teacher may copy a record and swap the names, so drafts and records are compared twice: raw with raw, and scrubbed
with scrubbed, where the placeholders are left out altogether. A placeholder thus neither breaks a run nor counts as a
copied word, and `<PERSON>` here against `<PHONE_NUMBER>` there makes no difference. The worse figure counts.

Records are many and drafts are few: what is held in memory is the drafts' words, and the records go past them once, so
time grows with the records and memory doesn't.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tutelage.configs.lazy import parts
from tutelage.privacy.pii import PLACEHOLDER, Scrubber
from tutelage.privacy.similarity import Jaccards, embed, max_cosine, words
from tutelage.privacy.vault import PrivateRecord

_AT_A_TIME = 256
"""Records that are held at once."""


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


def indexed_texts(records: Sequence[PrivateRecord], public_completions: frozenset[str] = frozenset()) -> Iterator[str]:
    """The texts that drafts are compared with: every prompt in order, then every completion that is not public."""
    yield from (one.text for one in records)
    yield from (one.completion for one in records if one.completion and one.completion not in public_completions)


def scrub(texts: Iterable[str], scrubber: Scrubber | None) -> Iterator[str]:
    """Each text with placeholders, where there is a scrubber; as they are asked for."""
    for part in parts(texts, _AT_A_TIME):
        different = list(dict.fromkeys(part))
        known = dict(zip(different, scrubber.scrub_many(different), strict=True)) if scrubber else {}
        yield from (known[text].text if scrubber else text for text in part)


class Corpus:
    """One silo's records, as what texts are measured against.

    Args:
        records: The silo's records. They are gone through for each call of a method, a part of them at a time.
        ngram: Words per n-gram of `ngram_share`.
        scrubber: Compare the scrubbed forms too; None: the raw ones only.
        public_completions: Completions that are no private text, such as the labels of a classification task. Every
            other completion is a text of its own beside its prompt.
        embeddings: (texts, 384) of `indexed_texts`, where they have been computed before; embedding is slow, some
            25 texts a second on one core.
        scrubbed: `indexed_texts` as the scrubber left them, where that has been done before.

    Raises:
        ValueError: `embeddings` or `scrubbed` are not one for each indexed text.
    """

    def __init__(
        self,
        records: Sequence[PrivateRecord],
        *,
        ngram: int = 8,
        scrubber: Scrubber | None = None,
        public_completions: frozenset[str] = frozenset(),
        embeddings: np.ndarray | None = None,
        scrubbed: Sequence[str] | None = None,
    ) -> None:
        self._records, self._public, self._ngram = records, public_completions, ngram
        self._scrubber, self._scrubbed = scrubber, scrubbed
        self._embeddings = embeddings
        given = {"embeddings": embeddings, "scrubbed texts": scrubbed}
        texts = sum(1 for _ in self._texts()) if any(one is not None for one in given.values()) else 0
        for what, one in given.items():
            if one is not None and len(one) != texts:
                raise ValueError(f"{len(one)} {what} were given for {texts} indexed texts")

    def __repr__(self) -> str:
        return f"<Corpus of {len(self._records)} records, redacted>"

    def measure(self, texts: Sequence[str], *, meaning: bool = True) -> list[Overlap]:
        """Measure texts against all records.

        Args:
            texts: Drafts, unscrubbed; each text is scrubbed here where the corpus has a scrubber.
            meaning: Whether to take the slow measure, the cosine, too.
        """
        cosines = self.cosines(texts).tolist() if meaning else [None] * len(texts)
        return [
            Overlap(run, share, jaccard, cosine)
            for (run, share, jaccard), cosine in zip(self.copying(texts), cosines, strict=True)
        ]

    def copying(self, texts: Sequence[str]) -> list[tuple[int, float, float]]:
        """The first three measures of `Overlap`, which take no model and are fast."""
        raw, *others = (_Drafts(form, self._ngram) for form in self._forms(texts))
        scrubbed = iter(scrub(self._texts(), self._scrubber) if self._scrubbed is None else self._scrubbed)
        for part in parts(self._texts(), _AT_A_TIME):
            raw.compare(part)
            for other in others:
                other.compare([PLACEHOLDER.sub(" ", text) for text in islice(scrubbed, len(part))])
        forms = [raw.found(), *(other.found() for other in others)]
        return [
            (max(f[0] for f in each), max(f[1] for f in each), max(f[2] for f in each))
            for each in zip(*forms, strict=True)
        ]

    def cosines(self, texts: Sequence[str]) -> np.ndarray:
        """The cosine of `Overlap` for each text, the slow measure.

        Both forms of a text are compared with the raw records only, since names weigh little in an embedding.
        """
        if self._embeddings is None:
            self._embeddings = embed(list(self._texts()))
        raw, *others = self._forms(texts)
        best = max_cosine(embed(raw), self._embeddings)
        for form in others:
            changed = [i for i, (one, other) in enumerate(zip(raw, form, strict=True)) if one != other]
            cosines = max_cosine(embed([form[i] for i in changed]), self._embeddings)
            best[changed] = np.maximum(best[changed], cosines)
        return best

    def _texts(self) -> Iterator[str]:
        return indexed_texts(self._records, self._public)

    def _forms(self, texts: Sequence[str]) -> list[list[str]]:
        """The texts raw and, with a scrubber, also scrubbed and without placeholders."""
        if self._scrubber is None:
            return [list(texts)]
        return [list(texts), [PLACEHOLDER.sub(" ", text) for text in scrub(texts, self._scrubber)]]


class _Drafts:
    """Texts in one form, and how much of each was in any of those that they were compared with.

    Their words are in a suffix automaton (Blumer et al. 1985): each of its states stands for the runs of words that
    end at the same places, the shortest one word longer than the longest of its link. Another text is followed through
    it word by word, and leaves at each state how long a run of it was.
    """

    def __init__(self, texts: Sequence[str], ngram: int) -> None:
        self._ngram, self._jaccards = ngram, Jaccards(texts)
        self._ids: dict[str, int] = {}
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length = [-1], [0]
        self._ends: list[list[int]] = []
        last = 0
        for number, text in enumerate(texts):
            ends = []
            for word in words(text):
                last = self._extend(last, self._ids.setdefault(word, len(self._ids)))
                ends.append(last)
            self._ends.append(ends)
            # A symbol of its own after each text: no run goes across two of them.
            last = self._extend(last, -1 - number)
        self._held = [0] * len(self._link)
        """State -> the longest of its runs that a text was seen to hold when it was there."""

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

    def compare(self, texts: Sequence[str]) -> None:
        """Let some texts go past."""
        tokens = [words(text) for text in texts]
        self._jaccards.compare(tokens)
        ids, following, link, length, held = self._ids, self._next, self._link, self._length, self._held
        for one in tokens:
            state = run = 0
            for word in one:
                symbol = ids.get(word)
                if symbol is None:
                    state = run = 0
                    continue
                while state and symbol not in following[state]:
                    state = link[state]
                    run = length[state]
                state = following[state].get(symbol, 0)
                if state:
                    run += 1
                    if run > held[state]:
                        held[state] = run

    def found(self) -> list[tuple[int, float, float]]:
        """(longest run, n-gram share, Jaccard) of each text."""
        held, by_length = list(self._held), sorted(range(1, len(self._held)), key=self._length.__getitem__)
        for state in reversed(by_length):  # what ends with a longer run ends with all of the shorter ones
            if held[state]:
                held[self._link[state]] = self._length[self._link[state]]
        for state in by_length:  # where none of a state's runs was held, the longest that was is its link's
            held[state] = held[state] or held[self._link[state]]
        return [
            (*self._copied([held[state] for state in ends]), float(jaccard))
            for ends, jaccard in zip(self._ends, self._jaccards.best, strict=True)
        ]

    def _copied(self, lengths: Sequence[int]) -> tuple[int, float]:
        """(longest run, n-gram share) of a text.

        Args:
            lengths: For each word of the text, the longest run ending there that some record holds.
        """
        n = min(self._ngram, len(lengths))
        ends = lengths[n - 1 :] if n else []
        share = sum(length >= n for length in ends) / len(ends) if ends else 0.0
        return max(lengths, default=0), share
