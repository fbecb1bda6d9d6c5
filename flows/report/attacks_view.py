"""How attacks are shown: their ROC curves on logarithmic axes, and in words what they found and what they could find.

A curve is drawn in a square of 100 by 100, x to the right and y downwards, as an SVG path. Texts are few, so beside it
stands what guessing does with as many: without that every wiggle looks like a leak, or like none.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tutelage.configs.records import Curve, RoundReport
from tutelage.flows.report.figures import NOT_MEASURED, Figure, figure, withheld
from tutelage.flows.report.names import ATTACKS, JUDGED, TARGETS, attack_title, entity_title

ALARMS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
"""Shares of false alarms that the table of a curve gives."""
HOW = {
    "mia.loss": "Takes texts for members whose completion the student finds easy.",
    "mia.gain": "Takes texts for members that the student finds likelier than its base model does.",
    "mia.zlib": "As by the loss, but plain texts, which a compressor finds easy too, count less.",
    "mia.min_k": "Takes texts for members of which even the most surprising tokens don't surprise the student.",
    "mia.rmia": "Takes texts for members that gain more over reference models than other texts gain.",
    "synthetic.ngram": "Takes texts for members whose pairs of words are frequent in the lessons.",
    "synthetic.neighbour": "Takes texts for members that share runs of words with some lesson.",
    "synthetic.neighbour_meaning": "Takes texts for members that mean nearly what some lesson means.",
    "synthetic.neighbour_embedding": "Takes texts for members that mean nearly what some lesson means.",
    "synthetic.auxiliary": "Takes texts for members that a model trained on the lessons finds likelier than before.",
}
_PREFIX = re.compile(r"extraction\.prefix_(\d+)(?:_out)?")


@dataclass(frozen=True)
class Roc:
    """A ROC curve, drawn."""

    path: str
    band: str
    """Where 95% of guessing attacks are, at each share of false alarms for itself."""
    unresolved: float
    """Up to here, in per cent of the width, one false alarm is more than the share asked for."""
    found: tuple[str, ...]
    """Members found at each of `ALARMS`."""
    in_words: str


@dataclass(frozen=True)
class Attack:
    """One attack that tells members from non-members."""

    name: str
    title: str
    how: str
    auc: Figure
    found: tuple[Figure, ...]
    """Members found at 1% and at 0.1% false alarms."""
    members: int | None
    nonmembers: int | None
    roc: Roc | None

    @property
    def on_what(self) -> str:
        """Its title with what it is on."""
        return attack_title(self.name)

    @property
    def tells(self) -> bool:
        """Whether it is better than guessing, by its interval."""
        return self.auc.bounded and self.auc.low is not None and self.auc.low > 0.5


@dataclass(frozen=True)
class Attacks:
    """All of a round."""

    groups: tuple[tuple[str, tuple[Attack, ...]], ...]
    """What they are on -> the attacks."""
    decades: tuple[int, ...]
    """Powers of ten on both axes, up to 0."""
    sentences: tuple[str, ...]

    @property
    def every(self) -> list[Attack]:
        return [attack for _, some in self.groups for attack in some]

    @property
    def strongest(self) -> Attack | None:
        """That with the highest AUC."""
        measured = (attack for attack in self.every if attack.auc.value is not None)
        return max(measured, key=lambda attack: attack.auc.value or 0.0, default=None)

    @property
    def names(self) -> set[str]:
        """Of the metrics shown here."""
        return {f"{attack.name}.{measure}" for attack in self.every for measure in JUDGED}

    @classmethod
    def of(cls, report: RoundReport) -> Attacks:
        """The attacks of a round, known ones first."""
        curves = {curve.name: curve for curve in report.roc}
        judged = (metric.name.rpartition(".") for metric in report.metrics)
        present = dict.fromkeys([*curves, *(attack for attack, _, measure in judged if _is_attack(attack, measure))])
        names = [*(name for name in ATTACKS if name in present), *(name for name in present if name not in ATTACKS)]
        finest = max((min(one.members, one.nonmembers) for one in curves.values()), default=100)
        # the power of ten below one text in all, but two to four decades
        floor = -min(max(math.ceil(math.log10(max(finest, 1)) - 1e-9), 2), 4)
        made = [_attack(report, name, curves.get(name), floor) for name in names]
        groups = {target: tuple(a for a in made if a.name.partition(".")[0] == key) for key, target in TARGETS.items()}
        groups["others"] = tuple(a for a in made if a.name.partition(".")[0] not in TARGETS)
        shown = tuple((target, some) for target, some in groups.items() if some)
        return cls(shown, tuple(range(floor, 1)), tuple(_in_words(made, withheld(report))))


def _is_attack(name: str, measure: str) -> bool:
    # an AUC alone may be of canaries, which are told apart in other ways
    return measure in JUDGED and (measure != "auc" or name.partition(".")[0] in TARGETS)


def _attack(report: RoundReport, name: str, curve: Curve | None, floor: int) -> Attack:
    auc, *found = (figure(report, f"{name}.{measure}", title) for measure, title in JUDGED.items())
    return Attack(
        name=name,
        title=ATTACKS.get(name, name),
        how=HOW.get(name, ""),
        auc=auc,
        found=tuple(found),
        members=curve.members if curve else None,
        nonmembers=curve.nonmembers if curve else None,
        roc=draw(curve, floor) if curve else None,
    )


# ---- curves ------------------------------------------------------------------------------------------------------


def draw(curve: Curve, floor: int) -> Roc | None:
    """A curve on logarithmic axes that both begin at 10^floor; None without points or texts.

    It is a step function, as `attacks/membership.py` writes it: between two points the left one's share holds.
    """
    points = [(x, y) for x, y in zip(curve.fpr, curve.tpr, strict=False) if math.isfinite(x) and math.isfinite(y)]
    if not points or min(curve.members, curve.nonmembers) < 1:
        return None
    points.sort()
    low, high = chance_band(curve.members, curve.nonmembers)
    alarms = [k / curve.nonmembers for k, _ in low]
    upper = _steps(list(zip(alarms, (y for _, y in high), strict=True)), floor)
    lower = _steps(list(zip(alarms, (y for _, y in low), strict=True)), floor)
    found = tuple(
        f"{100 * _at(points, x):.1f}%" if x == 0 or x >= (1 - 1e-9) / curve.nonmembers else "–" for x in ALARMS
    )
    said = ", ".join(
        f"{y} at {'no' if x == 0 else f'{100 * x:g}%'} false alarms"
        for x, y in zip(ALARMS, found, strict=True)
        if y != "–"
    )
    return Roc(
        path=_path(_steps(points, floor)),
        band=_path(upper) + _path(lower[::-1]).replace("M", "L", 1) + "Z",
        unresolved=round(_place(1 / curve.nonmembers, floor), 1),
        found=found,
        in_words=f"ROC curve, {attack_title(curve.name)}: members found {said}",
    )


@lru_cache(maxsize=64)
def chance_band(members: int, nonmembers: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """What guessing finds: the 2.5% and 97.5% points of the share of members found, at k false alarms.

    How many of m members score above the non-member with k others above it is beta-binomial with parameters m, k + 1
    and n - k, whatever the scores are, so long as all texts are exchangeable and no two score the same.

    Returns:
        Twice (k, share): the first 50 k, and of the rest ever fewer, with n, where all is flagged.
    """
    import numpy as np

    last = nonmembers - 1
    some = {*range(min(50, nonmembers)), *np.geomspace(max(1, min(50, last)), max(1, last), 50).round().astype(int)}
    k = np.array(sorted(one for one in some if one <= last))
    # Of x members found and k others, of m and n: C(x + k, k) C(m - x + n - k - 1, n - k - 1) / C(m + n, n). Written
    # out, for scipy.stats, whose import takes longer than all else that a report needs.
    factorial = np.log(np.arange(1, members + nonmembers + 1)).cumsum()
    x, above = np.arange(members + 1)[:, None], nonmembers - k - 1
    log = np.concatenate([[0.0], factorial])  # of i!, at i
    mass = np.exp(
        (log[x + k] - log[x] - log[k])
        + (log[members - x + above] - log[members - x] - log[above])
        - (log[members + nonmembers] - log[members] - log[nonmembers])
    )
    shares = mass.cumsum(axis=0)  # (m + 1, k)
    low, high = ((shares < q).sum(axis=0) / members for q in (0.025, 0.975))
    return tuple([*zip(k.tolist(), ends.tolist(), strict=True), (nonmembers, 1.0)] for ends in (low, high))  # type: ignore[return-value]


def _at(points: Sequence[tuple[float, float]], x: float) -> float:
    """The highest y at or left of x."""
    index = bisect_right(points, (x + 1e-12, math.inf))
    return max((y for _, y in points[:index]), default=0.0)


def _steps(points: Sequence[tuple[float, float]], floor: int) -> list[tuple[float, float]]:
    """Corners of the step function through the points, in the square."""
    height = 100 - _place(_at(points, 10.0**floor), floor)
    corners = [(0.0, height)]
    for x, y in points:
        if x > 10.0**floor:
            right, top = _place(x, floor), 100 - _place(y, floor)
            corners += [(right, height), (right, top)]
            height = top
    return [*corners, (100.0, height)]


def _place(share: float, floor: int) -> float:
    """A share's place on an axis from 10^floor at 0 to 1 at 100."""
    return 100 * (1 - math.log10(min(share, 1.0)) / floor) if share > 10.0**floor else 0.0


def _path(corners: Iterable[tuple[float, float]]) -> str:
    rounded = list(dict.fromkeys((round(x, 1), round(y, 1)) for x, y in corners))
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in rounded)


# ---- in words ----------------------------------------------------------------------------------------------------


def guessing_auc(members: int, nonmembers: int) -> tuple[float, float]:
    """Between which AUCs 95% of guessing attacks are: the Mann-Whitney statistic's spread, its normal limit."""
    half = 1.96 * math.sqrt((members + nonmembers + 1) / (12 * members * nonmembers))
    return max(0.0, 0.5 - half), min(1.0, 0.5 + half)


def _in_words(attacks: Sequence[Attack], public: bool) -> Iterable[str]:
    measured = [attack for attack in attacks if attack.auc.value is not None]
    if not measured:
        if public:
            yield (
                "How well attacks tell the silos' real records from others is computed from those records and is not "
                "itself protected. These figures and curves stay with the silos; this is the version to pass on. "
                "What the attacks found of the canaries, which are nobody's records, stands below."
            )
        else:
            yield f"Telling members from non-members was {NOT_MEASURED}."
        return
    told = [attack.on_what for attack in measured if attack.tells]
    if told:
        yield (
            f"{len(told)} of {len(measured)} attacks told members from non-members better than guessing "
            f"(the AUC's interval lies wholly above 0.5): {'; '.join(told)}."
        )
    else:
        yield f"None of {len(measured)} attacks told members from non-members: no AUC's interval lies wholly above 0.5."
    yield "Of attacks that can tell nothing, one in 40 has such an interval by chance."
    sized = [(one.members, one.nonmembers) for one in measured if one.members and one.nonmembers]
    if sized:
        members, nonmembers = max(sized)
        low, high = guessing_auc(members, nonmembers)
        yield (
            f"With {members} members and {nonmembers} non-members, guessing gives an AUC between {low:.2f} and "
            f"{high:.2f} in 95% of runs, so an attack must be better than that to be noticed here; and a rate of false "
            f"alarms below 1 in {nonmembers} cannot be told from none."
        )


# ---- extraction and the scanner ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A row of two figures; None where the second makes no sense."""

    label: str
    first: Figure
    second: Figure | None


def extraction(report: RoundReport) -> list[Pair]:
    """How many texts the student continues word for word, by the tokens shown: members, and non-members beside."""
    found = {int(match[1]) for metric in report.metrics if (match := _PREFIX.fullmatch(metric.name))}
    return [
        Pair(f"{k} tokens", figure(report, f"extraction.prefix_{k}"), figure(report, f"extraction.prefix_{k}_out"))
        for k in sorted(found)
    ]


def scanner(report: RoundReport) -> list[Pair]:
    """Recall and precision of the scanner by kind of personal data, special forms (`ENTITY.FORM`) below their kind."""
    parts = (metric.name.split(".", 2) for metric in report.metrics if metric.name.count(".") > 1)
    keys = sorted({rest for family, what, rest in parts if family == "pii" and what in ("recall", "precision")})
    return [
        Pair(
            entity_title(key),
            figure(report, f"pii.recall.{key}"),
            figure(report, f"pii.precision.{key}") if "." not in key else None,
        )
        for key in keys
    ]
