"""`tutelage audit power` as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.flows.power.gates import Verdicts
from tutelage.flows.power.worlds import KINDS

_RULES_SHOWN = 3


def as_json(verdicts: Sequence[Verdicts]) -> list[dict[str, Any]]:
    """One row for each kind of pipeline."""
    return [
        {
            "pipeline": one.pipeline,
            "what": KINDS[one.pipeline].what,
            "leaks": one.leaks,
            "seeds": one.seeds,
            "wrong": one.wrong,
            "rate": one.wrong / one.seeds,
            "ci_low": one.interval[0],
            "ci_high": one.interval[1],
            "refused_by": dict(one.by),
        }
        for one in verdicts
    ]


def print_verdicts(verdicts: Sequence[Verdicts]) -> None:
    """How often the gate was wrong, with 95% intervals, and which rules refused."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="How often the gate is wrong", title_justify="left", box=None, pad_edge=False, expand=False)
    table.add_column("Pipeline")
    table.add_column("Wrong if", no_wrap=True)
    for heading in ("Wrong", "Rate", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Refused by (share of seeds)")
    for one in verdicts:
        low, high = one.interval
        by = "\n".join(f"{rule} ({100 * count / one.seeds:.0f}%)" for rule, count in one.by[:_RULES_SHOWN])
        table.add_row(
            KINDS[one.pipeline].what,
            "passed" if one.leaks else "refused",
            f"{one.wrong} of {one.seeds}",
            f"{100 * one.wrong / one.seeds:.1f}%",
            f"{100 * low:.1f} to {100 * high:.1f}%",
            by or "-",
        )
    Console().print(table)
