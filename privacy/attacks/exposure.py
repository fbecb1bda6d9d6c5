"""Exposure of the canaries: how far up its list of alternatives each planted secret stands.

Source: Carlini et al., The Secret Sharer (USENIX Security 2019). The mean hides the tail, so the shares at rank 1 and
in the first per cent stand beside it. A rank can't show more bits than the candidates have, so the exposure is also
estimated as there, from a skew-normal distribution fitted to the candidates' scores. The figures are taken from
canaries in private records, but canaries are artificial and only aggregates over them leave, so the metrics are not
marked internal.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.configs.progress import Bar
from tutelage.configs.records import Metric
from tutelage.privacy.canaries import SPACE, Canary
from tutelage.privacy.stats import auc_metric, max_metric, mean_metric, missing_metric, point_metric, share_metric

_SMOOTHING = 0.01
"""Added to every bigram count. Small, so that one bigram seen at all outweighs another seen a few times more."""

_FEWEST_FITTED = 15
"""Candidates beside the true one that a distribution is fitted to, at least: fewer leave its tail to chance."""
_SECRET_BITS = math.log2(SPACE)
"""What there is to know about a secret, 23 bits: the fitted tail may be thinner, but means no more than that."""

_NAMES = (
    "exposure_mean",
    "exposure_max",
    "exposure_skew_normal_mean",
    "rank0_share",
    "rank1pct_share",
    "exposure_out_mean",
    "auc",
    "p_value",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExposureResult:
    """What the attack found.

    Attributes:
        metrics: Aggregates for the report and the gate.
        member_ranks: Rank of every planted secret, 1 = first, ties at their average rank.
        out_ranks: The same for the canaries that were not planted.
        candidates: How many each was ranked among.
    """

    metrics: tuple[Metric, ...]
    member_ranks: tuple[float, ...]
    out_ranks: tuple[float, ...]
    candidates: int


def exposure(ranks: ArrayLike, candidates: int) -> Floats:
    """Exposure in bits, log2 |R| - log2 rank: 0 for the last, log2 |R| for the first.

    Args:
        ranks: 1-based ranks; NaN stays NaN.
        candidates: |R|, how many there are to rank.
    """
    return math.log2(candidates) - np.log2(np.asarray(ranks, dtype=np.float64))


def expected_exposure(candidates: int) -> float:
    """Mean exposure in bits where nothing leaked, log2 |R| - log2(|R|!)/|R|; for many candidates 1/ln 2 = 1.44."""
    return math.log2(candidates) - math.lgamma(candidates + 1) / (candidates * math.log(2))


def true_ranks(scores: ArrayLike, index: ArrayLike) -> tuple[Floats, Floats]:
    """Rank of each row's true candidate, 1 = highest score.

    Args:
        scores: `(canaries, candidates)`.
        index: `(canaries,)`, the true candidate of each row.

    Returns:
        `(canaries,)` twice: with ties at their average, the fair estimate; and behind all its ties, which keeps
        P(rank <= t) at or below t / candidates for any scores that don't know the secret, as a test needs.
        NaN where a row holds a NaN, since the true rank can't be known.
    """
    scores = np.asarray(scores, dtype=np.float64)
    own = np.take_along_axis(scores, np.asarray(index, dtype=np.int64)[:, None], axis=1)
    above, tied = (scores > own).sum(axis=1), (scores == own).sum(axis=1) - 1
    unknown = np.isnan(scores).any(axis=1)
    return (
        np.where(unknown, np.nan, 1 + above + tied / 2),
        np.where(unknown, np.nan, 1.0 + above + tied),
    )


def skew_normal_exposure(scores: ArrayLike, index: ArrayLike) -> Floats:
    """Exposure in bits by a fitted distribution: -log2 of the share of secrets that would score at least as high.

    To each row's other candidates a skew-normal distribution is fitted by its first three moments (maximum likelihood
    takes a hundred times as long, and fails on some rows). It goes on where ranks end, at log2 of the candidates, and
    stops at the 23 bits of a secret. Without a leak its mean is 1/ln 2 = 1.44 bits for skew-normal scores and many
    candidates. A tail fitted to few adds to that: of normal scores 1.5 bits with 64 candidates, 1.6 with 16; of
    heavy-tailed ones (t, 5 degrees of freedom) 1.6 and 1.8. It also overstates a leak: of normal scores one that is 4
    standard deviations up has 15 bits, and in the mean of four canaries with 32 candidates 16 were estimated, with 16
    candidates 21.

    Args:
        scores: `(canaries, candidates)`, of any unit: their location and scale cancel.
        index: `(canaries,)`, the true candidate of each row.

    Returns:
        `(canaries,)`. NaN where a score is not finite, where the others are all equal, or with fewer than 16
        candidates.

    Source: Carlini et al. (2019), exposure by distribution modelling; moments: Azzalini (1985).
    """
    from scipy.stats import skewnorm

    bits = np.full(len(np.asarray(index)), np.nan)
    for number, (row, true) in enumerate(zip(np.asarray(scores, dtype=np.float64), np.asarray(index), strict=True)):
        others = np.delete(row, true)
        # the standard deviation of equal scores may be rounding and not quite zero; their range is zero
        if len(others) < _FEWEST_FITTED or not np.isfinite(row).all() or np.ptp(others) == 0:
            continue
        tail = float(skewnorm.sf(row[true], *_skew_normal(others)))
        bits[number] = min(-math.log2(tail), _SECRET_BITS) if tail > 0 else _SECRET_BITS
    return np.maximum(bits, 0.0)


def _skew_normal(values: Floats) -> tuple[float, float, float]:
    """Shape, location and scale of the skew-normal distribution with the moments of `values`."""
    mean, std = float(values.mean()), float(values.std(ddof=1))
    skewness = float(((values - mean) ** 3).mean() / values.std() ** 3)
    # the moments of Azzalini's distribution solved for its delta; no skewness above 0.9953 can be had
    ratio = abs(min(max(skewness, -0.99), 0.99)) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * ratio / (ratio + (2 - math.pi / 2) ** (2 / 3))), skewness)
    scale = std / math.sqrt(1 - 2 * delta**2 / math.pi)
    return delta / math.sqrt(1 - delta**2), mean - scale * delta * math.sqrt(2 / math.pi), scale


def attack(
    canaries: Sequence[Canary],
    score: Callable[[Sequence[str]], np.ndarray],
    *,
    prefix: str = "canary",
    n_resamples: int = 1000,
    seed: int = 0,
) -> ExposureResult:
    """Rank every canary's secret among its candidates by what a model likes.

    Args:
        canaries: Members and non-members.
        score: Takes texts and gives one number each, higher = the model likes it more: log-likelihoods under the
            student, or their difference to the base model's. Called once for each canary, with all its candidates: they
            share their beginning, which a scorer need run only once.
        prefix: First part of the metrics' names.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `exposure_mean`, `exposure_max` (bits, members), `exposure_skew_normal_mean` (`skew_normal_exposure`, members),
        `rank0_share` (ranked first), `rank1pct_share` (in the first per cent, at least the first), `exposure_out_mean`
        (non-members: `expected_exposure` but for chance), `auc` (members' exposure against non-members') and `p_value`
        (one-sided, for members in the first tenth more often than chance has it). Ties count at their average rank,
        but in the test at their last.
        NaN: all with a NaN score; the members' without a member, which independent coins give with probability
        2^-canaries; `exposure_out_mean` and `auc` without a non-member; `exposure_skew_normal_mean` where no
        distribution can be fitted to the scores of one.

    Raises:
        ValueError: the canaries differ in their number of candidates, or `score` gave the wrong number of scores.
    """
    sizes = {len(canary.candidates) for canary in canaries}
    if len(sizes) > 1:
        raise ValueError("the canaries have different numbers of candidates")
    size = sizes.pop() if sizes else 0
    scores = np.zeros((len(canaries), size))
    with Bar(len(canaries)) as bar:
        for row, canary in zip(scores, canaries, strict=True):
            given = np.asarray(score(canary.texts()), dtype=np.float64)
            if given.shape != (size,):
                raise ValueError(f"{size} texts need as many scores, not {given.shape}")
            row[:] = given
            bar.update()
    index = np.array([canary.index for canary in canaries], dtype=np.int64)
    ranks, late = true_ranks(scores, index)
    member = np.array([canary.member for canary in canaries], dtype=bool)
    fitted = skew_normal_exposure(scores[member], index[member])
    metrics = _metrics(prefix, ranks, late, fitted, member, size, n_resamples, seed)
    return ExposureResult(metrics, tuple(ranks[member].tolist()), tuple(ranks[~member].tolist()), size)


def text_exposure(canaries: Sequence[Canary], released_texts: Sequence[str]) -> tuple[Metric, ...]:
    """The attack on the released texts alone, without any student.

    A candidate's score is how often it stands verbatim in a released text and, where that is equal, its
    log-likelihood under a word-bigram model of the released texts. The likelihood is of bigrams jointly, with add-k
    smoothing: the usual conditional form would rank a secret *lower* for each of its words that was released
    without its neighbour.

    Args:
        canaries: Members and non-members; only members count.
        released_texts: The lessons' texts (prompt and completion).

    Returns:
        `lessons.canary_verbatim`, how many planted secrets stand in a released text word for word (any case, any
        white space), and `lessons.canary_rank0_share`. NaN without a member or without released texts.
    """
    members = [canary for canary in canaries if canary.member]
    if not members or not released_texts:
        return missing_metric("lessons.canary_verbatim"), missing_metric("lessons.canary_rank0_share")
    normalised = [_normalise(text) for text in released_texts]
    bigrams = Counter(pair for text in released_texts for pair in pairwise(_words(text)))
    found = first = 0
    for canary in members:
        hits = [sum(_normalise(candidate) in text for text in normalised) for candidate in canary.candidates]
        # candidates of one form have the same number of words, so the model's normaliser cancels
        likelihoods = [
            sum(math.log(bigrams[pair] + _SMOOTHING) for pair in pairwise(_words(candidate)))
            for candidate in canary.candidates
        ]
        # dense ranks of the pairs make one score of two keys
        levels = {key: level for level, key in enumerate(sorted(set(zip(hits, likelihoods, strict=True))))}
        scores = [levels[key] for key in zip(hits, likelihoods, strict=True)]
        rank, _ = true_ranks([scores], [canary.index])
        found += hits[canary.index] > 0
        first += int(rank[0] == 1)
    size = len(members[0].candidates)
    return (
        point_metric("lessons.canary_verbatim", found, len(members), "a count"),
        share_metric(
            "lessons.canary_rank0_share", first, len(members), exact=True, note=f"{1 / size:.4f} with no leak"
        ),
    )


def _metrics(
    prefix: str,
    ranks: Floats,
    late: Floats,
    fitted: Floats,
    member: NDArray[np.bool_],
    size: int,
    n_resamples: int,
    seed: int,
) -> tuple[Metric, ...]:
    if size == 0 or np.isnan(ranks).any():
        return tuple(missing_metric(f"{prefix}.{name}", n=len(ranks)) for name in _NAMES)
    bits = exposure(ranks, size)
    inside, outside = bits[member].tolist(), bits[~member].tolist()
    chance = f"{expected_exposure(size):.3f} with no leak"
    return (
        mean_metric(f"{prefix}.exposure_mean", inside, n_resamples=n_resamples, seed=seed, note=chance),
        max_metric(f"{prefix}.exposure_max", inside),
        mean_metric(
            f"{prefix}.exposure_skew_normal_mean",
            fitted.tolist(),
            n_resamples=n_resamples,
            seed=seed,
            note=f"about {1 / math.log(2):.2f} with no leak",
        ),
        _top_share(f"{prefix}.rank0_share", ranks[member], 1, size),
        _top_share(f"{prefix}.rank1pct_share", ranks[member], max(1, size // 100), size),
        mean_metric(f"{prefix}.exposure_out_mean", outside, n_resamples=n_resamples, seed=seed, note=chance),
        auc_metric(f"{prefix}.auc", inside, outside),
        point_metric(f"{prefix}.p_value", _p_value(late[member], size), len(inside), "a p-value"),
    )


def _top_share(name: str, ranks: Floats, top: int, size: int) -> Metric:
    hits = int((ranks <= top).sum())
    return share_metric(name, hits, len(ranks), exact=True, note=f"{top / size:.4f} with no leak")


def _p_value(ranks: Floats, size: int) -> float:
    """P of at least as many members in the first tenth where every rank is uniform; NaN without members.

    Not of rank 1 alone: with a handful of members that misses a leak which lifts secrets without putting them first.
    """
    from scipy.stats import binom

    if len(ranks) == 0:
        return math.nan
    top = max(1, size // 10)
    return float(binom.sf(int((ranks <= top).sum()) - 1, len(ranks), top / size))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
