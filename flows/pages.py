"""What a run shows of itself: the report's pages, stated in its log, and a summary for Prefect's own pages."""

from __future__ import annotations

import json
from pathlib import Path

from tutelage.configs.records import RoundReport
from tutelage.configs.store import write_atomic
from tutelage.flows import layout
from tutelage.flows.report.figures import ceiling, families, figure, methods, plain_rule, rule_figures
from tutelage.flows.report.render import render_html
from tutelage.flows.stage import Run
from tutelage.privacy.custody import Custody
from tutelage.students.publish import public_report


def write(run: Run) -> tuple[Path, Path]:
    """Write the report in full, and the one to pass on.

    Returns:
        Their files: in the vault, and in release/.
    """
    reports = layout.reports(run)
    page, public = run.dir.vault / "report.html", run.dir.release / "report.html"
    made = {
        page: render_html(reports, timings(run)),
        public: render_html([public_report(one) for one in reports], {}),
    }
    named = {path.relative_to(run.dir.root).as_posix(): text for path, text in made.items()}
    Custody(run.dir.root).add_pages(named, after=[f"round-{one.round}/judge_round" for one in reports])
    for path, text in made.items():
        write_atomic(path, text)
    return page, public


def timings(run: Run) -> dict[str, float]:
    """Stage -> seconds, from the manifests."""
    manifests = [json.loads(path.read_text()) for path in run.dir.stages.rglob("*.json")]
    return {manifest["stage"]: manifest["seconds"] for manifest in manifests}


def markdown(run: Run, report: RoundReport) -> str:
    """A round's verdict, scores and gate, without internal figures.

    Args:
        run: The run.
        report: The round's, in full or without internal figures.
    """
    public = public_report(report)
    family = families(public)[0]
    verdict = "passed" if public.decision.passed else "**refused**"
    claimed = max((one.epsilon for one in public.certificates), default=None)
    scores = [(title, figure(public, f"{family}.{key}")) for key, title in methods(public).items()]
    rows = "".join(f"| {title} | {one.text} | {one.interval} |\n" for title, one in scores if one.value is not None)
    rules = "".join(
        f"| {plain_rule(one)} | {rule_figures(one)[0]} | {'passed' if one.passed else '**failed**'} |\n"
        for one in public.decision.outcomes
    )
    guarantee = f"ε ≤ {ceiling(claimed)} per unit, replace-by-null." if claimed is not None else "No formal guarantee."
    return (
        f"## {run.id}, round {report.round}: {verdict}\n\n{guarantee}\n\n"
        f"| Method | {family} | 95% |\n|---|---|---|\n{rows}\n"
        f"| Rule | Observed | |\n|---|---|---|\n{rules}\n"
        f"Report: `{run.dir.release / 'report.html'}`. Data set, for `datasets.load_dataset`: "
        f"`{layout.data_card_path(run, report.round).parent}`. Texts: `tutelage inspect {run.dir.root}`.\n"
    )
