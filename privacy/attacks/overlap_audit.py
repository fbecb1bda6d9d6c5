"""Overlap of the released set with the silos' records, for the report and the gate.

Each silo measures the whole released set against its own records and hands over what `summarise` makes of it: counts
and maxima, no texts and no figure of a single lesson. `combine` puts the silos' summaries together. All of it is an
unprotected function of private records, so every metric is internal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tutelage.configs.records import Metric
from tutelage.privacy.stats import max_metric, missing_metric, share_metric

if TYPE_CHECKING:
    from tutelage.privacy.overlap import Overlap

NEAR_DUPLICATE_JACCARD = 0.5
"""A lesson at least this similar to a record is its near-duplicate."""


def summarise(overlaps: Sequence[Overlap]) -> dict[str, float | int]:
    """One silo's aggregates.

    Args:
        overlaps: One for each released lesson: its overlap with this silo's records.

    Returns:
        `n` (lessons), `longest_run_max` (tokens), `ngram_hits` (lessons sharing an n-gram), `near_duplicates`
        (lessons) and, where it was measured, `cosine_max`. A figure is NaN where a lesson's is NaN, or where there are
        no lessons.
    """
    columns = {
        name: np.array([getattr(overlap, name) for overlap in overlaps], dtype=np.float64)
        for name in ("longest_run_tokens", "ngram_share", "jaccard")
    }
    figures: dict[str, float | int] = {
        "n": len(overlaps),
        "longest_run_max": _largest(columns["longest_run_tokens"]),
        "ngram_hits": _count(columns["ngram_share"], columns["ngram_share"] > 0),
        "near_duplicates": _count(columns["jaccard"], columns["jaccard"] >= NEAR_DUPLICATE_JACCARD),
    }
    if any(overlap.cosine is not None for overlap in overlaps):
        cosines = np.array([overlap.cosine for overlap in overlaps], dtype=np.float64)  # None becomes NaN
        figures["cosine_max"] = _largest(cosines)
    return figures


def combine(summaries: Mapping[str, Mapping[str, float | int]]) -> tuple[Metric, ...]:
    """All silos' overlap with the released set.

    Which lessons a silo counted is not handed over, so a lesson that hits two silos counts twice here: the two shares
    are upper bounds, exact where no lesson hits more than one silo.

    Args:
        summaries: Silo -> what `summarise` returned there.

    Returns:
        `overlap.longest_run_max`, `overlap.ngram_share`, `overlap.near_duplicate_share` and, where any silo measured
        it, `overlap.cosine_max`, all internal. All NaN without silos or lessons, or where silos measured different
        numbers of lessons; one is NaN where a silo's figure is missing or NaN.
    """
    sizes = {summary.get("n", 0) for summary in summaries.values()}
    n = int(sizes.pop()) if len(sizes) == 1 else 0

    def figures(key: str) -> list[float]:
        return [float(summary.get(key, math.nan)) for summary in summaries.values()] if n else []

    def largest(name: str, key: str) -> Metric:
        return max_metric(name, figures(key), internal=True).model_copy(update={"n": n})

    metrics = [
        largest("overlap.longest_run_max", "longest_run_max"),
        _upper_share("overlap.ngram_share", figures("ngram_hits"), n),
        _upper_share("overlap.near_duplicate_share", figures("near_duplicates"), n),
    ]
    if any("cosine_max" in summary for summary in summaries.values()):
        metrics.append(largest("overlap.cosine_max", "cosine_max"))
    return tuple(metrics)


def _upper_share(name: str, hits: list[float], n: int) -> Metric:
    total = sum(hits)
    if n == 0 or math.isnan(total):
        return missing_metric(name, n=n, internal=True)
    return share_metric(name, min(int(total), n), n, internal=True, note="an upper bound over silos")


def _largest(values: NDArray[np.float64]) -> float:
    return float(values.max()) if values.size else math.nan


def _count(values: NDArray[np.float64], condition: NDArray[np.bool_]) -> float | int:
    # NaN compares false, which would count an unmeasured lesson as harmless
    return math.nan if values.size == 0 or np.isnan(values).any() else int(condition.sum())
