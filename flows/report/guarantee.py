"""What a report says about formal differential privacy: the claim, what it was spent on, and what it cost in utility.

The claim is that of the worst silo. It fails closed: a silo without a certificate, or an ε that is not finite, and
there is no claim. Signatures and ledgers are not checked here: whoever wrote the report has done that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.configs.records import Certificate, RoundReport
from tutelage.flows.report.figures import NOT_MEASURED, Figure, ceiling, families, figure, methods, ticks
from tutelage.flows.report.names import FAMILIES, bracket_epsilon

SPENT_ON = {"label_counts": "Label counts", "teach": "Teaching", "vote": "Vote"}


@dataclass(frozen=True)
class Spent:
    """One entry of a certificate in words."""

    silo: str
    what: str
    round: int
    parts: int
    rho: str
    """zCDP cost to a unit, rounded up."""
    event: str
    """How the cost comes about; empty where `rho` says it all."""
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Guarantee:
    """What the certificates of a round come to. There is at least one."""

    certificates: tuple[Certificate, ...]
    silos: int
    """How many silos taught."""
    uncovered: tuple[str, ...]
    """Those without a certificate."""

    @classmethod
    def of(cls, report: RoundReport) -> Guarantee | None:
        """The guarantee of a round; None where its lessons were screened only."""
        covered = {certificate.silo for certificate in report.certificates}
        uncovered = tuple(silo.silo for silo in report.silos if silo.silo not in covered)
        return cls(report.certificates, len(covered) + len(uncovered), uncovered) if covered else None

    @property
    def epsilon(self) -> float:
        """The worst silo's ε; infinity where any is not a number."""
        return _largest(certificate.epsilon for certificate in self.certificates)

    @property
    def epsilon_ledger(self) -> float:
        """The same with everything else in the silos' ledgers."""
        return _largest(certificate.epsilon_ledger for certificate in self.certificates)

    @property
    def epsilon_asked(self) -> float:
        return _largest(certificate.epsilon_asked for certificate in self.certificates)

    @property
    def delta(self) -> float:
        return _largest(certificate.delta for certificate in self.certificates)

    @property
    def unit(self) -> str:
        return _joined(certificate.unit for certificate in self.certificates)

    @property
    def adjacency(self) -> str:
        return _joined(certificate.adjacency for certificate in self.certificates)

    @property
    def unbounded(self) -> list[str]:
        """Silos for which no finite ε is certified."""
        return [c.silo for c in self.certificates if not (math.isfinite(c.epsilon) and 0 <= c.delta < 1)]

    @property
    def holds(self) -> bool:
        return not self.uncovered and not self.unbounded

    @property
    def why_not(self) -> str:
        """What is missing where it does not hold."""
        bare = [f"no certificate for {', '.join(self.uncovered)}"] if self.uncovered else []
        loose = [f"no finite ε for {', '.join(self.unbounded)}"] if self.unbounded else []
        return " and ".join(bare + loose)

    def verdict(self, of_what: str) -> str:
        """The claim in a sentence; `of_what` is said of the lessons, e.g. `of this run`."""
        if not self.holds:
            return f"The lessons {of_what} have no formal guarantee as a whole: {self.why_not}."
        return (
            f"Every lesson {of_what} was made under (ε, δ)-differential privacy: ε ≤ {ceiling(self.epsilon)}, "
            f"δ = {ceiling(self.delta)}, unit: {self.unit}, adjacency: {self.adjacency}."
        )

    @property
    def line(self) -> str:
        """The claim in one line of a terminal."""
        silos = f"{self.silos} {'silo' if self.silos == 1 else 'silos'}"
        if not self.holds:
            return f"Guarantee: NONE as a whole, {self.why_not}; {silos}"
        bound = f"ε ≤ {ceiling(self.epsilon)} at δ = {ceiling(self.delta)}"
        return f"Guarantee: {bound} per {self.unit} ({self.adjacency}), {silos}"

    @property
    def spends(self) -> list[Spent]:
        """Everything that was spent, silo by silo."""
        return [
            Spent(
                silo=certificate.silo,
                what=SPENT_ON[spend.what],
                round=spend.round,
                parts=spend.parts,
                rho=_rho(spend.event),
                event="" if spend.event.get("event") == "zcdp" else event_in_words(spend.event),
                parameters=tuple(f"{k.replace('_', ' ')} {_written(v)}" for k, v in spend.parameters.items()),
            )
            for certificate in self.certificates
            for spend in certificate.spends
        ]

    @property
    def not_charged(self) -> list[tuple[str, str]]:
        """What cost nothing and why, each sentence once, with the silos it is about: first those about all (empty)."""
        said: dict[str, list[str]] = {}
        for certificate in self.certificates:
            for sentence in dict.fromkeys(certificate.not_charged):
                said.setdefault(sentence, []).append(certificate.silo)
        everyone = len(self.certificates)
        found = [(sentence, ", ".join(silos) if len(silos) < everyone else "") for sentence, silos in said.items()]
        return sorted(found, key=lambda one: bool(one[1]))


def event_in_words(event: Mapping[str, Any]) -> str:
    """A dp-accounting event, as a certificate holds it, in words."""
    match dict(event):
        case {"event": "zcdp", "rho": float() | int() as rho}:
            return f"ρ = {ceiling(rho)}"
        case {"event": "gaussian", "noise_multiplier": float() | int() as noise}:
            return f"Gaussian noise, {noise:.3g} times the sensitivity"
        case {"event": "self_composed", "count": int() as count, "of": dict() as inner}:
            return f"{count} × {_bracketed(inner)}"
        case {"event": "composed", "of": list() as several}:
            return " + ".join(_bracketed(one) if isinstance(one, dict) else "unknown" for one in several)
        case {"event": "no_op"}:
            return "looks at nothing private"
        case {"event": "non_private"}:
            return "not private"
    return "unknown, so it counts as not private"


def _bracketed(event: Mapping[str, Any]) -> str:
    words = event_in_words(event)
    return words if event.get("event") == "zcdp" else f"({words})"


def _rho(event: Mapping[str, Any]) -> str:
    from tutelage.privacy.accounting import event_from_json, rho_of

    return ceiling(rho_of(event_from_json(event)))


# ---- what it cost -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A place on the ε axis and the score there."""

    name: str
    """e.g. `ε = 0`."""
    note: str
    figure: Figure
    asked: bool = False
    """Whether it is this round's own student."""


@dataclass(frozen=True)
class Utility:
    """A round's score against ε: from public lessons only, over the asked ε, to no protection."""

    family: str
    points: tuple[Point, ...]
    """By ε."""
    zero_shot: Figure
    originals: Figure
    scale: list[float]
    """Round numbers that the chart reaches from and to."""
    sentences: tuple[str, ...]
    """The gain over ε = 0 and the loss against ε = ∞, in words, where the report has those."""

    @property
    def in_words(self) -> str:
        shown = (f"{point.figure.text} at {point.name}" for point in self.points)
        return f"{FAMILIES[self.family]} against ε: {', '.join(shown)}"


def utility(report: RoundReport) -> Utility | None:
    """What the guarantee cost; None without certificates, or where neither bracket of ε was measured."""
    guarantee, family = Guarantee.of(report), families(report)[0]
    names = ("epsilon_0", "student", "epsilon_inf", "zero_shot", "originals")
    public, student, unprotected, zero_shot, originals = (figure(report, f"{family}.{name}") for name in names)
    if guarantee is None or (public.value is None and unprotected.value is None):
        return None
    asked = guarantee.epsilon_asked
    own = Point(
        f"ε = {asked:g}" if math.isfinite(asked) else "ε unknown",
        f"≤ {ceiling(guarantee.epsilon)} spent",
        student,
        asked=True,
    )
    placed = [(asked, own)]
    for name in methods(report):
        epsilon = bracket_epsilon(name)
        if epsilon is not None:
            shown = figure(report, f"{family}.{name}")
            title = f"ε = {epsilon:g}".replace("inf", "∞")
            placed.append((epsilon, Point(title, "never released" if epsilon else "public only", shown)))
    placed.sort(key=lambda pair: pair[0])
    figures = [*(point.figure for _, point in placed), zero_shot, originals]
    ends = [end for one in figures for end in (one.low, one.high) if end is not None]
    sentences = {
        "epsilon_0": _difference(student, public, "Over ε = 0", "gain", "loss"),
        "epsilon_inf": _difference(unprotected, student, "Against ε = ∞", "loss", "gain"),
    }
    return Utility(
        family=family,
        points=tuple(point for _, point in placed),
        zero_shot=zero_shot,
        originals=originals,
        scale=ticks(max(0.0, min(ends)), min(1.0, max(ends))),
        sentences=tuple(sentence for name, sentence in sentences.items() if name in methods(report)),
    )


def _difference(better: Figure, worse: Figure, lead: str, hoped: str, other: str) -> str:
    """How far apart two scores are, in percentage points, and whether their intervals can tell them apart.

    Args:
        better: The one that is expected to be higher.
        worse: The other.
        lead: What the sentence begins with, e.g. `Over ε = 0`.
        hoped: What it is called if `better` is higher.
        other: What it is called if not.
    """
    if better.value is None or worse.value is None:
        return f"{lead} the {hoped} was {NOT_MEASURED}."
    points, figures = f"{100 * abs(better.value - worse.value):.1f} percentage points", (better.text, worse.text)
    student, bracket = figures if hoped == "gain" else figures[::-1]
    if better.value == worse.value:
        said = f"there is no {hoped}: both have {student}"
    elif better.value > worse.value:
        said = f"the {hoped} is {points} ({student} against {bracket})"
    else:
        said = f"there is no {hoped} but a {other} of {points} ({student} against {bracket})"
    return f"{lead} {said}; {_apart(better, worse)}."


def _apart(one: Figure, other: Figure) -> str:
    ends = [(f.low, f.high) for f in (one, other) if f.bounded and f.low is not None and f.high is not None]
    if len(ends) < 2:
        return "without an interval for both, nothing says how much of that is chance"
    (low, high), (other_low, other_high) = ends
    if low <= other_high and other_low <= high:
        return "the intervals overlap: this run alone can't tell them apart"
    return "the intervals do not overlap"


# ---- in words ---------------------------------------------------------------------------------------------------


def _largest(values: Iterable[float]) -> float:
    """The worst case: a figure that is not a number might have been anything."""
    return max(math.inf if math.isnan(value) else value for value in values)


def _joined(words: Iterable[str]) -> str:
    return " and ".join(sorted(set(words)))


def _written(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
