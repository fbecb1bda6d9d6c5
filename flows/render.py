"""The report of a run: one self-contained HTML page, the same as JSON, and the tables at the end of `tutelage run`.

This module turns `RoundReport`s into figures and chart positions; `report.html` (jinja2, autoescaped) lays them
out as HTML, CSS and inline SVG. Nothing here reads files, looks at the clock or sees private text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.records import Metric, RoundReport, RuleOutcome

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOT_MEASURED = "not measured"

METHODS = {
    "zero_shot": "Zero-shot",
    "few_shot": "Few-shot",
    "instruction": "Instruction only",
    "student": "Taught student",
    "originals": "Student on originals (upper line)",
    "tfidf": "TF-IDF on lessons",
}
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
TITLES = {**PRIVACY, **OVERLAP, **FORGETTING}

# unit -> (factor, format of the value, format of an interval's ends, what follows the interval)
_UNITS = {
    "share": (100, "{:.1f}%", "{:.1f}", "%"),
    "points": (100, "{:+.1f} points", "{:+.1f}", " points"),
    "bits": (1, "{:.2f} bits", "{:.2f}", " bits"),
    "nats": (1, "{:.3f} nats/token", "{:.3f}", ""),
    "words": (1, "{:g} words", "{:g}", ""),
    "score": (1, "{:.3f}", "{:.3f}", ""),
    "number": (1, "{:.4g}", "{:.4g}", ""),
}
# as privacy/gate.py words its rules
_RULE = re.compile(
    r"(?P<metric>.+?)(?: \((?P<bound>value|ci_low|ci_high)\))?(?: - (?P<minus>\S+))? (?P<op>>=|<=) (?P<value>\S+)"
)
_BOUNDS = {"ci_low": " (lower end of its interval)", "ci_high": " (upper end of its interval)"}
# as privacy/attacks note in a metric's interval what chance would give
_NO_LEAK = re.compile(r"; (?P<chance>[\d.]+) with no leak$")


@dataclass(frozen=True)
class Figure:
    """One metric as it is shown; `low`, `value` and `high` are None where it was not measured.

    `how` says how the interval was made, `chance` what the figure would be if nothing had leaked.
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


def render_html(reports: Sequence[RoundReport], timings: Mapping[str, float]) -> str:
    """The report as one HTML page without scripts or outside resources.

    Args:
        reports: One per round, any order; the last round is shown in full, earlier ones folded below it.
        timings: Stage -> seconds. They are the only part that differs between two runs of one recipe and seed.

    Returns:
        The page; the same arguments give the same bytes.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    names: dict[str, Any] = {"NOT_MEASURED": NOT_MEASURED, "METHODS": METHODS, "FAMILIES": FAMILIES}
    helpers = {f.__name__: f for f in (by_key, duration, plain_rule, rule_figures, ticks)}
    rounds = [_view(report) for report in sorted(reports, key=lambda report: report.round)]
    return environment.get_template("report.html").render(rounds=rounds, timings=dict(timings), **names, **helpers)


def render_json(reports: Sequence[RoundReport], timings: Mapping[str, float]) -> str:
    """The same figures for programs: `{"reports": [...], "schema": 1, "timings_s": {...}}`.

    NaN and infinities, which JSON does not have, are written as null. Keys are sorted.
    """
    rows = [report.model_dump() for report in sorted(reports, key=lambda report: report.round)]
    text = json.dumps({"schema": 1, "reports": rows, "timings_s": dict(timings)})
    value = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def summary_table(report: RoundReport) -> Table:
    """The methods of one round with score, 95% interval and n, at most 80 columns wide."""
    first, *second = families(report)[:2]
    names = [FAMILIES[first], "95% interval", *(FAMILIES[family] for family in second), "n"]
    table = _table(f"Round {report.round} on real test data", "Method", *names)
    for method, label in METHODS.items():
        shown = figure(report, f"{first}.{method}")
        others = [_short(figure(report, f"{family}.{method}")) for family in second]
        cells = [label, _short(shown), shown.interval or NOT_MEASURED, *others, str(shown.n or "-")]
        table.add_row(*cells, style="bold" if method == "student" else "")
    return table


def print_summary(reports: Sequence[RoundReport], report_path: Path, console: Console) -> None:
    """Print the last round's tables, what the gate decided in every round, and where the report lies."""
    from rich.text import Text

    ordered = sorted(reports, key=lambda report: report.round)
    for report in ordered[-1:]:
        for table in (summary_table(report), _privacy_table(report), _gate_table(report)):
            console.print(table)
            console.print()
    for report in ordered:
        word, style = ("PASSED", "bold green") if report.decision.passed else ("REFUSED", "bold red")
        console.print(Text.assemble(f"Gate, round {report.round}: ", (word, style)))
    console.print(Text(f"Report: {report_path}"), soft_wrap=True)


def _privacy_table(report: RoundReport) -> Table:
    """The few privacy figures that a newcomer should see first."""
    table = _table("What the attacks found", "Figure", "Observed", "95% interval", "No leak")
    first = ("canary.rank0_share", "canary.exposure_mean", "overlap.longest_run_max", "overlap.near_duplicate_share")
    for shown in (figure(report, name) for name in first):
        interval = "-" if shown.how.startswith("none") else shown.interval
        table.add_row(shown.label, _short(shown), interval or NOT_MEASURED, shown.chance or "-")
    return table


def _gate_table(report: RoundReport) -> Table:
    from rich.text import Text

    table = _table("The gate", "Rule", "Observed", "Outcome")
    for outcome in report.decision.outcomes:
        mark = Text("passed", "green") if outcome.passed else Text("REFUSED", "bold red")
        table.add_row(Text(outcome.rule), rule_figures(outcome)[0], mark)
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    """A plain table: text in the first column, figures to the right of it."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_style="bold", title_justify="left", pad_edge=False, show_edge=False
    )
    table.add_column(first, no_wrap=True, overflow="ellipsis")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    return table


def _short(shown: Figure) -> str:
    return "-" if shown.value is None else shown.text


def _view(report: RoundReport) -> dict[str, Any]:
    """A report sorted into what the page shows together. Every metric ends up in exactly one group."""
    scores = {family: [figure(report, f"{family}.{method}") for method in METHODS] for family in families(report)}
    recall: dict[str, list[Figure]] = {method: [] for method in METHODS}
    for family, method, label in (m.name.split(".", 2) for m in report.metrics if m.name.count(".") > 1):
        if family == "recall" and method in METHODS:
            recall[method].append(figure(report, f"recall.{method}.{label}", label))
    shown = {f.name for row in (*scores.values(), *recall.values()) for f in row} | TITLES.keys()
    exposure = report.metric("canary.exposure_mean")
    chance = _NO_LEAK.search(exposure.interval) if exposure else None
    return {
        "report": report,
        "scores": scores,
        "recall": recall,
        "canaries": [figure(report, name) for name in PRIVACY],
        "chance": float(chance["chance"]) if chance else math.log2(math.e),
        "overlap": [figure(report, name) for name in OVERLAP],
        "forgetting": [figure(report, name) for name in FORGETTING],
        "further": [figure(report, m.name) for m in report.metrics if m.name not in shown],
        "train": [(p.step, p.train_loss) for p in report.curve if _known(p.train_loss)],
        "heldback": [(p.step, p.heldback_loss) for p in report.curve if _known(p.heldback_loss)],
    }


def families(report: RoundReport) -> list[str]:
    """The scores this report's task is measured by; the first is the one to compare methods with."""
    generation = {"exact_match", "rouge_l", "chrf"} & {metric.name.partition(".")[0] for metric in report.metrics}
    return ["exact_match", "rouge_l", "chrf"] if generation else ["accuracy", "macro_f1"]


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
        how=_NO_LEAK.sub("", metric.interval),
        n=metric.n,
        internal=metric.internal,
        chance=_chance(metric, unit),
        value=metric.value,
        low=metric.ci_low if bounded else metric.value,
        high=metric.ci_high if bounded else metric.value,
    )


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


def quantity(value: float | None, unit: str) -> str:
    """A figure with its unit; None or NaN is 'not measured'."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    factor, form, _, _ = _UNITS[unit]
    return form.format(factor * value)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def unit_of(name: str) -> str:
    """The unit (a key of `_UNITS`) a metric is shown in."""
    family = name.partition(".")[0]
    return TITLES[name][1] if name in TITLES else "share" if family in (*FAMILIES, "recall") else "number"


def title_of(name: str) -> str:
    """A metric's name in words."""
    family, _, rest = name.partition(".")
    key, _, label = rest.partition(".")
    if key in METHODS and family in (*FAMILIES, "recall"):
        method = METHODS[key] if key == "tfidf" else _lower(METHODS[key])
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
    return f"{title_of(match['metric'])}{_BOUNDS.get(match['bound'], '')}{less} must be {limit}."


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
        return f"no interval{_NO_LEAK.sub('', metric.interval).removeprefix('none')}"
    if not bounded:
        return "interval not measured"
    factor, _, form, after = _UNITS[unit]
    return f"{form.format(factor * metric.ci_low)} to {form.format(factor * metric.ci_high)}{after}"


def _chance(metric: Metric, unit: str) -> str:
    match = _NO_LEAK.search(metric.interval)
    if match:
        return quantity(float(match["chance"]), unit)
    if metric.name == "canary.exposure_max":
        # exposures of random ranks are exponential with mean log2(e), so the largest of n has mean log2(e) times H_n
        return f"about {math.log2(math.e) * sum(1 / k for k in range(1, metric.n + 1)):.2f} bits"
    return {"canary.auc": "0.500", "lessons.canary_verbatim": "0"}.get(metric.name, "")


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]
