"""How a run's ε is divided: among rounds, and in each among teaching and voting; and what that buys.

All in ρ (zCDP), which adds up; ε does not. Examples and the instruction of a round are written from disjoint units,
so they compose in parallel and cost the most of either. Everything else looks at all units, and adds up.
"""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.configs.errors import UserError
from tutelage.configs.schema import ClassificationTask, PrivatePredictionPrivacy, Recipe
from tutelage.privacy import accounting

_ROUNDING = 1 - 1e-6
"""Shares of a budget, added up again, must not come out above it in the last digit."""


@dataclass(frozen=True)
class Allocation:
    """What each step of a run may cost a silo, in ρ."""

    delta: float
    label_counts: float
    """Once in a run; 0 where they are public, or nothing asks for them."""
    vote: float
    """In every round; 0 where lessons are not voted on."""
    teach: float
    """In every round."""

    @classmethod
    def of(cls, recipe: Recipe, units: int, epsilon: float | None = None) -> Allocation:
        """The allocation for a silo.

        Args:
            recipe: With a formal privacy section.
            units: N of the silo.
            epsilon: Instead of the recipe's: 0 or infinity for its brackets.

        Raises:
            UserError: `privacy.delta` is larger than 1/(N ln N).
        """
        privacy = recipe.formal
        assert privacy is not None
        delta = delta_for(recipe, units)
        rest = accounting.max_rho(privacy.epsilon if epsilon is None else epsilon, delta) * _ROUNDING
        labelled = isinstance(recipe.task, ClassificationTask) and isinstance(privacy, PrivatePredictionPrivacy)
        counted = labelled and privacy.label_counts == "noised"
        counts_share = privacy.label_counts_share if counted else 0.0
        vote_share = privacy.vote_share if recipe.aggregate.method == "vote" else 0.0
        a_round = (1 - counts_share) * rest / recipe.rounds
        return cls(
            delta=delta,
            label_counts=counts_share * rest if counted else 0.0,
            vote=vote_share * a_round if vote_share else 0.0,
            teach=(1 - vote_share) * a_round,
        )


def delta_for(recipe: Recipe, units: int) -> float:
    """The recipe's δ for a silo of N units, 1/(N ln N) if it names none.

    Raises:
        UserError: it names one that is larger.
    """
    assert recipe.formal is not None
    largest = accounting.max_delta(units)
    delta = recipe.formal.delta
    if delta is None:
        return largest
    if delta > largest:
        raise UserError(
            f"{delta:.3g} is more than 1/(N ln N) = {largest:.3g} for a silo of {units} units: "
            "such a guarantee would allow giving some of them away whole",
            key="privacy.delta",
            remedy="leave it out, or lower it",
        )
    return delta
