"""RMIA: does a text gain more from being in the student's training than other texts of its kind?

Source: Zarifzadeh, Liu and Shokri, Low-Cost High-Power Membership Inference Attacks (ICML 2024), the offline attack.

The likelihood of a text is here p = exp(mean log-probability of its completion's tokens): a probability for each token,
as the paper's is one for each label. With the product over the tokens (e^-300, say) the formula for P would be constant
but for its rounding, and the attack would be `mia.loss`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import Controls, Floats, Found, Released, Scorer, Settings
from tutelage.privacy.attacks.membership import judge, mean_of

OFFLINE_A = 0.3
"""a: models that saw a text give it a*P_out + (1 - a), where models that did not give it P_out."""
LOG_GAMMA = 0.0
"""ln γ, γ = 1: how many times a text's ratio must exceed that of another to dominate it."""


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by `mia.rmia`: the share of other texts whose ratio p / P theirs reaches.

    The other texts are half of the non-members, dealt out by the seed and their ids. They are not judged themselves,
    so the metrics are on the other half of the non-members and need twice as many. As all texts are compared with
    the same others, the order is that of the ratio itself, but in steps of one over their number.

    Returns:
        `mia.rmia.*`. The references are those released, or the base alone where there are none. Missing without a
        student, with fewer than two non-members, or where a score is NaN.
    """
    apart = len(controls.nonmembers) // 2
    if released.student is None or not controls.members or apart == 0:
        return judge("mia.rmia", (), (), settings, internal=True)
    outside = sorted(controls.nonmembers, key=lambda one: hashlib.sha256(f"{settings.seed}/{one.id}".encode()).digest())
    examples = [*outside, *controls.members]
    ratios = log_ratios(
        _likelihoods(released.student, examples),
        np.stack([_likelihoods(one, examples) for one in released.references or (released.base,)]),
    )
    scores = dominance(ratios[apart:], ratios[:apart])
    split = len(outside) - apart
    return judge("mia.rmia", scores[split:], scores[:split], settings, internal=True)


def log_ratios(student: Floats, references: Floats, a: float = OFFLINE_A) -> Floats:
    """ln(p / P) with P = ½[(1 + a) * mean of P_out + (1 - a)].

    Args:
        student: `(n,)`, ln p of each text under the student.
        references: `(models, n)`, ln of P_out under each model that saw none of the texts.
        a: As `OFFLINE_A`.
    """
    with np.errstate(invalid="ignore"):  # NaN stays NaN, and is missing
        out = np.logaddexp.reduce(references, axis=0) - math.log(len(references))
        ratios: Floats = student - (np.logaddexp(math.log1p(a) + out, math.log1p(-a)) - math.log(2))
    return ratios


def dominance(ratios: Floats, others: Floats) -> Floats:
    """The share of the others' log-ratios `(z,)` that each of `ratios` `(n,)` reaches by `LOG_GAMMA`; NaN stays NaN."""
    reached = np.searchsorted(np.sort(others), ratios - LOG_GAMMA, side="right") / len(others)
    # a comparison with NaN is false, which would make an unmeasured text a sure non-member
    return np.where(np.isnan(ratios) | np.isnan(others).any(), np.nan, reached)


def _likelihoods(model: Scorer, examples: Sequence[Example]) -> Floats:
    return np.array([mean_of(logprobs) for logprobs in model.completion_logprobs(examples)])
