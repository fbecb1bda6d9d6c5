"""What mechanisms cost: dp-accounting events, their ε at a δ, and how much noise an ε leaves room for.

Adjacency is replace-by-null throughout: two silos are neighbours where one unit (a record, or an owner with all its
records) is replaced by nothing. An ε under another adjacency is another quantity; never compare the two.

An event that nobody here knows how to account for costs infinity. Nothing is clamped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dp_accounting import DpEvent

ADJACENCY = "replace-by-null"


def max_delta(units: int) -> float:
    """The largest δ that means anything for a silo of this many units: 1 / (N ln N).

    Args:
        units: Records, or owners where they are the unit; at least 2.
    """
    if units < 2:
        raise ValueError("a silo of fewer than two units has no meaningful delta")
    return min(0.5, 1 / (units * math.log(units)))


def epsilon(events: Sequence[DpEvent], delta: float) -> float:
    """ε of all events together, by dp-accounting's Rényi accountant on a fine grid of orders.

    Args:
        events: What was done to one silo, in any order.
        delta: δ, in (0, 1).

    Returns:
        ε ≥ 0; infinity where an event is non-private or unknown to the accountant.
    """
    from dp_accounting import NeighboringRelation, rdp

    if not 0 < delta < 1:
        raise ValueError("delta must lie between 0 and 1")
    if not events:
        return 0.0
    accountant = rdp.RdpAccountant(_orders(), NeighboringRelation.REPLACE_SPECIAL)
    for event in events:
        if not accountant.supports(event):
            return math.inf
        accountant.compose(event)
    found = float(accountant.get_epsilon(delta))
    return found if found >= 0 else math.inf  # NaN, too


def zcdp_epsilon(rho: float, delta: float) -> float:
    """ε of a ρ-zCDP mechanism at δ, by minimising over all orders: a second way to `epsilon`, sharing no code with it.

    Canonne, Kamath & Steinke 2020 (arXiv:2004.00010), Proposition 12 with Rényi curve ρα.
    """
    from scipy.optimize import minimize_scalar

    if rho == 0:
        return 0.0

    def bound(log_excess: float) -> float:
        excess = math.exp(log_excess)  # α - 1
        alpha = 1 + excess
        return rho * alpha + math.log(excess / alpha) - (math.log(delta) + math.log(alpha)) / excess

    found = minimize_scalar(bound, bounds=(math.log(1e-6), math.log(1e6)), method="bounded", options={"xatol": 1e-10})
    return max(0.0, float(found.fun))


def max_rho(target: float, delta: float) -> float:
    """The largest ρ (zCDP) whose ε at δ is at most `target`: infinite for an infinite target, 0 for 0."""
    from dp_accounting import ZCDpEvent
    from scipy.optimize import brentq

    if target < 0 or math.isnan(target):
        raise ValueError("epsilon must not be negative")
    if target in (0, math.inf):
        return target

    def excess(log_rho: float) -> float:
        return epsilon([ZCDpEvent(math.exp(log_rho))], delta) - target

    low, high = math.log(1e-12), math.log(target + 1)  # ε > ρ, so the right end is above any target
    if excess(low) > 0:
        return 0.0
    rho = math.exp(float(brentq(excess, low, high, xtol=1e-12)))
    while epsilon([ZCDpEvent(rho)], delta) > target:  # the root is one to within rounding: step to the safe side
        rho *= 1 - 1e-9
    return rho


def rho_of(event: DpEvent) -> float:
    """The ρ of a zCDP guarantee that an event has; infinite where none is known.

    Gaussian noise of multiplier σ on a query of sensitivity 1 is 1/(2σ²)-zCDP (Bun & Steinke 2016, proposition 1.6).
    """
    import dp_accounting as dp

    match event:
        case dp.NoOpDpEvent():
            return 0.0
        case dp.ZCDpEvent(rho=rho, xi=0.0):
            return float(rho)
        case dp.GaussianDpEvent(noise_multiplier=noise) if noise > 0:
            return 0.5 / noise**2
        case dp.SelfComposedDpEvent(event=inner, count=count):
            return count * rho_of(inner) if count else 0.0
        case dp.ComposedDpEvent(events=inner):
            return math.fsum(rho_of(one) for one in inner)
    return math.inf


@functools.cache
def _orders() -> tuple[float, ...]:
    """Rényi orders: the best one for ρ and δ is about 1 + sqrt(ln(1/δ) / ρ), anywhere from 1 to thousands."""
    return tuple((1 + np.geomspace(1e-3, 1e5, 600)).tolist())


# ---- as JSON ----------------------------------------------------------------------------------------------------


def event_to_json(event: DpEvent) -> dict[str, Any]:
    """An event as the ledger writes it.

    Raises:
        ValueError: an event of a kind that the ledger does not hold.
    """
    import dp_accounting as dp

    match event:
        case dp.ZCDpEvent(rho=rho, xi=0.0):
            return {"event": "zcdp", "rho": rho}
        case dp.GaussianDpEvent(noise_multiplier=noise):
            return {"event": "gaussian", "noise_multiplier": noise}
        case dp.NonPrivateDpEvent():
            return {"event": "non_private"}
        case dp.NoOpDpEvent():
            return {"event": "no_op"}
        case dp.SelfComposedDpEvent(event=inner, count=count):
            return {"event": "self_composed", "count": count, "of": event_to_json(inner)}
        case dp.ComposedDpEvent(events=inner):
            return {"event": "composed", "of": [event_to_json(one) for one in inner]}
    raise ValueError(f"no {type(event).__name__} in a ledger")


def event_from_json(written: Mapping[str, Any]) -> DpEvent:
    """The event that `event_to_json` wrote; one of no known kind, or with impossible numbers, is unsupported.

    So it costs infinity: an edited or a future ledger is never taken for a cheap one.
    """
    import dp_accounting as dp

    match dict(written):
        case {"event": "zcdp", "rho": float() | int() as rho, **rest} if not rest and rho >= 0:
            return dp.ZCDpEvent(float(rho))
        case {"event": "gaussian", "noise_multiplier": float() | int() as noise, **rest} if not rest and noise > 0:
            return dp.GaussianDpEvent(float(noise))
        case {"event": "no_op", **rest} if not rest:
            return dp.NoOpDpEvent()
        case {"event": "self_composed", "count": int() as count, "of": dict() as inner, **rest} if (
            not rest and count >= 0 and not isinstance(count, bool)
        ):
            return dp.SelfComposedDpEvent(event_from_json(inner), count)
        case {"event": "composed", "of": list() as several, **rest} if not rest:
            return dp.ComposedDpEvent(
                [event_from_json(one) if isinstance(one, dict) else dp.UnsupportedDpEvent() for one in several]
            )
        case {"event": "non_private", **rest} if not rest:
            return dp.NonPrivateDpEvent()
    return dp.UnsupportedDpEvent()
