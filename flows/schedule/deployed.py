"""What a schedule, trigger or button begins: flows over paths and settings; `tutelage deploy` puts them on a server.

Prefect stores their parameters and states. Those are paths, numbers and names; what goes wrong is said by `UserError`
and its kin, which never quote data.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.flow_runs import suspend_flow_run
from prefect.states import Completed, Failed

from tutelage.configs.errors import UserError
from tutelage.configs.load import load_recipe
from tutelage.configs.schema import FileData
from tutelage.configs.store import RunDir, digest, files_below
from tutelage.flows import approve, layout, pages, progress, registry
from tutelage.flows.budget import recompute_run
from tutelage.flows.distill import run_rounds
from tutelage.flows.federation.part import take_part
from tutelage.flows.federation.silo import Silo
from tutelage.flows.schedule import flow_runs
from tutelage.flows.stage import Run, create_run, open_run
from tutelage.flows.tied import end_with_parent
from tutelage.flows.verify import verify_run
from tutelage.flows.workers import working

SETTLED_S = 60
"""Records that nobody has written for so long are taken to be whole."""


@flow(name="run", persist_result=False, log_prints=False, retries=0)
def run(recipe: Path, runs: Path, jobs: int = 1, overrides: list[str] | None = None) -> State[Any]:
    """Run a recipe in a folder of its own, and stop for a person where it asks for one.

    Args:
        recipe: The recipe's file, its whole path.
        runs: Folder of run folders. The run's own is named after the recipe and this flow run, so that a retry goes on.
        jobs: Stages at once.
        overrides: As `--set` takes them, e.g. `teach.temperature=0.8`.
    """
    end_with_parent()
    checked = load_recipe(recipe, tuple(overrides or ()))
    root = flow_runs.folder(runs, checked.name, str(runtime.flow_run.id))
    while True:
        with RunDir(root).locked(), working(jobs):
            made = create_run(checked, root)
            with progress.showing(checked.name, made.id):
                run_rounds(str(root.resolve()))
            pages.write(made)
        _show(made)
        round = approve.waiting(made)
        if round is None:
            return _ended(made)
        word = suspend_flow_run(wait_for_input=approve.Word, key=f"round-{round}")
        with RunDir(root).locked():
            approve.decide(made, round, approved=word.approved, by=word.by, reason=word.reason)


@flow(name="look", persist_result=False, log_prints=False, retries=0)
def look(recipe: Path, overrides: list[str] | None = None) -> State[Any]:
    """Begin a run of a recipe if its records are others than at the last look, and nobody is writing them.

    Files are told by name, size and time alone. The first look begins a run, too.

    Args:
        recipe: The recipe's file, its whole path.
        overrides: As `--set` takes them.
    """
    checked = load_recipe(recipe, tuple(overrides or ()))
    source = checked.data.records
    if not isinstance(source, FileData):
        return Completed(message="this recipe's records are in no file")
    found = files_below(source.path) if source.path.is_dir() else [source.path]
    files = {file: file.stat() for file in found if file.exists()}
    if not files:
        raise UserError("there are no records", file=source.path, key="data.records.path")
    if time.time() - max(one.st_mtime for one in files.values()) < SETTLED_S:
        return Completed(name="Waiting", message="the records were changed just now")
    seen = digest([checked.name, *([str(file), one.st_size, one.st_mtime_ns] for file, one in files.items())])
    # Asked for twice under one key, a run is begun once: so no look needs to remember what it has seen.
    begun: Any = run_deployment(f"run/{checked.name}", timeout=0, as_subflow=False, idempotency_key=f"look-{seen}")
    return Completed(message=f"flow run {begun.id} is of these records")


@flow(name="silo", persist_result=False, log_prints=False, retries=0)
def silo(home: Path, run_id: str) -> State[Any]:
    """A silo's part of a run that is elsewhere, on the silo's own worker, to its end.

    Args:
        home: The silo's folder.
        run_id: The run's.
    """
    end_with_parent()
    take_part(Silo.open(home), run_id)
    return Completed(message=f"all of this silo's part of {run_id} is handed over")


@flow(name="audit", persist_result=False, log_prints=False, retries=0)
def audit(run_dir: Path) -> State[Any]:
    """Hold every file of a run against its signed log, and every certificate against its ledger.

    Args:
        run_dir: The run's folder.
    """
    found = [f"{one.where}: {one.problem}" for one in verify_run(run_dir).findings]
    made, holds = open_run(run_dir), ""
    if made.recipe.formal:
        found += [f"{row['silo']}: {problem}" for row in recompute_run(made) for problem in row["problems"]]
        holds = "; every certificate's ε holds"
    if found:
        return Failed(name="Changed", message=f"{len(found)} findings, first {found[0]}")
    return Completed(message=f"every file is as the log says{holds}")


@flow(name="publish", persist_result=False, log_prints=False, retries=2, retry_delay_seconds=30)
def publish(run_dir: Path, to: str) -> State[Any]:
    """Put the last round's published student where others get it. Tried again, since networks fail.

    Args:
        run_dir: The run's folder.
        to: A folder, `s3://BUCKET/FOLDER`, `hf://ORG/NAME` or `mlflow:NAME`.
    """
    made = open_run(run_dir)
    return Completed(message=registry.send_round(made, made.recipe.rounds, to))


def _ended(made: Run) -> State[Any]:
    reports = layout.reports(made)
    refused = [str(one.round) for one in reports if not one.decision.passed]
    if refused:
        return Completed(name="Refused", message=f"the gate refused round {', '.join(refused)}: {made.dir.root}")
    declined = [str(round) for round in approve.declined(made)]
    if declined:
        return Completed(name="Declined", message=f"a person declined round {', '.join(declined)}: {made.dir.root}")
    return Completed(message=f"every gate passed: {made.dir.root}")


def _show(made: Run) -> None:
    """The round's table in Prefect's pages. Aggregates only, of the report that may be passed on."""
    for report in layout.reports(made):
        create_markdown_artifact(
            pages.markdown(made, report), key=progress.key(made.recipe.name, f"round-{report.round}"),
            description=f"{made.id}, round {report.round}",
        )  # fmt: skip
