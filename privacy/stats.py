"""Intervals, and the metrics that carry them.

Everything that `privacy` measures leaves as a `Metric` made here, so that an interval always says how it was made and
a figure that could not be measured is NaN, which the gate refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tutelage.configs.records import Metric

_Z95 = 1.959963984540054  # two-sided 95% point of the standard normal


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share: right on average over shares, and short.

    Args:
        k: How many of the items had the property.
        n: How many items there were.
        confidence: Two-sided confidence level.

    Returns:
        Lower and upper bound; NaN both for `n = 0`, because nothing was measured.

    Raises:
        ValueError: `k` is not within 0..n.

    Source: Wilson (1927), through scipy.
    """
    return _share_interval(k, n, confidence, "wilson")


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval: never covers less than it says, so fit for leaks and small counts.

    Args, returns, raises: as `wilson`.

    Source: Clopper and Pearson (1934), through scipy.
    """
    return _share_interval(k, n, confidence, "exact")


def _share_interval(k: int, n: int, confidence: float, method: str) -> tuple[float, float]:
    from scipy.stats import binomtest

    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a share")
    if n == 0:
        return math.nan, math.nan
    interval = binomtest(k, n).proportion_ci(confidence_level=confidence, method=method)
    # rounding inside scipy may leave the estimate itself outside by one part in 1e16
    return min(float(interval.low), k / n), max(float(interval.high), k / n)


def bootstrap_mean(values: Sequence[float], n_resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95% percentile-bootstrap interval. Somewhat too short below about ten values.

    Args:
        values: One number per item.
        n_resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        Mean, lower and upper bound. All NaN for no values or where one isn't finite. For a single value the bounds
        are infinite: its spread is unknown, so a gate rule on a bound refuses and one on the value may still hold.
    """
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        return math.nan, math.nan, math.nan
    mean = float(data.mean())
    if data.size == 1:
        return mean, -math.inf, math.inf
    interval = bootstrap(
        (data,),
        np.mean,
        n_resamples=n_resamples,
        batch=max(1, 1_000_000 // data.size),  # bounds memory to 8 MB per copy
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return mean, min(float(interval.low), mean), max(float(interval.high), mean)


def auc(positives: Sequence[float], negatives: Sequence[float]) -> tuple[float, float, float]:
    """Area under the ROC curve and its 95% interval.

    The interval solves (θ̂ - θ)² = z² V(θ) with Hanley and McNeil's variance V taken at θ, not at the estimate: unlike
    a bootstrap it stays honest when a few items are separated perfectly.

    Args:
        positives: Scores of the items that should be high.
        negatives: Scores of the others.

    Returns:
        AUC (ties count half), lower and upper bound; all NaN where a side is empty or a score is NaN.

    Source: Newcombe (2006), Statistics in Medicine 25, part 2, method 5.
    """
    from scipy.optimize import brentq
    from scipy.stats import rankdata

    m, n = len(positives), len(negatives)
    scores = np.concatenate([np.asarray(positives, dtype=np.float64), np.asarray(negatives, dtype=np.float64)])
    if m == 0 or n == 0 or np.isnan(scores).any():
        return math.nan, math.nan, math.nan
    area = float((rankdata(scores)[:m].sum() - m * (m + 1) / 2) / (m * n))

    def excess(theta: float) -> float:
        half = (m + n) / 2 - 1
        variance = theta * (1 - theta) * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)) / (m * n)
        return (area - theta) ** 2 - _Z95**2 * variance

    tiny = 1e-9  # steps off the trivial roots at an area of exactly 0 or 1
    low = 0.0 if area <= tiny else float(brentq(excess, 0.0, min(area, 1 - tiny)))
    high = 1.0 if area >= 1 - tiny else float(brentq(excess, max(area, tiny), 1.0))
    return area, low, high


def missing_metric(name: str, *, n: int = 0, internal: bool = False) -> Metric:
    """A figure that could not be measured: NaN, which every gate rule refuses."""
    nan = math.nan
    return Metric(name=name, value=nan, ci_low=nan, ci_high=nan, n=n, interval="none: not measured", internal=internal)


def share_metric(name: str, k: int, n: int, *, internal: bool = False, exact: bool = False, note: str = "") -> Metric:
    """A share of `n` items with its 95% interval: Wilson's, or with `exact` Clopper and Pearson's.

    Args:
        name: The metric's dotted name.
        k: How many items had the property.
        n: How many there were; 0 gives a missing metric.
        internal: Whether it was computed from private records without protection.
        exact: Whether to use the exact interval.
        note: Added to the interval's description, e.g. what chance would give.
    """
    if n == 0:
        return missing_metric(name, internal=internal)
    low, high = clopper_pearson(k, n) if exact else wilson(k, n)
    method = "95% Clopper-Pearson" if exact else "95% Wilson"
    return Metric(
        name=name, value=k / n, ci_low=low, ci_high=high, n=n, interval=_noted(method, note), internal=internal
    )


def mean_metric(
    name: str,
    values: Sequence[float],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    internal: bool = False,
    note: str = "",
) -> Metric:
    """A mean with its 95% bootstrap interval; see `bootstrap_mean` for none and for one value."""
    mean, low, high = bootstrap_mean(values, n_resamples, seed)
    if math.isnan(mean):
        return missing_metric(name, n=len(values), internal=internal)
    method = f"95% bootstrap ({n_resamples})" if len(values) > 1 else "none: a single value"
    return Metric(
        name=name,
        value=mean,
        ci_low=low,
        ci_high=high,
        n=len(values),
        interval=_noted(method, note),
        internal=internal,
    )


def auc_metric(name: str, positives: Sequence[float], negatives: Sequence[float], *, internal: bool = False) -> Metric:
    """An area under the ROC curve with its interval; see `auc`."""
    area, low, high = auc(positives, negatives)
    n = len(positives) + len(negatives)
    if math.isnan(area):
        return missing_metric(name, n=n, internal=internal)
    return Metric(name=name, value=area, ci_low=low, ci_high=high, n=n, interval="95% Newcombe", internal=internal)


def point_metric(name: str, value: float, n: int, what: str, *, internal: bool = False) -> Metric:
    """A figure that has no interval; `what` says why: `a maximum`, `a count`, `a p-value`."""
    if math.isnan(value):
        return missing_metric(name, n=n, internal=internal)
    return Metric(name=name, value=value, ci_low=value, ci_high=value, n=n, interval=f"none: {what}", internal=internal)


def max_metric(name: str, values: Sequence[float], *, internal: bool = False) -> Metric:
    """The largest value; missing where there is none, or where any is NaN (it might have been the largest)."""
    # numpy's max, unlike Python's, is NaN as soon as one value is
    largest = float(np.max(np.asarray(values, dtype=np.float64))) if len(values) else math.nan
    return point_metric(name, largest, len(values), "a maximum", internal=internal)


def _noted(method: str, note: str) -> str:
    return f"{method}; {note}" if note else method
