"""A word-bigram model of the released texts: are members likelier under it?

It sees the lessons and no model at all. Source: Meeus et al., The Canary's Echo: Auditing Privacy Risks of
LLM-Generated Synthetic Text (ICML 2025); smoothing: Kneser and Ney (1995), interpolated as in Chen and Goodman (1999).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from tutelage.privacy.attacks.base import Controls, Found, Released, Settings
from tutelage.privacy.attacks.membership import judge_texts, whole_text
from tutelage.privacy.similarity import words

DISCOUNT = 0.75
"""Taken from every count and given to what was not counted; Kneser and Ney's usual value."""
_BORDER = ""
"""Begins and ends every text; no word is empty."""


class BigramModel:
    """Words given the word before, by interpolated Kneser-Ney over words, and unseen words as one."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Count the bigrams of `texts`, of which there is at least one."""
        self._pairs = Counter(pair for text in texts for pair in pairwise(_bordered(text)))
        self._contexts: Counter[str] = Counter()
        self._followers: Counter[str] = Counter()
        self._leaders: Counter[str] = Counter()
        for (before, word), count in self._pairs.items():
            self._contexts[before] += count
            self._followers[before] += 1
            self._leaders[word] += 1

    def logprob(self, before: str, word: str) -> float:
        """ln P(word | before). A text's begin and end are the empty word; sums to 1 over seen words and one unseen."""
        types = len(self._pairs)
        unseen = 1 / (len(self._leaders) + 1)
        fresh = (max(self._leaders[word] - DISCOUNT, 0) + DISCOUNT * len(self._leaders) * unseen) / types
        total = self._contexts[before]
        if not total:
            return math.log(fresh)
        kept = max(self._pairs[before, word] - DISCOUNT, 0)
        return math.log((kept + DISCOUNT * self._followers[before] * fresh) / total)

    def mean_logprob(self, text: str) -> float:
        """Mean over the text's words and its end, in nats; finite for every text, the empty one too."""
        pairs = list(pairwise(_bordered(text)))
        return math.fsum(self.logprob(before, word) for before, word in pairs) / len(pairs)


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by `synthetic.ngram`: mean log-likelihood in nats per word. Missing where nothing was released."""
    if not released.texts:
        return judge_texts("synthetic.ngram", controls, None, settings)
    model = BigramModel(released.texts)
    return judge_texts(
        "synthetic.ngram",
        controls,
        lambda examples: [model.mean_logprob(whole_text(example)) for example in examples],
        settings,
    )


def _bordered(text: str) -> list[str]:
    return [_BORDER, *words(text), _BORDER]
