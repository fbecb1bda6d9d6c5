"""How a report's figures are named and written: titles, units, intervals, gate rules in words.

A figure that was not measured says so, and a bound is rounded up. Nothing here knows what a page or a terminal is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from tutelage.configs.records import Metric, RoundReport, RuleOutcome

NOT_MEASURED = "not measured"

METHODS = {
    "zero_shot": "Zero-shot",
    "few_shot": "Few-shot",
    "instruction": "Instruction only",
    "epsilon_0": "Student at ε = 0 (public only)",
    "student": "Taught student",
    "epsilon_inf": "Student at ε = ∞ (never released)",
    "originals": "Student on originals (upper line)",
    "tfidf": "TF-IDF on lessons",
}
BRACKETS = ("epsilon_0", "epsilon_inf")
"""Methods that only runs under a formal mechanism have."""
FAMILIES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "exact_match": "Exact match",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
}
# metric -> (title, unit); units are the keys of _UNITS
PRIVACY = {
    "canary.rank0_share": ("Canary secrets ranked first", "share"),
    "canary.rank1pct_share": ("Canary secrets in the top 1%", "share"),
    "canary.exposure_mean": ("Mean exposure, planted", "bits"),
    "canary.exposure_max": ("Highest exposure, planted", "bits"),
    "canary.exposure_out_mean": ("Mean exposure, not planted", "bits"),
    "canary.auc": ("AUC, planted against not planted", "score"),
    "canary.p_value": ("p-value of the planted secrets", "score"),
    "lessons.canary_verbatim": ("Canary secrets verbatim in the lessons", "number"),
    "lessons.canary_rank0_share": ("Secrets ranked first from the lessons", "share"),
}
OVERLAP = {
    "overlap.longest_run_max": ("Longest run shared with a record", "words"),
    "overlap.ngram_share": ("Lessons sharing an n-gram", "share"),
    "overlap.near_duplicate_share": ("Lessons near-duplicate to a record", "share"),
    "overlap.cosine_max": ("Highest cosine to a record", "score"),
}
FORGETTING = {
    "forgetting.loss_before": ("Loss on neutral text, base model", "nats"),
    "forgetting.loss_after": ("Loss on neutral text, taught student", "nats"),
    "forgetting.increase": ("Increase in loss on neutral text", "nats"),
}
FORMAL = {"epsilon.claimed": ("ε claimed, the worst silo", "epsilon")}
TITLES = {**PRIVACY, **OVERLAP, **FORGETTING, **FORMAL}

# unit -> (factor, format of the value, format of an interval's ends, what follows the interval)
_UNITS = {
    "share": (100, "{:.1f}%", "{:.1f}", "%"),
    "points": (100, "{:+.1f} points", "{:+.1f}", " points"),
    "bits": (1, "{:.2f} bits", "{:.2f}", " bits"),
    "nats": (1, "{:.3f} nats/token", "{:.3f}", ""),
    "words": (1, "{:g} words", "{:g}", ""),
    "score": (1, "{:.3f}", "{:.3f}", ""),
    "epsilon": (1, "", "{:.3f}", ""),  # the value by `ceiling`
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

    `how` says how the interval was made, `chance` what the figure would be if nothing had leaked. Where there is no
    interval (`bounded` is false), `low` and `high` are the value.
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
    generation = {"exact_match", "rouge_l", "chrf"} & {metric.name.partition(".")[0] for metric in report.metrics}
    return ["exact_match", "rouge_l", "chrf"] if generation else ["accuracy", "macro_f1"]


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


def bracket_epsilon(method: str) -> float | None:
    """ε of a bracket's student (`epsilon_0`, `epsilon_2_5`, `epsilon_inf`); None for another method."""
    try:
        return float(method.removeprefix("epsilon_").replace("_", ".")) if method.startswith("epsilon_") else None
    except ValueError:
        return None


def method_title(method: str) -> str:
    """A method's title."""
    epsilon = bracket_epsilon(method)
    return METHODS[method] if method in METHODS or epsilon is None else f"Student at ε = {epsilon:g} (never released)"


def figure(report: RoundReport, name: str, label: str | None = None) -> Figure:
    """A metric of a report, ready to show; a missing or NaN one says so."""
    metric, unit = report.metric(name), unit_of(name)
    label = label or title_of(name)
    if metric is None or not math.isfinite(metric.value):
        return Figure(name, label, internal=metric is not None and metric.internal)
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
    if unit == "epsilon":
        return ceiling(value)
    factor, form, _, _ = _UNITS[unit]
    return form.format(factor * value)


def ceiling(value: float) -> str:
    """A bound (ε, δ, ρ) with three significant digits, rounded up: what is shown is never smaller than what holds."""
    if math.isnan(value):
        return NOT_MEASURED
    if value == 0 or math.isinf(value):
        return "0" if value == 0 else "∞" if value > 0 else "-∞"
    exact = Decimal(repr(float(value)))
    for _ in range(2):  # 9.999 becomes 10.00 and only then 10.0
        exact = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_CEILING)
    return f"{exact:f}" if -3 <= exact.adjusted() < 5 else f"{float(exact):.2e}"


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


def unit_of(name: str) -> str:
    """The unit (a key of `_UNITS`) a metric is shown in."""
    family = name.partition(".")[0]
    return TITLES[name][1] if name in TITLES else "share" if family in (*FAMILIES, "recall") else "number"


def title_of(name: str) -> str:
    """A metric's name in words."""
    family, _, rest = name.partition(".")
    key, _, label = rest.partition(".")
    if (key in METHODS or bracket_epsilon(key) is not None) and family in (*FAMILIES, "recall"):
        method = METHODS[key] if key == "tfidf" else _lower(method_title(key))
        score = FAMILIES.get(family, "Recall") + (f" on class “{label}”" if label else "")
        return f"{score} of {'the ' if 'student' in method else ''}{method}"
    return TITLES[name][0] if name in TITLES else name[:1].upper() + name[1:]


def plain_rule(outcome: RuleOutcome) -> str:
    """A gate rule as a sentence; a rule in an unknown form is given as it stands."""
    match = _RULE.fullmatch(outcome.rule)
    if match is None:
        return f"{outcome.rule}."
    less = f" minus {_lower(title_of(match['minus']))}" if match["minus"] else ""
    limit = f"at {'least' if match['op'] == '>=' else 'most'} {rule_figures(outcome)[1]}"
    least = f", measured on {match['least']} items or more" if match["least"] else ""
    return f"{title_of(match['metric'])}{_BOUNDS.get(match['bound'], '')}{less} must be {limit}{least}."


def rule_figures(outcome: RuleOutcome) -> tuple[str, str]:
    """What a rule observed and its threshold, with their unit."""
    unit = _rule_unit(outcome)
    return quantity(outcome.observed, unit), quantity(outcome.threshold, unit).removeprefix("+")


def _rule_unit(outcome: RuleOutcome) -> str:
    # a difference of shares is in percentage points
    match = _RULE.fullmatch(outcome.rule)
    unit = unit_of(match["metric"]) if match else "number"
    return "points" if match and match["minus"] and unit == "share" else unit


def _interval(metric: Metric, unit: str, bounded: bool) -> str:
    if metric.interval.startswith("none"):
        return f"no interval{NO_LEAK.sub('', metric.interval).removeprefix('none')}"
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
    return {"canary.auc": "0.500", "lessons.canary_verbatim": "0"}.get(metric.name, "")


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]
