"""ε on one axis: what the certificates claim, an upper bound, and what an audit of the canaries measured, a lower one.

The audit is the one-run audit of `privacy/attacks/one_run.py`: it is a bound at 95% confidence, and with few canaries
it could not have shown much, so the most that it could have shown stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tutelage.configs.records import RoundReport
from tutelage.flows.report.figures import NOT_MEASURED, Figure, ceiling, figure, ticks
from tutelage.flows.report.guarantee import Guarantee
from tutelage.flows.report.names import AUDITED

_FAR = 3
"""A claim this many times as large as all else is put off the scale: it would press the rest together."""


@dataclass(frozen=True)
class Audited:
    """What the audit of one released thing measured."""

    on: str
    """E.g. `the lessons`."""
    low: Figure
    most: Figure
    """What it could have shown."""


@dataclass(frozen=True)
class Epsilon:
    """All that is known of a round's ε."""

    guarantee: Guarantee | None
    claimed: float | None
    """None: nothing bounds it from above."""
    audits: tuple[Audited, ...]
    scale: tuple[float, ...]
    """Round numbers, from 0; empty where there is nothing to show."""

    @classmethod
    def of(cls, report: RoundReport) -> Epsilon:
        """What a report says of ε."""
        guarantee = Guarantee.of(report)
        audits = tuple(
            Audited(on, figure(report, f"audit.{key}.epsilon_low"), figure(report, f"audit.{key}.epsilon_ceiling"))
            for key, on in AUDITED.items()
        )
        claimed = None
        if guarantee is not None and guarantee.holds:
            said = figure(report, "epsilon.claimed").value
            claimed = max(guarantee.epsilon, said if said is not None else 0.0)
        ends = [one.value for audit in audits for one in (audit.low, audit.most) if one.value is not None]
        known = [*ends, *([claimed] if claimed is not None else [])]
        if not known:
            return cls(guarantee, claimed, audits, ())
        top = max(ends, default=0.0)
        if claimed is not None and (claimed <= _FAR * top or top <= 0):
            top = max(top, claimed)
        return cls(guarantee, claimed, audits, tuple(ticks(0, max(top, 1e-3) * 1.02)))

    @property
    def low(self) -> float:
        """The largest lower bound; 0 where there is none."""
        return max((audit.low.value for audit in self.audits if audit.low.value is not None), default=0.0)

    @property
    def best(self) -> Audited | None:
        """The audit with the largest lower bound; None where none was measured."""
        known = [audit for audit in self.audits if audit.low.value is not None]
        return max(known, key=lambda audit: audit.low.value or 0.0, default=None)

    @property
    def off_scale(self) -> bool:
        """Whether the claim lies right of all that is drawn."""
        return self.claimed is not None and bool(self.scale) and self.claimed > self.scale[-1]

    @property
    def bounded(self) -> str:
        """What bounds ε from above, in words."""
        if self.claimed is not None:
            return f"ε ≤ {ceiling(self.claimed)}"
        if self.guarantee is None:
            return "nothing bounds ε from above: the lessons were screened only"
        return f"nothing bounds ε from above for all silos: {self.guarantee.why_not}"

    @property
    def broken(self) -> str:
        """What is wrong if more was measured than is claimed; empty where it was not."""
        over = [audit for audit in self.audits if self.claimed is not None and (audit.low.value or 0.0) > self.claimed]
        if not over:
            return ""
        shown = " and ".join(f"ε ≥ {audit.low.text} on {audit.on}" for audit in over)
        return (
            f"The audit measured {shown}, more than the claimed ε ≤ {ceiling(self.claimed or 0.0)}. With 95% "
            "confidence the code does not do what was certified, or the claim is wrong: do not rely on it. Only where "
            "each canary was planted in several copies is it no contradiction: every copy is a unit, and the audit "
            "measures all copies of a canary together."
        )

    @property
    def sentences(self) -> Iterator[str]:
        """The axis in words."""
        if self.claimed is None:
            upper = self.bounded[:1].upper() + self.bounded[1:]
            yield f"{upper}. What was measured are lower bounds, and none of them is a promise."
        for audit in self.audits:
            yield _audited(audit)
        most = max((audit.most.value for audit in self.audits if audit.most.value is not None), default=math.inf)
        if self.claimed is not None and self.claimed >= most:
            yield (
                "The claim lies above the most that the audit could show: however wrong the code were, it could not "
                "contradict it. More canaries could."
            )

    @property
    def in_words(self) -> str:
        """The drawing's text alternative."""
        claim = f"claimed {self.bounded}" if self.claimed is not None else self.bounded
        shown = (
            f"measured on {audit.on} ε ≥ {audit.low.text}"
            + (f" of at most {audit.most.text}" if audit.most.value else "")
            if audit.low.value is not None
            else f"{NOT_MEASURED} on {audit.on}"
            for audit in self.audits
        )
        return f"ε on one axis: {'; '.join((claim, *shown))}"

    @property
    def line(self) -> str:
        """What was measured, in one line of a terminal; empty where nothing was."""
        shown = [
            f"{audit.on} ε ≥ {audit.low.text}" + (f" (of {audit.most.text})" if audit.most.value is not None else "")
            for audit in self.audits
            if audit.low.value is not None
        ]
        return f"Audit, 95%: {', '.join(shown)}" if shown else ""


def _audited(audit: Audited) -> str:
    if audit.low.value is None:
        return f"On {audit.on} ε was {NOT_MEASURED}."
    could = f"with {audit.low.n} canaries it could have shown ε ≥ {audit.most.text} at most" if audit.most.value else ""
    if audit.low.value > 0:
        return f"The audit of {audit.on} shows ε ≥ {audit.low.text} with 95% confidence{'; ' + could if could else ''}."
    return f"The audit of {audit.on} shows nothing, that is ε ≥ 0{'; ' + could if could else ''}."
