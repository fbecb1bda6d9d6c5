"""How a report's figures are written: units, intervals, gate rules in words.

A figure that was not measured says so; an upper bound is rounded up, a lower one down. Nothing here knows what a page
or a terminal is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from tutelage.configs.records import Metric, RoundReport, RuleOutcome
from tutelage.flows.report.names import (
    BRACKETS,
    METHODS,
    TARGETS,
    bracket_epsilon,
    lower,
    method_title,
    title_of,
    unit_of,
)

NOT_MEASURED = "not measured"

WITHHELD = "not in this version"

# unit -> (factor, format of the value, format of an interval's ends, what follows the interval)
_UNITS = {
    "share": (100, "{:.1f}%", "{:.1f}", "%"),
    "points": (100, "{:+.1f} points", "{:+.1f}", " points"),
    "bits": (1, "{:.2f} bits", "{:.2f}", " bits"),
    "nats": (1, "{:.3f} nats/token", "{:.3f}", ""),
    "words": (1, "{:g} words", "{:g}", ""),
    "score": (1, "{:.3f}", "{:.3f}", ""),
    "epsilon": (1, "", "{:.3f}", ""),  # the value by `ceiling`
    "epsilon_low": (1, "", "{:.3f}", ""),  # by `floor`
    "number": (1, "{:.4g}", "{:.4g}", ""),
}
# as privacy/gate.py words its rules
_RULE = re.compile(
    r"(?P<metric>.+?)(?: \((?P<bound>value|ci_low|ci_high)\))?(?: - (?P<minus>\S+))? (?P<op>>=|<=) (?P<value>\S+)"
    r"(?: with n >= (?P<least>\d+))?"
)
_BOUNDS = {"ci_low": " (lower end of its interval)", "ci_high": " (upper end of its interval)"}
# as privacy/attacks note in a metric's interval what chance would give
NO_LEAK = re.compile(r"; (?P<chance>[\d.]+) with no leak$")


@dataclass(frozen=True)
class Figure:
    """One metric as it is shown; `low`, `value` and `high` are None where it was not measured.

    `how` says how the interval was made, or why there is no figure; `chance` what it would be if nothing had leaked.
    Where there is no interval (`bounded` is false), `low` and `high` are the value.
    """

    name: str
    label: str
    text: str = NOT_MEASURED
    interval: str = ""
    how: str = ""
    n: int | None = None
    internal: bool = False
    chance: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bounded: bool = False


def families(report: RoundReport) -> list[str]:
    """The scores this report's task is measured by; the first is the one to compare methods with."""
    present = {metric.name.partition(".")[0] for metric in report.metrics}
    if not present & {"exact_match", "rouge_l", "chrf"}:
        return ["accuracy", "macro_f1"]
    return ["exact_match", "rouge_l", "chrf", *(["fits"] if "fits" in present else [])]


def methods(report: RoundReport) -> dict[str, str]:
    """The methods to show, measured or not: key -> title. Of the brackets of ε those that the report has, by ε."""
    present = {metric.name.split(".")[1] for metric in report.metrics if "." in metric.name}
    other = sorted(
        (key for key in present - METHODS.keys() if bracket_epsilon(key) is not None),
        key=lambda key: bracket_epsilon(key) or 0,
    )
    shown: dict[str, str] = {}
    for key, title in METHODS.items():
        if key == "epsilon_inf":
            shown |= {one: method_title(one) for one in other}
        if key in present or key not in BRACKETS:
            shown[key] = title
    return shown


def withheld(report: RoundReport) -> bool:
    """Whether the report is the version to pass on, without internal figures: every whole one has some."""
    inside = [one.internal for one in report.metrics] + [one.internal for one in report.roc]
    return bool(report.metrics) and not any(inside)


def always_internal(name: str) -> bool:
    """Whether a metric of that name is computed from private records, and so never in a version to pass on."""
    family, _, rest = name.partition(".")
    method = rest.partition(".")[0]
    return (
        family in ("overlap", "extraction", *TARGETS)
        or name == "contamination.silos_share"
        or method == "originals"
        or (bracket_epsilon(method) or 0) > 0
    )


def figure(report: RoundReport, name: str, label: str | None = None) -> Figure:
    """A metric of a report, ready to show; a missing or NaN one says so."""
    metric, unit = report.metric(name), unit_of(name)
    label = label or title_of(name)
    if metric is None:
        return Figure(name, label, text=WITHHELD if withheld(report) and always_internal(name) else NOT_MEASURED)
    if not math.isfinite(metric.value):
        why = metric.interval.removeprefix("none: ")
        return Figure(name, label, internal=metric.internal, how="" if why == NOT_MEASURED else why)
    bounded = math.isfinite(metric.ci_low) and math.isfinite(metric.ci_high)
    return Figure(
        name=name,
        label=label,
        text=quantity(metric.value, unit),
        interval=_interval(metric, unit, bounded),
        how=NO_LEAK.sub("", metric.interval),
        n=metric.n,
        internal=metric.internal,
        chance=_chance(metric, unit),
        value=metric.value,
        low=metric.ci_low if bounded else metric.value,
        high=metric.ci_high if bounded else metric.value,
        bounded=bounded and not metric.interval.startswith("none"),
    )


def quantity(value: float | None, unit: str) -> str:
    """A figure with its unit; None or NaN is 'not measured'."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    if unit in ("epsilon", "epsilon_low"):
        return ceiling(value) if unit == "epsilon" else floor(value)
    factor, form, _, _ = _UNITS[unit]
    return form.format(factor * value)


def ceiling(value: float) -> str:
    """A bound (ε, δ, ρ) with three significant digits, rounded up: what is shown is never smaller than what holds."""
    return _rounded(value, ROUND_CEILING)


def floor(value: float) -> str:
    """A lower bound with three significant digits, rounded down: what is shown is never larger than what was found."""
    return _rounded(value, ROUND_FLOOR)


def _rounded(value: float, way: str) -> str:
    if math.isnan(value):
        return NOT_MEASURED
    if value == 0 or math.isinf(value):
        return "0" if value == 0 else "∞" if value > 0 else "-∞"
    exact = Decimal(repr(float(value)))
    for _ in range(2):  # 9.999 becomes 10.00 and only then 10.0
        exact = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), way)
    return f"{exact:f}" if -3 <= exact.adjusted() < 5 else f"{float(exact):.2e}"


def tied(text: str) -> str:
    """A text in which no line ends between ε and its bound."""
    return re.sub(r"([εδ≥≤=]) (?=[≥≤=\d])", "\\1\N{NO-BREAK SPACE}", text)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def by_key(counts: Sequence[Mapping[str, int]]) -> list[tuple[str, list[int]]]:
    """Several silos' counts turned into rows: (title, one number per silo) for every key any of them has."""
    keys = sorted({key for row in counts for key in row})
    return [(key.replace("_", " "), [row.get(key, 0) for row in counts]) for key in keys]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover low to high, first and last included."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def plain_rule(outcome: RuleOutcome) -> str:
    """A gate rule as a sentence; a rule in an unknown form is given as it stands."""
    match = _RULE.fullmatch(outcome.rule)
    if match is None:
        return f"{outcome.rule}."
    less = f" minus {lower(title_of(match['minus']))}" if match["minus"] else ""
    limit = f"at {'least' if match['op'] == '>=' else 'most'} {rule_figures(outcome)[1]}"
    least = f", measured on {match['least']} items or more" if match["least"] else ""
    return f"{title_of(match['metric'])}{_BOUNDS.get(match['bound'], '')}{less} must be {limit}{least}."


def rule_figures(outcome: RuleOutcome) -> tuple[str, str]:
    """What a rule observed and its threshold, with their unit."""
    unit = _rule_unit(outcome)
    if outcome.observed is None and outcome.reason.startswith("internal figure"):  # as students/publish.py withholds it
        return WITHHELD, quantity(outcome.threshold, unit).removeprefix("+")
    return quantity(outcome.observed, unit), quantity(outcome.threshold, unit).removeprefix("+")


def _rule_unit(outcome: RuleOutcome) -> str:
    # a difference of shares is in percentage points
    match = _RULE.fullmatch(outcome.rule)
    unit = unit_of(match["metric"]) if match else "number"
    return "points" if match and match["minus"] and unit == "share" else unit


def _interval(metric: Metric, unit: str, bounded: bool) -> str:
    if metric.interval.startswith("none"):
        return f"no interval{NO_LEAK.sub('', metric.interval).removeprefix('none')}"
    if unit == "epsilon_low" and math.isinf(metric.ci_high) and math.isfinite(metric.ci_low):
        return f"{floor(metric.ci_low)} or more"
    if not bounded:
        return "interval not measured"
    factor, _, form, after = _UNITS[unit]
    return f"{form.format(factor * metric.ci_low)} to {form.format(factor * metric.ci_high)}{after}"


def _chance(metric: Metric, unit: str) -> str:
    match = NO_LEAK.search(metric.interval)
    if match:
        return quantity(float(match["chance"]), unit)
    if metric.name == "canary.exposure_max":
        # exposures of random ranks are exponential with mean log2(e), so the largest of n has mean log2(e) times H_n
        return f"about {math.log2(math.e) * sum(1 / k for k in range(1, metric.n + 1)):.2f} bits"
    if metric.name.endswith(("auc", "_verbatim")):
        return "0.500" if metric.name.endswith("auc") else "0"
    return ""
