"""A lower bound on ε from one run: how well planted canaries are told from those that a coin left out.

Source: Steinke, Nasr and Jagielski, Privacy Auditing with One (1) Training Run (NeurIPS 2023), algorithm 1 and its
analysis for approximate DP. If everything that was released is (ε, δ)-DP, few guesses of the m coins can be right; so
many that were right mean a larger ε.

**Adjacency.** The bound is on the ε at which *one canary, in all its copies*, is there or is not (add or remove). A
certificate's ε is of replace-by-null, where a removed unit's place stays; a canary that is out leaves no place. The
two are the same only for a mechanism that doesn't look at how many units there are. And where a canary has several
copies, each is a unit, so an ε per canary above the certified one per unit is no contradiction. Canaries of several
silos are audited together, as each is in one silo only: the bound is then on the largest of the silos' ε.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from tutelage.configs.records import Example, Metric
from tutelage.privacy.attacks.base import Controls, Floats, Found, Released, Scorer, Settings
from tutelage.privacy.attacks.membership import contrasts
from tutelage.privacy.attacks.ngram import BigramModel
from tutelage.privacy.canaries import Canary
from tutelage.privacy.similarity import words
from tutelage.privacy.stats import missing_metric, point_metric

CONFIDENCE = 0.95
GUESSES = ((2 / 5, 2 / 5), (1 / 5, 1 / 5), (1 / 10, 1 / 10), (1 / 8, 0), (1 / 24, 0))
"""Shares of the canaries guessed in (the highest scores) and out (the lowest). The first suits a leak of every canary,
the next two a weak one, the last two a leak of a few; more would cost confidence."""
_FEWEST = 7
"""With fewer guesses, all right, no bound is above 0 at a fifth of 5%: 2^-7 < 0.01 < 2^-6."""


def lower_bound(m: int, r: int, v: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest ε that v right guesses of r rule out: what was released is not (ε', δ)-DP for any ε' below it.

    The p-value of an ε is min(1, β + 2mδ max_i (P[Bin(r, q) >= v - i] - β) / i) with q = e^ε / (1 + e^ε) and
    β = P[Bin(r, q) >= v]. It rises with ε, and the bound is where it crosses 1 - confidence.

    Args:
        m: Canaries, each in or out by its own fair coin.
        r: Guesses, as many as were settled before looking at the coins.
        v: How many of them were right.
        delta: δ of the guarantee in question.
        confidence: Of the one-sided bound.

    Returns:
        ε >= 0; 0 where nothing is ruled out.

    Raises:
        ValueError: not 0 <= v <= r <= m, or δ or the confidence is out of range.
    """
    if not (0 <= v <= r <= m and 0 <= delta < 1 and 0 < confidence < 1):
        raise ValueError(f"no audit has m={m}, r={r}, v={v}, delta={delta}, confidence={confidence}")
    return _lower_bound(int(m), int(r), int(v), float(delta), float(confidence))


def ceiling(m: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest bound that m canaries could ever show: all m guessed, and all right."""
    return lower_bound(m, m, m, delta, confidence)


def guess_counts(m: int) -> list[tuple[int, int]]:
    """How many canaries are guessed in, and out: `GUESSES` for m canaries, without those too few to show anything.

    A function of m alone, so the counts are settled before the coins are looked at.
    """
    counts = list(dict.fromkeys((int(m * share_in), int(m * share_out)) for share_in, share_out in GUESSES))
    return [one for one in counts if sum(one) >= _FEWEST] or counts[:1]


def audit(
    name: str, scores: ArrayLike, member_mask: ArrayLike, delta: float, *, internal: bool = False
) -> tuple[Metric, ...]:
    """Guess the coins by the scores, and bound ε by how many guesses are right.

    For each of `guess_counts` the highest scores are guessed in and the lowest out. Each count gets an equal part of
    the 5%, and the best bound counts: it is too high with probability 5% at most, whatever the scores are, so long as
    they are computed from what was released and the canaries, and not from the coins.
    Among equal scores the wrong guesses are taken first. That can only lower the bound, and keeps it valid where the
    canaries come sorted by their coins.

    Args:
        name: The metrics' first part.
        scores: `(m,)`, higher = more as if planted.
        member_mask: `(m,)`, True where the coin put the canary in.
        delta: δ of the guarantee in question.
        internal: Whether the scores are of real private records.

    Returns:
        `NAME.epsilon_low`, the bound; its interval is one-sided, up to infinity, so a gate rule on `ci_high` refuses:
        no audit shows that ε is small. `NAME.epsilon_ceiling`: what it would be if all guesses were right. Both
        missing where a score is NaN or one side has no canary.

    Raises:
        ValueError: scores and mask differ in shape.
    """
    scores, member = np.asarray(scores, dtype=np.float64), np.asarray(member_mask, dtype=bool)
    if scores.shape != member.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and coins {member.shape} must be of one length")
    m = len(scores)
    low_name, ceiling_name = f"{name}.epsilon_low", f"{name}.epsilon_ceiling"
    if m == 0 or np.isnan(scores).any() or member.all() or not member.any():
        return missing_metric(low_name, n=m, internal=internal), missing_metric(ceiling_name, n=m, internal=internal)
    counts = guess_counts(m)
    each = 1 - (1 - CONFIDENCE) / len(counts)
    bound = max(lower_bound(m, k + j, right_guesses(scores, member, k, j), delta, each) for k, j in counts)
    top = max(lower_bound(m, k + j, k + j, delta, each) for k, j in counts)
    low = Metric(
        name=low_name,
        value=bound,
        ci_low=bound,
        ci_high=math.inf,
        n=m,
        interval=f"95% one-sided, Steinke et al., at delta {delta:.3g}",
        internal=internal,
    )
    return low, point_metric(ceiling_name, top, m, "what all guesses right would show", internal=internal)


def right_guesses(scores: Floats, member: np.ndarray, highest: int, lowest: int) -> int:
    """How many are right if the highest scores are guessed in and the lowest out; among equal ones the wrong first."""
    # lexsort's last key is the first to sort by
    top = np.lexsort((member, -scores))[:highest]
    bottom = np.lexsort((~member, scores))[:lowest]
    return int(member[top].sum() + (~member[bottom]).sum())


def attack(released: Released, controls: Controls, settings: Settings, *, delta: float) -> Found:
    """Bound ε from below by the student and by the lessons' texts, each for itself.

    A canary's score is a contrast: what its true candidate has, less the mean of a few of its other candidates. Each
    bound holds with 95% by itself, so that both do, with 90%.

    Args:
        released: Student, base and texts.
        controls: Its canaries.
        settings: Not used: nothing here is drawn.
        delta: δ of the guarantee in question; where none is claimed, any small one.

    Returns:
        `audit.student.*` by the log-likelihood that the student adds to the canary's text over its base, and
        `audit.lessons.*` by the longest run of the secret's words that stands in a lesson and, where that is equal,
        its likelihood under a bigram model of the lessons. Missing without a student, or without lessons.
    """
    canaries, student = controls.canaries, released.student
    mask = [canary.member for canary in canaries]
    nothing = np.full(len(canaries), np.nan)
    by_student = nothing if student is None else student_scores(canaries, student, released.base)
    by_lessons = lesson_scores(canaries, released.texts) if released.texts else nothing
    return Found((*audit("audit.student", by_student, mask, delta), *audit("audit.lessons", by_lessons, mask, delta)))


def student_scores(canaries: Sequence[Canary], student: Scorer, base: Scorer) -> Floats:
    """`(canaries,)`: nats that student adds over base to each canary's true text, less the mean of a few others'."""

    def gain(examples: Sequence[Example]) -> Floats:
        after, before = (np.array([one.logprobs.sum() for one in model.score(examples)]) for model in (student, base))
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and NaN is missing
            return after - before

    return contrasts(canaries, _as_trained, gain)


def lesson_scores(canaries: Sequence[Canary], texts: Sequence[str]) -> Floats:
    """`(canaries,)`: ranks of the canaries by the words they share with lessons, then by bigram likelihood, from 0.

    Both are contrasts to other candidates, so that words of the sentence's form count for nothing.
    """
    model = BigramModel(texts)

    def runs(examples: Sequence[Example]) -> Floats:
        return np.array(longest_runs([example.completion for example in examples], texts), dtype=np.float64)

    def likelihoods(examples: Sequence[Example]) -> Floats:
        return np.array([model.mean_logprob(example.completion) for example in examples])

    first, second = (contrasts(canaries, _secret_alone, gain) for gain in (runs, likelihoods))
    keys = np.stack([first, second], axis=1).reshape(len(canaries), 2)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.float64)


def longest_runs(sentences: Sequence[str], texts: Sequence[str]) -> list[int]:
    """For each sentence the longest run of its words that stands in one of the texts (any case and punctuation)."""
    rows = [words(text) for text in texts]
    # no word holds white space, so a run can neither begin inside a word nor cross from one text into the next
    haystack = "\n".join(f" {' '.join(row)} " for row in rows)
    vocabulary, pairs = {word for row in rows for word in row}, {pair for row in rows for pair in pairwise(row)}
    return [_longest_run(words(sentence), haystack, vocabulary, pairs) for sentence in sentences]


def _longest_run(sentence: list[str], haystack: str, vocabulary: set[str], pairs: set[tuple[str, str]]) -> int:
    best = start = 0
    for end, word in enumerate(sentence, 1):
        if word not in vocabulary:
            start = end
        elif end - start > 1 and (sentence[end - 2], word) not in pairs:
            start = end - 1
        # a longer run than the best is all that is looked for
        while end - start > best and f" {' '.join(sentence[start:end])} " not in haystack:
            start += 1
        best = max(best, end - start)
    return best


def _as_trained(canary: Canary, index: int) -> Example:
    text = canary.texts()[index]
    if canary.kind == "classification":
        return Example(id=canary.id, prompt=text, completion=canary.label)
    prompt = canary.record(canary.id).text
    return Example(id=canary.id, prompt=prompt, completion=text.removeprefix(f"{prompt}\n\n"))


def _secret_alone(canary: Canary, index: int) -> Example:
    return Example(id=canary.id, prompt="", completion=canary.candidates[index])


@lru_cache(maxsize=4096)
def _lower_bound(m: int, r: int, v: int, delta: float, confidence: float) -> float:
    def refuted(epsilon: float) -> bool:
        return _p_value(m, r, v, delta, epsilon) <= 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _p_value(m: int, r: int, v: int, delta: float, epsilon: float) -> float:
    from scipy.special import expit
    from scipy.stats import binom

    q = expit(epsilon)
    beta = float(binom.sf(v - 1, r, q))
    steps = np.arange(1, v + 1)
    alpha = np.max((binom.sf(v - 1 - steps, r, q) - beta) / steps, initial=0.0)
    return min(1.0, beta + 2 * m * delta * float(alpha))
