"""Min-K%++: are the tokens that fit worst still among the likelier ones at their place?

Source: Zhang et al., Min-K%++: Improved Baseline for Detecting Pre-Training Data from Large Language Models (2024,
arXiv:2404.02936).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import Controls, Found, Released, Scorer, Settings, TokenScores
from tutelage.privacy.attacks.membership import judge_texts

LOWEST = 0.2
"""Share of a text's tokens that count."""
_LEAST_STD = 1e-6
"""Nats. Where all but one token have a probability of zero in floating point, the spread is zero, too."""


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by `mia.min_k`: the mean z of the fifth of a text's tokens where it is lowest.

    Missing without a student, or where a text has no token to score.
    """
    student = released.student
    return judge_texts("mia.min_k", controls, None if student is None else partial(_scores, student), settings)


def min_k(scores: TokenScores) -> float:
    """Mean of the lowest fifth of z = (log p - mean) / std, of at least one token; NaN without any or with a NaN."""
    z = (scores.logprobs - scores.mean) / np.maximum(scores.std, _LEAST_STD)
    # sorting would put a NaN last, where it isn't seen
    if z.size == 0 or np.isnan(z).any():
        return math.nan
    return float(np.sort(z)[: max(1, int(LOWEST * z.size))].mean())


def _scores(student: Scorer, examples: Sequence[Example]) -> list[float]:
    return [min_k(scores) for scores in student.score(examples)]
