from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import dp_accounting as dp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tutelage.configs.errors import PrivacyError
from tutelage.privacy.accounting import epsilon, max_rho
from tutelage.privacy.histogram import NoisyHistogram, _bernoulli_exp, _discrete_gaussian, _discrete_laplace
from tutelage.privacy.ledger import Internal, Ledger, Terms

DRAWS = 6000
UNLIKELY = 1e-7


def fits(drawn: list[int], weight: dict[int, float]) -> float:
    """p-value of draws against weights, values that are rarely expected taken together."""
    total = sum(weight.values())
    seen = Counter(drawn)
    often = [x for x, w in weight.items() if w / total * len(drawn) >= 10]
    observed = [seen[x] for x in often]
    expected = [weight[x] / total * len(drawn) for x in often]
    observed.append(len(drawn) - sum(observed))
    expected.append(len(drawn) - sum(expected))
    if expected[-1] < 1:
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    return float(chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("gamma", [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(7, 3)])
def test_bernoulli_of_an_exponential(gamma: Fraction) -> None:
    p = math.exp(-gamma)
    hits = sum(_bernoulli_exp(gamma) for _ in range(DRAWS))
    assert abs(hits - DRAWS * p) <= 6 * math.sqrt(DRAWS * p * (1 - p))


@pytest.mark.parametrize("scale", [1, 3])
def test_discrete_laplace(scale: int) -> None:
    weight = {x: math.exp(-abs(x) / scale) for x in range(-60, 61)}
    assert fits([_discrete_laplace(scale) for _ in range(DRAWS)], weight) > UNLIKELY


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.7, 8.0])
def test_discrete_gaussian(sigma: float) -> None:
    weight = {x: math.exp(-(x**2) / (2 * sigma**2)) for x in range(-100, 101)}
    assert fits([_discrete_gaussian(Fraction(sigma) ** 2) for _ in range(DRAWS)], weight) > UNLIKELY


@given(st.floats(0.3, 20), st.floats(1.01, 100))
def test_neighbours_stay_within_the_bound(sigma: float, alpha: float) -> None:
    """Rényi divergence of the noise and the noise moved by one unit, from the exact probabilities."""
    x = np.arange(-2000, 2001)
    here, there = (-((x - shift) ** 2) / (2 * sigma**2) for shift in (0, 1))
    here, there = (log - np.logaddexp.reduce(log) for log in (here, there))
    divergence = np.logaddexp.reduce(alpha * here + (1 - alpha) * there) / (alpha - 1)
    assert divergence <= alpha / (2 * sigma**2) + 1e-9


@given(st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=40), st.floats(0.1, 3))
def test_noise_lies_about_the_counts(choices: list[int | None], sigma: float) -> None:
    found = NoisyHistogram(sigma).release(choices, 5, Internal())
    truth = Counter(choice for choice in choices if choice is not None)
    assert all(abs(count - truth[i]) <= 12 * sigma + 12 for i, count in enumerate(found))
    assert all(isinstance(count, int) for count in found)


@given(st.floats(0.05, 20), st.floats(1e-9, 1e-3))
def test_calibration(target: float, delta: float) -> None:
    rho = max_rho(target, delta)
    assert epsilon([NoisyHistogram.calibrated(rho).event()], delta) == pytest.approx(target, rel=1e-6)


def test_no_noise_is_no_mechanism() -> None:
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma"):
            NoisyHistogram(sigma)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.begin(tmp_path / "ledger.jsonl", Terms("a1b2", "record", 40, 1e-6, 20.0))


def test_a_choice_outside_the_bins_uses_nothing_up(ledger: Ledger) -> None:
    histogram = NoisyHistogram(1.0)
    reserved = ledger.reserve(histogram.event(), run="r")
    for wrong in (5, -1):
        with pytest.raises(ValueError, match="outside"):
            histogram.release([0, wrong], 5, reserved)
    assert reserved.unused == [0]
    histogram.release([0], 5, reserved)
    assert reserved.unused == []


def test_a_histogram_is_released_once(ledger: Ledger) -> None:
    histogram = NoisyHistogram(1.0)
    histogram.release([0, 1], 2, ledger.reserve(histogram.event(), run="r"))
    with pytest.raises(PrivacyError, match="once"):
        histogram.release([0, 1], 2, ledger.reserve(histogram.event(), run="r"))
    assert ledger.spent() == epsilon([histogram.event()], 1e-6)


def test_what_was_reserved_must_cover_it(ledger: Ledger) -> None:
    dearer = NoisyHistogram(0.999)
    reserved = ledger.reserve(NoisyHistogram(1.0).event(), run="r")
    with pytest.raises(PrivacyError, match="does not cover"):
        dearer.release([0, 1], 2, reserved)
    with pytest.raises(PrivacyError, match="does not cover"):
        dearer.release([0, 1], 2, ledger.reserve(dp.NoOpDpEvent(), run="free"))
    NoisyHistogram(1.001).release([0, 1], 2, reserved)


def test_nothing_is_counted_before_it_is_claimed() -> None:
    class Refusing:
        def claim(self, event: dp.DpEvent, parts: Iterable[int]) -> None:
            assert (event, list(parts)) == (NoisyHistogram(2.0).event(), [0])
            raise PrivacyError("no")

    class Choices(list[int | None]):
        """Choices that may be looked over once, for those that are no bin."""

        looked = 0

        def __iter__(self) -> Iterator[int | None]:
            self.looked += 1
            return super().__iter__()

    choices = Choices([0, 1, None])
    with pytest.raises(PrivacyError, match="no"):
        NoisyHistogram(2.0).release(choices, 2, Refusing())
    assert choices.looked == 1
