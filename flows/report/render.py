"""The report of a run: one self-contained HTML page, the same as JSON, and the tables at the end of `tutelage run`.

This module sorts `RoundReport`s into what is shown together. `names.py` and `figures.py` word the figures,
`guarantee.py` and `epsilon.py` what is promised and what was measured of it, `attacks_view.py` the attacks, `limits.py`
what is not shown; the templates `report*.html` (jinja2, autoescaped) lay them out as HTML, CSS and inline SVG. Nothing
here reads other files, looks at the clock or sees private text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.records import RoundReport
from tutelage.flows.report.attacks_view import ALARMS, Attacks, extraction, scanner
from tutelage.flows.report.epsilon import Epsilon
from tutelage.flows.report.figures import (
    NO_LEAK,
    NOT_MEASURED,
    WITHHELD,
    Figure,
    by_key,
    ceiling,
    duration,
    families,
    figure,
    methods,
    plain_rule,
    quantity,
    rule_figures,
    ticks,
    tied,
    withheld,
)
from tutelage.flows.report.guarantee import Guarantee, utility
from tutelage.flows.report.limits import limits
from tutelage.flows.report.names import (
    CLEAN_CHANGED,
    CONTAMINATION,
    EPSILON,
    FAMILIES,
    FORGETTING,
    INSTRUCTION,
    METHODS,
    OVERLAP,
    PRIVACY,
    method_title,
)
from tutelage.flows.report.schema import VERSION
from tutelage.flows.report.spending import Costs, amount, mean

if TYPE_CHECKING:
    import jinja2
    from rich.console import Console
    from rich.table import Table

_HELPERS = (method_title, by_key, ceiling, duration, plain_rule, rule_figures, ticks, tied, amount, mean)

__all__ = ["METHODS", "figure", "plain_rule", "print_summary", "quantity", "render_html", "render_json", "ticks"]


def render_html(reports: Sequence[RoundReport], timings: Mapping[str, float]) -> str:
    """The report as one HTML page without scripts or outside resources.

    Args:
        reports: One per round, any order; the last round is shown in full, earlier ones folded below it.
        timings: Stage -> seconds. They are the only part that differs between two runs of one recipe and seed.

    Returns:
        The page; the same arguments give the same bytes.
    """
    ordered = sorted(reports, key=lambda report: report.round)
    rounds = [_view(report, last=report is ordered[-1]) for report in ordered]
    template = _environment().get_template("report.html")
    return template.render(
        rounds=rounds,
        timings=dict(timings),
        glance=_glance(ordered[-1]) if ordered else [],
        limits=limits(ordered[-1], len(ordered)) if ordered else [],
    )


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    # globals, since the macros of an imported template see nothing else
    made.globals.update({f.__name__: f for f in _HELPERS})
    made.globals.update(NOT_MEASURED=NOT_MEASURED, WITHHELD=WITHHELD, METHODS=METHODS, FAMILIES=FAMILIES, ALARMS=ALARMS)
    return made


def render_json(reports: Sequence[RoundReport], timings: Mapping[str, float]) -> str:
    """The same figures for programs: `{"reports": [...], "schema": 1, "timings_s": {...}}`.

    NaN and infinities, which JSON does not have, are written as null. Keys are sorted. The schema is that of
    `schema.py`.
    """
    rows = [report.model_dump() for report in sorted(reports, key=lambda report: report.round)]
    text = json.dumps({"schema": VERSION, "reports": rows, "timings_s": dict(timings)})
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
        for line in _telling(report):
            console.print(Text(line), soft_wrap=True)
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


def _telling(report: RoundReport) -> list[str]:
    """The strongest attack, and what an audit measured: one line each, where there is one."""
    epsilon, strongest = Epsilon.of(report), Attacks.of(report).strongest
    lines = [epsilon.line] if epsilon.line else []
    if epsilon.broken:
        lines.append("The audit measured more than is claimed: the code or the claim is wrong.")
    if strongest is not None:
        interval = f" ({strongest.auc.interval})" if strongest.auc.bounded else ""
        lines.append(f"Strongest attack: {strongest.on_what}, AUC {strongest.auc.text}{interval}")
    costs = Costs.of(report)
    return [*lines, costs.line] if costs else lines


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
    table.add_column(first)  # it alone gives way where the terminal is narrow
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    return table


def _short(shown: Figure) -> str:
    return "-" if shown.value is None else shown.text


@dataclass(frozen=True)
class Tile:
    """One of the few figures at the head of the page."""

    label: str
    text: str
    note: str
    bad: bool = False


def _glance(report: RoundReport) -> list[Tile]:
    """What somebody who reads no further should have seen."""
    family = families(report)[0]
    student, zero_shot = (figure(report, f"{family}.{method}") for method in ("student", "zero_shot"))
    scored = (
        f"{student.interval}; zero-shot {zero_shot.text}"
        if student.value is not None
        else f"zero-shot {zero_shot.text}"
    )
    epsilon, attacks = Epsilon.of(report), Attacks.of(report)
    best, guarantee = epsilon.best, epsilon.guarantee
    if epsilon.claimed is not None and guarantee is not None:
        claim = Tile(
            "ε claimed", f"≤ {ceiling(epsilon.claimed)}", f"per {guarantee.unit}, δ = {ceiling(guarantee.delta)}"
        )
    else:
        why = "lessons were screened only" if guarantee is None else guarantee.why_not
        claim = Tile("ε claimed", "no bound", why, bad=guarantee is not None)
    could = f"on {best.on}; at most {best.most.text} could show" if best and best.most.value is not None else ""
    measured = (
        Tile("ε measured", f"≥ {best.low.text}", could or f"on {best.on}")
        if best
        else Tile("ε measured", NOT_MEASURED, "")
    )
    if epsilon.broken:
        measured = Tile("ε measured", measured.text, "more than is claimed", bad=True)
    strongest = attacks.strongest
    if strongest is not None:
        attack = Tile(
            "Strongest attack",
            f"AUC {strongest.auc.text}",
            f"{strongest.on_what}; {strongest.auc.interval}; 0.5 is guessing",
            bad=strongest.tells,
        )
    else:
        first = figure(report, "canary.rank0_share")
        attack = Tile("Canary secrets found at once", first.text, f"by chance {first.chance}" if first.chance else "")
    return [Tile(f"{FAMILIES[family]} of the student", student.text, scored), claim, measured, attack]


def _view(report: RoundReport, last: bool) -> dict[str, Any]:
    """A report sorted into what the page shows together. Every metric ends up in exactly one group."""
    names = methods(report)
    scores = {family: {method: figure(report, f"{family}.{method}") for method in names} for family in families(report)}
    recall: dict[str, list[Figure]] = {method: [] for method in names}
    for family, method, label in (m.name.split(".", 2) for m in report.metrics if m.name.count(".") > 1):
        if family == "recall" and method in names:
            recall[method].append(figure(report, f"recall.{method}.{label}", label))
    scored = [f.name for row in (*(row.values() for row in scores.values()), *recall.values()) for f in row]
    attacks, pairs = Attacks.of(report), {"extraction": extraction(report), "scanner": scanner(report)}
    shown = {
        *scored,
        *PRIVACY,
        *INSTRUCTION,
        *OVERLAP,
        *FORGETTING,
        *CONTAMINATION,
        *EPSILON,
        CLEAN_CHANGED,
        *attacks.names,
    }
    shown |= {f.name for rows in pairs.values() for pair in rows for f in (pair.first, pair.second) if f is not None}
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
        "epsilon": Epsilon.of(report),
        "costs": Costs.of(report),
        "attacks": attacks,
        **pairs,
        "clean_changed": figure(report, CLEAN_CHANGED),
        "contamination": [figure(report, name) for name in CONTAMINATION],
        "withheld": withheld(report),
        "canaries": [figure(report, name) for name in PRIVACY],
        "instruction": [figure(report, name) for name in INSTRUCTION],
        "chance": float(chance["chance"]) if chance else math.log2(math.e),
        "overlap": [figure(report, name) for name in OVERLAP],
        "forgetting": [figure(report, name) for name in FORGETTING],
        "further": [figure(report, m.name) for m in report.metrics if m.name not in shown],
        "train": [(p.step, p.train_loss) for p in report.curve if _known(p.train_loss)],
        "heldback": [(p.step, p.heldback_loss) for p in report.curve if _known(p.heldback_loss)],
    }


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
