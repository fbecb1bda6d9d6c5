"""Intervals: they hold the estimate, shrink with more data, and cover as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from tutelage.privacy import stats

SHARES = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
NUMBERS = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(SHARES, st.sampled_from([stats.wilson, stats.clopper_pearson]))
def test_share_interval_holds_the_estimate(share, interval):
    k, n = share
    low, high = interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high


@settings(deadline=None)
@given(SHARES, st.integers(2, 6), st.sampled_from([stats.wilson, stats.clopper_pearson]))
def test_share_interval_shrinks_with_more_items(share, factor, interval):
    k, n = share
    low, high = interval(k, n)
    low_more, high_more = interval(factor * k, factor * n)
    assert high_more - low_more < high - low


def test_share_intervals_known_values():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263, and 1 of 29
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert stats.clopper_pearson(81, 263) == pytest.approx((0.2527, 0.3676), abs=5e-5)
    assert stats.wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert stats.clopper_pearson(0, 10)[0] == 0


@pytest.mark.parametrize("n", [5, 30])
def test_share_coverage_is_what_it_says(n):
    # exact: the chance of every count is known, nothing is simulated
    truths = np.linspace(0.02, 0.98, 49)
    covered = {}
    for interval in (stats.wilson, stats.clopper_pearson):
        bounds = np.array([interval(k, n) for k in range(n + 1)])
        inside = (bounds[:, 0] <= truths[:, None]) & (truths[:, None] <= bounds[:, 1])
        covered[interval] = (inside * binom.pmf(np.arange(n + 1), n, truths[:, None])).sum(axis=1)
    assert covered[stats.clopper_pearson].min() >= 0.95
    assert covered[stats.wilson].mean() == pytest.approx(0.95, abs=0.01)


def test_no_items_give_nan_and_nonsense_is_refused():
    assert all(math.isnan(x) for x in stats.wilson(0, 0))
    assert not stats.share_metric("x", 0, 0).measured
    with pytest.raises(ValueError, match="3 of 2"):
        stats.clopper_pearson(3, 2)


@settings(deadline=None, max_examples=40)
@given(st.lists(NUMBERS, min_size=2, max_size=30), st.integers(0, 9))
def test_bootstrap_holds_the_mean_within_the_range(values, seed):
    mean, low, high = stats.bootstrap_mean(values, 100, seed)
    assert low <= mean <= high
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= low
    assert high <= max(values) + slack
    assert stats.bootstrap_mean(values, 100, seed) == (mean, low, high)


def test_bootstrap_shrinks_and_covers():
    rng = np.random.default_rng(5)
    widths, hits = [], 0
    for _ in range(200):
        values = rng.exponential(size=40)
        _, low, high = stats.bootstrap_mean(values, 300, 0)
        hits += low <= 1 <= high
        widths.append(high - low)
    assert 0.87 <= hits / 200 <= 0.98  # about 0.93 for 40 skewed values
    _, low, high = stats.bootstrap_mean(rng.exponential(size=640), 300, 0)
    assert high - low == pytest.approx(np.mean(widths) / 4, rel=0.3)


def test_bootstrap_degenerate_cases():
    assert all(math.isnan(x) for x in stats.bootstrap_mean([], 100, 0))
    assert all(math.isnan(x) for x in stats.bootstrap_mean([1.0, math.nan], 100, 0))
    assert all(math.isnan(x) for x in stats.bootstrap_mean([1.0, math.inf], 100, 0))
    assert stats.bootstrap_mean([3.0], 100, 0) == (3.0, -math.inf, math.inf)
    assert stats.bootstrap_mean([0.1] * 7, 100, 0) == pytest.approx((0.1, 0.1, 0.1))


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=25), st.lists(NUMBERS, min_size=1, max_size=25))
def test_auc_agrees_with_scikit_learn_and_lies_in_its_interval(positives, negatives):
    area, low, high = stats.auc(positives, negatives)
    truth = [1] * len(positives) + [0] * len(negatives)
    assert area == pytest.approx(roc_auc_score(truth, positives + negatives))
    assert 0 <= low <= area + 1e-9
    assert area - 1e-9 <= high <= 1
    mirrored = stats.auc(negatives, positives)
    assert mirrored == pytest.approx((1 - area, 1 - high, 1 - low), abs=1e-6)


def test_auc_interval_covers_and_stays_wide_at_perfect_separation():
    rng = np.random.default_rng(7)
    truth = norm.cdf(1.2 / math.sqrt(2))
    hits = 0
    for _ in range(400):
        _, low, high = stats.auc(rng.normal(1.2, 1, 8).tolist(), rng.normal(0, 1, 8).tolist())
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.99
    area, low, high = stats.auc([3, 4, 5, 6], [-1, 0, 1, 2])
    assert (area, high) == (1, 1)
    assert 0.3 < low < 0.75


def test_auc_without_a_side_is_nan():
    assert not stats.auc_metric("x", [1.0], []).measured
    assert not stats.auc_metric("x", [math.nan], [1.0]).measured


def test_metrics_say_how_they_were_made():
    assert stats.share_metric("a", 1, 4).interval == "95% Wilson"
    exact = stats.share_metric("a", 1, 4, exact=True, internal=True, note="0.5 by chance")
    assert (exact.interval, exact.internal, exact.n) == ("95% Clopper-Pearson; 0.5 by chance", True, 4)
    assert stats.mean_metric("a", [1.0, 2.0], n_resamples=200).interval == "95% bootstrap (200)"
    assert stats.mean_metric("a", [1.0]).interval == "none: a single value"
    largest = stats.max_metric("a", [1.0, 5.0, 2.0])
    assert (largest.value, largest.ci_low, largest.ci_high, largest.interval) == (5, 5, 5, "none: a maximum")


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [1.0, math.nan]])
def test_a_maximum_that_may_be_larger_is_missing(values):
    assert not stats.max_metric("a", values).measured
