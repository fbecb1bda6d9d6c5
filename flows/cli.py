"""The command line.

Exit codes: 0 done (and every gate passed); 1 a defect; 2 something you can mend; 3 a gate held a student back;
4 a privacy guarantee would have been broken; 5 a person's approval is awaited; 130 interrupted.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.flows import cli_schedule, cli_student
from tutelage.flows.cli_audit import audit
from tutelage.flows.cli_options import (
    INTERRUPTED,
    REFUSED,
    WAITS,
    AsJson,
    Jobs,
    Overrides,
    RecipePath,
    RunPath,
    check_models,
)
from tutelage.flows.cli_silo import silo
from tutelage.flows.process import importing, leave_at_once

if TYPE_CHECKING:
    from tutelage.flows.bargain import Bargain
    from tutelage.flows.plan import PlannedSpending
    from tutelage.flows.stage import Run

SHOW_MESSAGES = "TUTELAGE_SHOW_MESSAGES"
_QUIET = {
    # nothing phones home
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # the embedded server: loopback, patient, and silent; what went wrong is said once, by us
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    # OpenMP threads wait 10,000 spins (not forever, not never) for each other: measured as fast
    # as the default and about twice as fast as OMP_WAIT_POLICY=passive, decoding on two cores
    "GOMP_SPINCOUNT": "10000",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

app = typer.Typer(
    rich_markup_mode=None,
    name="tutelage",
    help="Teacher-student social learning on private text: silos teach, only signed lessons leave.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def init(path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("recipe.yaml")) -> None:
    """Write a commented recipe to start from."""
    if path.exists():
        raise UserError("there is a file already", file=path, remedy="name another, or remove it")
    from importlib.resources import files

    from tutelage.configs.store import write_atomic

    write_atomic(path, files("tutelage.configs").joinpath("template.yaml").read_text())
    typer.echo(f"wrote {path}: edit it, then `tutelage validate {path}`")


@app.command()
def validate(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file.")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the recipe's JSON schema instead.")] = False,
    data: Annotated[bool, typer.Option("--data/--no-data", help="Also read and check every record.")] = True,
) -> None:
    """Check a recipe and, record by record, its data."""
    from tutelage.configs.load import load_recipe
    from tutelage.configs.schema import Recipe

    if schema:
        typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))
        return
    if recipe is None:
        raise UserError("no recipe given", remedy="tutelage validate RECIPE")
    checked = load_recipe(recipe, tuple(overrides or ()))
    found = ""
    check_models(checked)
    if data:
        from tutelage.configs.models import fetch_mail
        from tutelage.privacy.partition import partition
        from tutelage.privacy.sources import load_records

        loaded = load_records(checked.data, checked.task, fetch_mail)
        if checked.federation:
            from tutelage.flows.federation.coordinator import deal

            dealt, silos = deal(loaded, checked), f"{len(checked.federation.silos)} silos elsewhere"
        else:
            from tutelage.flows.stages import check_silos

            dealt = partition(loaded, checked.data, checked.task, checked.seed, checked.min_records_per_label)
            check_silos(checked, dealt)
            silos = f"{len(dealt.silos)} silos"
        found = f"; {len(loaded.records)} records, {silos}, {len(dealt.test)} for testing"
    typer.echo(f"{recipe}: fine{found}")


@app.command()
def plan(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a run will cost before it runs: rows, prompts, tokens, minutes, memory."""
    from tutelage.configs.load import load_recipe
    from tutelage.flows.plan import plan as make_plan

    made = make_plan(load_recipe(recipe, tuple(overrides or ())))
    if as_json:
        typer.echo(json.dumps(made.as_dict(), indent=1))
        return
    sizes = ", ".join(f"{name} {count}" for name, count in made.records_per_silo.items())
    by = "" if made.engine == made.measured_with else f" (by {made.measured_with}: {made.engine} has another speed)"
    for name, value in (
        ("records per silo", sizes),
        ("held apart", f"{made.test_records} test, {made.nonmember_records} non-members"),
        ("prompts", f"{made.prompts} with {made.prompt_tokens:,} tokens"),
        ("drafts", f"{made.drafts} with up to {made.generated_tokens:,} tokens"),
        ("teachers cost", _spending(made.spending)),
        ("training", f"{made.training_tokens:,} tokens"),
        ("scoring", f"{made.scored_tokens:,} tokens"),
        ("speed measured", f"{made.prefill_tokens_per_s:.0f} tokens/s read, {made.decode_tokens_per_s:.0f} written"
                           f"{by}"),
        ("estimate", f"{made.total_minutes:.0f} min: teach {made.teach_minutes:.1f}, train {made.train_minutes:.1f}, "
                     f"measure {made.measure_minutes:.1f}"),
        ("memory", f"about {made.memory_gib} GiB"),
    ):  # fmt: skip
        if value:
            typer.echo(f"{name:<18} {value}")
    if made.bargain:
        _show_bargain(made.bargain)


def _spending(planned: PlannedSpending | None) -> str:
    if planned is None:
        return ""
    bound = "no budget" if planned.budget is None else f"budget {planned.budget:g}"
    return (
        f"{planned.low:.3g} to {planned.high:.3g} {planned.unit} ({bound}); all by the dearest: {planned.dearest:.3g}"
    )


def _show_bargain(buys: Bargain) -> None:
    lines = {
        "guarantee": f"epsilon = {buys.epsilon:g}, delta = {buys.delta:.3g} per {buys.unit}, {buys.adjacency}",
        "it buys": f"{buys.texts} texts a silo and round, of at most T = {buys.tokens} tokens (rho = {buys.rho:.4g})",
        "each text": f"B = {buys.batch:g} units behind it (labels equally frequent), clip C = {buys.clip:.3g} logits",
        "votes": f"noise of {buys.sigma:.1f} units",
        "label counts": f"noise of {buys.label_counts_sigma:.1f} units",
        "units used": f"{buys.units_used} in a round, of {buys.units} in the smallest silo",
        "bottleneck": buys.bottleneck,
    }
    unused = {"each text": buys.batch == 0, "votes": buys.sigma == 0, "label counts": buys.label_counts_sigma == 0}
    for name, value in lines.items():
        if not unused.get(name):
            typer.echo(f"{name:<18} {value}")


@app.command()
def run(
    recipe: RecipePath,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Default: runs/NAME.")] = None,
    overrides: Overrides = None,
    jobs: Jobs = 1,
) -> None:
    """Run a recipe, or go on with the run that is in the folder."""
    from tutelage.configs.load import load_recipe
    from tutelage.configs.store import RunDir

    checked = load_recipe(recipe, tuple(overrides or ()))
    check_models(checked)
    root = run_dir or Path("runs") / checked.name
    with RunDir(root).locked():
        _begin()
        from tutelage.flows.stage import create_run

        _finish(create_run(checked, root), jobs)


@app.command()
def resume(run_dir: RunPath, jobs: Jobs = 1) -> None:
    """Go on with a run that was stopped; finished stages are not redone."""
    from tutelage.configs.store import RunDir

    if (run_dir / "run.json").exists():  # else there is nothing to begin
        _begin()
    from tutelage.flows.stage import open_run

    open_run(run_dir)
    with RunDir(run_dir).locked():
        _finish(open_run(run_dir), jobs)


@app.command(name="list")
def list_runs(
    root: Annotated[Path, typer.Argument(help="Folder of run folders.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List the runs in a folder, and how far each is."""
    from tutelage.flows import approve, layout
    from tutelage.flows.stage import open_run

    rows = []
    for written in sorted(root.glob("*/run.json")):
        run = open_run(written.parent)
        outcomes = ["passed" if report.decision.passed else "refused" for report in layout.reports(run)]
        state = outcomes[-1] if len(outcomes) == run.recipe.rounds else "unfinished"
        state = "waits for approval" if approve.waiting(run) else state
        rows.append(
            {
                "run": str(written.parent),
                "id": run.id,
                "rounds": f"{len(outcomes)}/{run.recipe.rounds}",
                "state": state,
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif not rows:
        typer.echo(f"no runs in {root}")
    for row in rows if not as_json else []:
        typer.echo(f"{row['run']:<32} {row['id']:<28} rounds {row['rounds']:<6} {row['state']}")


@app.command()
def report(
    run_dir: Annotated[Path | None, typer.Argument(help="A run folder.")] = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of --json instead.")] = False,
) -> None:
    """Show a run's report, and write it as one HTML page."""
    if schema:
        from tutelage.flows.report.schema import schema_text

        typer.echo(schema_text(), nl=False)
        return
    if run_dir is None:
        raise UserError("no run given", remedy="tutelage report RUN")
    from tutelage.flows import layout, pages
    from tutelage.flows.report.render import render_json
    from tutelage.flows.stage import open_run

    opened = open_run(run_dir)
    reports = layout.reports(opened)
    if not reports:
        raise UserError("no round is finished yet", file=run_dir, remedy=f"tutelage resume {run_dir}")
    if as_json:
        typer.echo(render_json(reports, pages.timings(opened)))
    else:
        _show(opened)


@app.command()
def budget(
    place: Annotated[Path, typer.Argument(help="A folder of ledgers, a run folder, or a folder of runs.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """Show what was spent of every silo's privacy budget: by run, round and mechanism."""
    from tutelage.flows.budget import accounts, print_accounts

    found = accounts(place)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        print_accounts(found)


app.add_typer(audit, name="audit")
app.add_typer(silo, name="silo")
for command in (
    cli_student.inspect,
    cli_student.approve,
    cli_student.publish,
    cli_student.ask,
    cli_schedule.up,
    cli_schedule.deploy,
):
    app.command()(command)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check that this machine has what a run needs."""
    from tutelage.flows.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings], indent=1))
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what:<16} {finding.found}")
            if not finding.ok:
                typer.echo(f"     {finding.remedy}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


def _begin() -> None:
    """Begin to start Prefect's server, and import the flow meanwhile."""
    from tutelage.flows import server

    server.begin()
    with importing():
        import tutelage.flows.distill  # noqa: F401


def _finish(run: Run, jobs: int) -> None:
    """Run the flow to its end, show the report, and tell by the exit code whether every gate passed."""
    typer.echo(f"run {run.id} in {run.dir.root}", err=True)
    from tutelage.flows import approve
    from tutelage.flows.distill import distill
    from tutelage.flows.server import start_embedded

    start_embedded()
    passed = distill(str(run.dir.root.resolve()), jobs)
    _show(run)
    waits = approve.waiting(run)
    if waits:
        typer.echo(
            f"Round {waits} waits for a person. Look at it: tutelage inspect {run.dir.root}\n"
            f'Decide: tutelage approve {run.dir.root} --by "Your Name" --reason "..."   (or --decline), '
            f"then: tutelage resume {run.dir.root}"
        )
        raise typer.Exit(WAITS)
    if not all(passed.values()) or approve.declined(run):
        raise typer.Exit(REFUSED)


def _show(run: Run) -> None:
    from rich.console import Console

    from tutelage.flows import layout, pages
    from tutelage.flows.report.render import print_summary

    page, public = pages.write(run)
    print_summary(layout.reports(run), page, Console())
    typer.echo(f"To pass on, without the figures marked internal: {public}")


def main() -> NoReturn:
    """Entry point: errors a person can mend are shown without a traceback."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without an ε shows a question mark
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries, too, are for terminals only
    try:
        # Outside its standalone mode typer returns the code of a `typer.Exit` or of an interrupt.
        status = app(standalone_mode=False)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(status)
    except UserError as error:
        _fail(str(error), error.remedy, UserError.exit_code)
    except PrivacyError as error:
        _fail(f"stopped to protect private text: {error}", None, PrivacyError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; `tutelage resume RUN` goes on from the last finished stage", None, INTERRUPTED)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own usage errors
            message = error.format_message()
            if type(error).__name__ == "NoArgsIsHelpError":  # no command at all: its message is the help
                print(message, file=sys.stderr)
                sys.exit(2)
            _fail(message, "see --help", 2)
        from tutelage.configs.store import disk_is_full
        from tutelage.flows.stage import StageError

        if isinstance(error, StageError):
            _fail(str(error), None, 1)
        if disk_is_full(error):
            _fail("the disk is full", "free some space, then try again", 2)
        _defect(error)


def _defect(error: Exception) -> NoReturn:
    """Show where an unexpected error happened. Its message may quote a record, so it stays unsaid unless asked for."""
    if os.environ.get(SHOW_MESSAGES):
        raise error
    traceback.print_tb(error.__traceback__)
    _fail(
        f"a defect: {type(error).__name__}, at the last of the lines above",
        f"report it with those lines; {SHOW_MESSAGES}=1 shows its message, which may quote private text",
        1,
    )


def _fail(message: str, remedy: str | None, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    if remedy:
        print(f"  try: {remedy}", file=sys.stderr)
    sys.exit(code)


def entry() -> NoReturn:
    """`main` in a process of its own."""
    code: object = 1
    leave_at_once(lambda: code if isinstance(code, int) else 0)
    try:
        main()
    except SystemExit as stop:
        code = stop.code
        raise


if __name__ == "__main__":
    entry()
