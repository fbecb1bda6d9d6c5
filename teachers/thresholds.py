"""A cascade's thresholds: which scores are good enough not to ask the next teacher.

All teachers have written a draft for each of a few prompts. Every combination of thresholds between their scores is
tried on those, and the best mean score wins whose expected cost the budget allows. FrugalGPT (Chen et al. 2023,
arXiv:2305.05176, section 3) with scores that are given, so that trying all is cheap.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

_MOST_TRIED = 33
"""Thresholds of one teacher, evenly among its scores where there are more."""
NONE = 1.01
"""A threshold that no score reaches: the next teacher is always asked."""


def learn(scores: np.ndarray, costs: Sequence[float], budget: float) -> tuple[float, ...]:
    """The thresholds with the best mean score of those whose mean cost is within a budget.

    Args:
        scores: (K, M), in [0, 1]: of K teachers, the cheapest first, each for the same M places of a draft.
        costs: Of one draft by each of them.
        budget: What a place may cost on average.

    Returns:
        K - 1 thresholds: a draft of teacher k stands if its score is at least the k-th. Of equally good ones the
        cheapest. All 0, which is the first teacher alone, where the budget allows for nothing or nothing was scored.
    """
    teachers, places = scores.shape
    best, chosen = (-1.0, 0.0), (0.0,) * (teachers - 1)
    if not places:
        return chosen
    for thresholds in itertools.product(*(_tried(row) for row in scores[:-1])):
        at = stands(scores, thresholds)
        cost = float(np.cumsum(costs)[at].mean())
        found = (float(scores[at, np.arange(places)].mean()), -cost)
        if cost <= budget and found > best:
            best, chosen = found, thresholds
    return chosen


def stands(scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """(M,): which teacher's draft stands at each place: the first that reaches its threshold, or the last."""
    good = scores[:-1] >= np.asarray(thresholds)[:, None]
    return np.where(good.any(0), good.argmax(0), len(scores) - 1)


def held_out(scores: np.ndarray, groups: Sequence[int], costs: Sequence[float], budget: float) -> np.ndarray:
    """(M,): scores of the drafts that stand under thresholds learnt without their own half of the places.

    Args:
        scores: As `learn`'s.
        groups: (M,): the prompt of each place; even ones are one half.
        costs: As `learn`'s.
        budget: As `learn`'s.
    """
    half = np.asarray(groups) % 2
    found = np.zeros(scores.shape[1])
    for side in (0, 1):
        inside = half == side
        at = stands(scores[:, inside], learn(scores[:, ~inside], costs, budget))
        found[inside] = scores[:, inside][at, np.arange(int(inside.sum()))]
    return found


def _tried(scores: np.ndarray) -> list[float]:
    """From "all stand" to "none does"."""
    seen = np.unique(scores)
    if len(seen) > _MOST_TRIED - 2:
        seen = seen[np.linspace(0, len(seen) - 1, _MOST_TRIED - 2).round().astype(int)]
    return [0.0, *(float(one) for one in seen if one > 0), NONE]
