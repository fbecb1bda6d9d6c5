from __future__ import annotations

import math
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tutelage.privacy import accounting

DELTAS = st.floats(1e-10, 1e-2)
RHOS = st.floats(1e-4, 30)


@given(RHOS, DELTAS)
@settings(max_examples=40)
def test_two_accountants_agree(rho: float, delta: float) -> None:
    claimed, again = accounting.epsilon([dp.ZCDpEvent(rho)], delta), accounting.zcdp_epsilon(rho, delta)
    assert claimed == pytest.approx(again, rel=0.01, abs=1e-9)
    assert claimed >= again - 1e-6, "a grid of orders can only miss the best one"


@given(RHOS, DELTAS)
@settings(max_examples=25)
def test_a_gaussian_of_the_same_rho_bounds_it_from_below(rho: float, delta: float) -> None:
    """The exact ε of the Gaussian mechanism with this ρ (Balle & Wang 2018, theorem 8) is one the bound must exceed."""
    mu = math.sqrt(2 * rho)
    eps = accounting.epsilon([dp.ZCDpEvent(rho)], delta)
    exact = norm.cdf(-eps / mu + mu / 2) - math.exp(eps + norm.logcdf(-eps / mu - mu / 2))
    assert exact <= delta * (1 + 1e-6)


@given(st.lists(RHOS, min_size=1, max_size=5), DELTAS)
@settings(max_examples=25)
def test_composition_adds_up_rho(rhos: list[float], delta: float) -> None:
    together = accounting.epsilon([dp.ZCDpEvent(rho) for rho in rhos], delta)
    assert together == pytest.approx(accounting.epsilon([dp.ZCDpEvent(sum(rhos))], delta), rel=1e-6)
    nested = dp.ComposedDpEvent([dp.SelfComposedDpEvent(dp.ZCDpEvent(rho / 7), 7) for rho in rhos])
    assert accounting.epsilon([nested], delta) == pytest.approx(together, rel=1e-6)


def test_a_gaussian_event_costs_half_its_inverse_square() -> None:
    gaussian, zcdp = dp.GaussianDpEvent(2.0), dp.ZCDpEvent(1 / 8)
    assert accounting.epsilon([gaussian], 1e-6) == pytest.approx(accounting.epsilon([zcdp], 1e-6), rel=1e-9)


def test_nothing_costs_nothing_and_the_unknown_costs_infinity() -> None:
    assert accounting.epsilon([], 1e-6) == 0
    assert accounting.epsilon([dp.NoOpDpEvent()], 1e-6) == 0
    for event in (dp.NonPrivateDpEvent(), dp.UnsupportedDpEvent(), dp.ComposedDpEvent([dp.UnsupportedDpEvent()])):
        assert accounting.epsilon([dp.ZCDpEvent(0.1), event], 1e-6) == math.inf


@given(st.floats(0.01, 50), DELTAS)
@settings(max_examples=25)
def test_max_rho_spends_an_epsilon_and_no_more(target: float, delta: float) -> None:
    rho = accounting.max_rho(target, delta)
    assert accounting.epsilon([dp.ZCDpEvent(rho)], delta) <= target
    assert accounting.epsilon([dp.ZCDpEvent(rho * 1.001)], delta) > target * (1 - 1e-9)


def test_max_rho_at_the_ends() -> None:
    assert accounting.max_rho(0, 1e-6) == 0
    assert accounting.max_rho(math.inf, 1e-6) == math.inf
    with pytest.raises(ValueError, match="negative"):
        accounting.max_rho(-1, 1e-6)


@given(st.integers(2, 10**9))
def test_max_delta(units: int) -> None:
    delta = accounting.max_delta(units)
    assert 0 < delta <= 0.5
    assert delta * units * math.log(units) <= 1 + 1e-12


# ---- as JSON --------------------------------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.builds(dp.ZCDpEvent, st.floats(0, 1e3)),
    st.builds(dp.GaussianDpEvent, st.floats(1e-3, 1e3)),
    st.just(dp.NoOpDpEvent()),
    st.just(dp.NonPrivateDpEvent()),
)
EVENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(dp.SelfComposedDpEvent, inner, st.integers(0, 10**6)),
        st.builds(dp.ComposedDpEvent, st.lists(inner, max_size=3)),
    ),
    max_leaves=5,
)


@given(EVENTS)
def test_events_survive_json(event: Any) -> None:
    assert accounting.event_from_json(accounting.event_to_json(event)) == event


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"event": "free"},
        {"event": "zcdp"},
        {"event": "zcdp", "rho": -1.0},
        {"event": "zcdp", "rho": math.nan},
        {"event": "zcdp", "rho": "0"},
        {"event": "zcdp", "rho": 0.1, "xi": 3},
        {"event": "gaussian", "noise_multiplier": 0},
        {"event": "self_composed", "count": -1, "of": {"event": "zcdp", "rho": 0.1}},
        {"event": "self_composed", "count": True, "of": {"event": "zcdp", "rho": 0.1}},
        {"event": "self_composed", "count": 2, "of": {"event": "free"}},
        {"event": "composed", "of": [{"event": "no_op"}, 3]},
    ],
)
def test_what_is_not_understood_costs_infinity(written: dict[str, Any]) -> None:
    assert accounting.epsilon([accounting.event_from_json(written)], 1e-6) == math.inf


def test_an_event_of_no_known_kind_is_not_written() -> None:
    with pytest.raises(ValueError, match="PoissonSampledDpEvent"):
        accounting.event_to_json(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.0)))


def test_the_orders_hold_the_best_one() -> None:
    for rho in np.geomspace(1e-4, 30, 9):
        for delta in (1e-10, 1e-6, 1e-2):
            assert 1 + 1e-3 < 1 + math.sqrt(math.log(1 / delta) / rho) < 1e5
