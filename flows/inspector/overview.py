"""The set as a whole: rounds side by side, balance, lengths, diversity, where texts lie in meaning."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tutelage.configs.records import RoundReport
from tutelage.flows.inspector.index import Index
from tutelage.flows.inspector.measures import Measures
from tutelage.flows.inspector.released import Released
from tutelage.flows.report.figures import by_key, ceiling, families, figure, ticks

_BINS = 12
_COLOURS = 4
"""Labels that are told apart by colour."""


def of(released: Released, index: Index, measures: Measures) -> dict[str, Any]:
    """What the overview shows."""
    labels = [label for label, _ in index.table("label", "kind = 'example'")]
    return {
        "rounds": _rounds(released, index, measures),
        "screening": [(one.round, [silo.silo for silo in one.silos], _screening(one)) for one in released.reports],
        "labels": labels,
        "balance": _balance(index, labels),
        "lengths": _lengths(index, labels),
        "points": _points(index, measures, labels),
        "spread": measures.spread,
        "decisions": index.table("decision"),
        "twins": index.table("learned", "twins > 1"),
    }


def _rounds(released: Released, index: Index, measures: Measures) -> list[dict[str, Any]]:
    """One for each round, with everything that can be compared between rounds."""
    reports = {one.round: one for one in released.reports}
    counted: dict[int, dict[str, int]] = defaultdict(dict)
    for round, kind, count in index.table("round, kind"):
        counted[round][kind] = count
    twins = dict(index.table("round", "twins > 1 AND kind = 'example'"))
    wide = {(row["round"], row["kind"]): row for row in measures.diversity}
    rows = []
    for round, kinds in sorted(counted.items()):
        report = reports.get(round)
        family = families(report)[0] if report else ""
        rows.append(
            {
                "round": round,
                "examples": kinds.get("example", 0),
                "instructions": kinds.get("instruction", 0),
                "learned": sum(report.lessons_per_class.values()) if report else None,
                "passed": report.decision.passed if report else None,
                "student": figure(report, f"{family}.student") if report else None,
                "zero_shot": figure(report, f"{family}.zero_shot") if report else None,
                "epsilon": ceiling(max(one.epsilon for one in report.certificates))
                if report and report.certificates
                else None,
                "diversity": wide.get((round, "example")),
                "twins": twins.get(round, 0) if measures.twins is not None else None,
            }
        )
    return rows


def _screening(report: RoundReport) -> list[tuple[str, list[int]]]:
    """Rows of counts, a column for each silo."""
    return [
        ("drafts", [one.drafts for one in report.silos]),
        ("released", [one.released for one in report.silos]),
        *((f"dropped: {name}", counts) for name, counts in by_key([one.dropped for one in report.silos])),
        *((f"replaced: {name}", counts) for name, counts in by_key([one.replaced for one in report.silos])),
    ]


def _balance(index: Index, labels: list[str]) -> dict[str, Any]:
    """Silo -> counts by label."""
    silos: dict[str, dict[str, int]] = defaultdict(dict)
    for silo, label, count in index.table("silo, label", "kind = 'example'"):
        silos[silo][label] = count
    most = max((sum(one.values()) for one in silos.values()), default=0)
    return {"most": most, "silos": {silo: [one.get(label, 0) for label in labels] for silo, one in silos.items()}}


def _lengths(index: Index, labels: list[str]) -> dict[str, Any]:
    """A histogram of words a text, by label."""
    counts = index.table("words, label", "kind = 'example'")
    if not counts:
        return {"edges": [], "bars": [], "most": 0}
    edges = ticks(min(row[0] for row in counts), max(row[0] for row in counts) + 1, _BINS)
    bars = [[0] * len(labels) for _ in edges[1:]]
    for words, label, count in counts:
        place = next(i for i, edge in enumerate(edges[1:]) if words < edge or i == len(bars) - 1)
        bars[place][labels.index(label)] += count
    return {"edges": edges, "bars": bars, "most": max(map(sum, bars))}


def _points(index: Index, measures: Measures, labels: list[str]) -> list[dict[str, Any]]:
    shown = index.at([place for place, _, _ in measures.points])
    return [
        {"id": one.id, "x": x, "y": y, "colour": min(labels.index(one.label), _COLOURS - 1), "text": one.prompt[:120]}
        for one, (_, x, y) in zip(shown, measures.points, strict=True)
        if one.kind == "example"
    ]
