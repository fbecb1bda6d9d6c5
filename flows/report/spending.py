"""What a report says about the cost of several teachers, and what the dearer ones were worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tutelage.configs.records import Metric, RoundReport, Spending
from tutelage.flows.report.figures import NOT_MEASURED

HOW = {
    "cascade": (
        "Every draft is first written by the cheapest teacher; what scores below its threshold is written again by the "
        "next. The last one's drafts stand whatever they score, and so do a cheaper one's where the budget covers no "
        "dearer."
    ),
    "skill": "Every label is written by the teacher whose drafts of it scored best on the calibration prompts.",
    "label": "Every label is written by the teacher that the recipe names.",
}


@dataclass(frozen=True)
class Costs:
    """The spending of a round's silos, all of one route and one unit."""

    silos: tuple[Spending, ...]

    @classmethod
    def of(cls, report: RoundReport) -> Costs | None:
        """None where each silo has one teacher."""
        return cls(report.spending) if report.spending else None

    @property
    def how(self) -> str:
        """The route in words."""
        return HOW[self.silos[0].route]

    @property
    def unit(self) -> str:
        return self.silos[0].unit

    @property
    def handled(self) -> list[tuple[str, int]]:
        """(teacher, drafts of its that stood in all silos), as the recipe orders them."""
        names = [one.name for one in self.silos[0].teachers]
        every = [one for silo in self.silos for one in silo.teachers]
        return [(name, sum(one.drafts for one in every if one.name == name)) for name in names]

    @property
    def line(self) -> str:
        """All of it in one line of a terminal."""
        total = sum(drafts for _, drafts in self.handled)
        shares = ", ".join(f"{name} {drafts / total:.0%}" if total else name for name, drafts in self.handled)
        return f"Teachers: {self.total}; drafts by {shares}"

    @property
    def total(self) -> str:
        """Cost against budget."""
        cost = amount(sum(one.cost for one in self.silos))
        budgets = [one.budget for one in self.silos if one.budget is not None]
        return f"{cost} of {amount(sum(budgets))} {self.unit}" if budgets else f"{cost} {self.unit}, without a budget"

    @property
    def saved(self) -> str:
        """What a draft costs in the cascades, and by the dearest alone; empty where none was compared."""
        pairs = [(one.cost_expected, one.cost_dearest) for one in self.silos]
        known = [(own, dearest) for own, dearest in pairs if own is not None and dearest]
        if not known:
            return ""
        own, dearest = (sum(side) / len(known) for side in zip(*known, strict=True))
        return (
            f"By the calibration a draft costs {amount(own)} {self.unit} in the cascade and {amount(dearest)} by the "
            f"dearest teacher alone: {own / dearest:.0%} of it."
        )


def amount(value: float) -> str:
    """A cost with three significant digits."""
    return f"{value:.3g}"


def mean(metric: Metric | None, sign: bool = False) -> str:
    """A mean score with its interval."""
    if metric is None or math.isnan(metric.value):
        return NOT_MEASURED
    form = "+.3f" if sign else ".3f"
    return f"{metric.value:{form}} ({metric.ci_low:{form}} to {metric.ci_high:{form}})"
