"""The commands of who schedules: a server, a worker, deployments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.flows.cli_options import Jobs, Overrides, RecipePath, check_models, follow


def deploy(
    recipe: RecipePath,
    cron: Annotated[str | None, typer.Option("--cron", help='When, UTC: "0 2 * * 1-5".')] = None,
    every: Annotated[int | None, typer.Option("--every", min=60, help="Or how often, in seconds.")] = None,
    look: Annotated[
        int | None,
        typer.Option("--look", min=60, help="Look for new records this often, in seconds."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of run folders.")] = Path("runs"),
    pool: Annotated[str, typer.Option("--pool", help="Work pool; made if it isn't there.")] = "tutelage",
    now: Annotated[
        bool, typer.Option("--now", help="Also begin a run, and wait until it has ended or waits for a person.")
    ] = False,
    overrides: Overrides = None,
    jobs: Jobs = 1,
) -> None:
    """Put a recipe on a Prefect server: its runs on a schedule or by a form, audits and publishing."""
    from tutelage.configs.load import load_recipe
    from tutelage.flows.schedule import flow_runs
    from tutelage.flows.schedule.deploy import deploy as put

    checked = load_recipe(recipe, tuple(overrides or ()))
    check_models(checked)
    made = put(
        checked, recipe, runs=runs, jobs=jobs, overrides=overrides or (), cron=cron, interval_s=every, look_s=look,
        pool=pool,
    )  # fmt: skip
    for name in made:
        typer.echo(name)
    if now:
        begun = flow_runs.begin(checked.name)
        root = flow_runs.folder(runs, checked.name, begun)
        typer.echo(f"a run begins in {root}; Ctrl-C ends this watching and not the run", err=True)
        follow(begun, root)


def up(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of the server, on loopback.")] = 4200,
    pool: Annotated[str, typer.Option("--pool", help="The worker's work pool.")] = "tutelage",
    database: Annotated[
        str | None,
        typer.Option("--database", envvar="TUTELAGE_DATABASE", help="postgresql+asyncpg://...; default: SQLite."),
    ] = None,
) -> None:
    """Start a Prefect server and a worker on this machine; Ctrl-C ends both."""
    from tutelage.flows.schedule.up import up as start

    start(port, pool, database, typer.echo)
