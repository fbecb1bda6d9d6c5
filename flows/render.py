"""The report of a run: one self-contained HTML page, the same as JSON, and the tables at the end of `tutelage run`.

This module sorts `RoundReport`s into what is shown together, `figures.py` words the figures, `guarantee.py` what is
formally promised; `report.html` (jinja2, autoescaped) lays them out as HTML, CSS and inline SVG. Nothing here reads
files, looks at the clock or sees private text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.records import RoundReport
from tutelage.flows.figures import (
    FAMILIES,
    FORGETTING,
    METHODS,
    NO_LEAK,
    NOT_MEASURED,
    OVERLAP,
    PRIVACY,
    Figure,
    by_key,
    ceiling,
    duration,
    families,
    figure,
    method_title,
    methods,
    plain_rule,
    quantity,
    rule_figures,
    ticks,
)
from tutelage.flows.guarantee import Guarantee, utility

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["METHODS", "figure", "plain_rule", "print_summary", "quantity", "render_html", "render_json", "ticks"]


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
    helpers = {f.__name__: f for f in (method_title, by_key, ceiling, duration, plain_rule, rule_figures, ticks)}
    ordered = sorted(reports, key=lambda report: report.round)
    rounds = [_view(report, last=report is ordered[-1]) for report in ordered]
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
    for method, label in methods(report).items():
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
        guarantee = Guarantee.of(report)
        if guarantee is not None:
            console.print(Text(guarantee.line), soft_wrap=True)
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


def _view(report: RoundReport, last: bool) -> dict[str, Any]:
    """A report sorted into what the page shows together. Every metric ends up in exactly one group."""
    names = methods(report)
    scores = {family: {method: figure(report, f"{family}.{method}") for method in names} for family in families(report)}
    recall: dict[str, list[Figure]] = {method: [] for method in names}
    for family, method, label in (m.name.split(".", 2) for m in report.metrics if m.name.count(".") > 1):
        if family == "recall" and method in names:
            recall[method].append(figure(report, f"recall.{method}.{label}", label))
    scored = [f.name for row in (*(row.values() for row in scores.values()), *recall.values()) for f in row]
    shown = {*scored, *PRIVACY, *OVERLAP, *FORGETTING}
    exposure = report.metric("canary.exposure_mean")
    chance = NO_LEAK.search(exposure.interval) if exposure else None
    return {
        "report": report,
        "lessons": "of this run" if last else f"up to round {report.round}",
        "guarantee": Guarantee.of(report),
        "utility": utility(report),
        "methods": names,
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


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
