"""Counts of private units with discrete Gaussian noise: votes for lessons, label counts.

The noise is drawn exactly, in whole numbers and fractions, from the operating system's randomness: floating-point noise
added to a count gives the count away through the last bits of the sum (Mironov 2012). Sampler and cost are those of
Canonne, Kamath & Steinke 2020 (arXiv:2004.00010): algorithms 1 to 3 and theorem 4.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from tutelage.privacy.ledger import Allowance

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@dataclass(frozen=True)
class NoisyHistogram:
    """A histogram to which every unit adds at most one.

    Replacing a unit by null changes one bin by one, so the L2 sensitivity is 1. (Where neighbours *exchange* a unit it
    would be √2: this is not an ε for that adjacency.)
    """

    sigma: float
    """Standard deviation of every bin's noise, in units."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ValueError("sigma must be positive and finite")

    @classmethod
    def calibrated(cls, rho: float) -> NoisyHistogram:
        """The least noise at a cost of ρ (zCDP): σ = 1 / √(2ρ)."""
        return cls(1 / math.sqrt(2 * rho))

    def event(self) -> DpEvent:
        """1/(2σ²)-zCDP for the whole histogram, however many bins it has."""
        import dp_accounting as dp

        return dp.ZCDpEvent(0.5 / self.sigma**2)

    def release(self, choices: Sequence[int | None], bins: int, allowance: Allowance) -> list[int]:
        """Count the choices and add noise to every bin, those nobody chose included.

        Args:
            choices: One per unit, 0-based; None: the unit abstains.
            bins: How many there are; public.
            allowance: What this costs; its part 0 is used up here.

        Returns:
            `bins` whole numbers, some of which may be negative. What is done with them is free.

        Raises:
            PrivacyError: the allowance has been used, or does not cover this.
            ValueError: a choice that is no bin.
        """
        if any(choice is not None and not 0 <= choice < bins for choice in choices):
            raise ValueError("a choice is outside the bins")
        allowance.claim(self.event(), (0,))
        counts = [0] * bins
        for choice in choices:
            if choice is not None:
                counts[choice] += 1
        variance = Fraction(self.sigma) ** 2
        return [count + _discrete_gaussian(variance) for count in counts]


def noise_of(rho: float) -> float:
    """Standard deviation of the noise that a histogram has at a cost of ρ; 0 where nothing is counted (ρ = 0)."""
    return NoisyHistogram.calibrated(rho).sigma if 0 < rho < math.inf else 0.0


def _discrete_gaussian(variance: Fraction) -> int:
    """An integer x with probability in proportion to exp(-x² / (2 variance)) (algorithm 3)."""
    scale = math.isqrt(math.floor(variance)) + 1
    while True:
        proposed = _discrete_laplace(scale)
        excess = abs(proposed) - variance / scale
        if _bernoulli_exp(excess * excess / (2 * variance)):
            return proposed


def _discrete_laplace(scale: int) -> int:
    """An integer x with probability in proportion to exp(-|x| / scale) (algorithm 2)."""
    while True:
        remainder = secrets.randbelow(scale)
        if not _bernoulli_exp(Fraction(remainder, scale)):
            continue
        whole = 0
        while _bernoulli_exp(Fraction(1)):
            whole += 1
        size, negative = remainder + scale * whole, secrets.randbelow(2)
        if size or not negative:  # zero must not come twice
            return -size if negative else size


def _bernoulli_exp(gamma: Fraction) -> bool:
    """True with probability exp(-gamma), gamma >= 0 (algorithm 1)."""
    while gamma > 1:
        if not _bernoulli_exp(Fraction(1)):
            return False
        gamma -= 1
    k = 1
    while _bernoulli(gamma / k):
        k += 1
    return k % 2 == 1


def _bernoulli(p: Fraction) -> bool:
    return secrets.randbelow(p.denominator) < p.numerator
