"""`tutelage audit`: the commands of who checks what a run claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tutelage.configs.errors import PrivacyError
from tutelage.flows.cli_options import AsJson, Overrides, RunPath

audit = typer.Typer(rich_markup_mode=None, help="Check what a run claims.", no_args_is_help=True)


@audit.command()
def recompute(run_dir: RunPath, as_json: AsJson = False) -> None:
    """Rebuild every certificate's epsilon from the silos' ledgers, with another accountant."""
    from tutelage.flows.budget import print_recomputed, recompute_run
    from tutelage.flows.stage import open_run

    found = recompute_run(open_run(run_dir))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        print_recomputed(found)
    if any(row["problems"] for row in found):
        raise typer.Exit(PrivacyError.exit_code)


@audit.command()
def verify(
    run_dir: RunPath,
    as_json: AsJson = False,
    expect_head: Annotated[
        str | None, typer.Option("--expect-head", help="A head that was written down: the log must hold it.")
    ] = None,
    released: Annotated[
        bool, typer.Option("--released", help="Look at custody.jsonl and release/ only, as they are passed on.")
    ] = False,
) -> None:
    """Check every file of a run against its signed log, and say what was changed."""
    from tutelage.flows import verify as verification

    checked = verification.verify_run(run_dir, expect_head=expect_head, released=released)
    if as_json:
        typer.echo(json.dumps(verification.as_json(checked), indent=1))
    else:
        verification.print_checked(checked)
    if checked.findings:
        raise typer.Exit(PrivacyError.exit_code)


@audit.command()
def power(
    recipe: Annotated[
        Path | None, typer.Argument(help="Whose attacks and gate are put to the test. Default: the demo's.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Worlds of each kind. 0 of 300 wrong has an interval up to 1.2%.")
    ] = 20,
    first_seed: Annotated[int, typer.Option(min=0, help="Where to begin counting.")] = 0,
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="A kind of pipeline; default: all.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Keep what is measured here; what it holds already is not measured again.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often a gate passes pipelines that leak, and refuses some that cannot: hours for 300 seeds."""
    from importlib.resources import as_file, files

    from tutelage.configs.load import load_recipe
    from tutelage.flows.power import gates, view

    with as_file(files("tutelage.configs").joinpath("demo.yaml")) as demo:
        checked = load_recipe(recipe or demo, tuple(overrides or ()))
    gates.privacy_rules(checked)
    asked = gates.kinds_asked(checked, kinds)
    found = gates.measure(checked, asked, range(first_seed, first_seed + seeds), results=results, jobs=jobs)
    verdicts = gates.judge(found, checked)
    if as_json:
        typer.echo(json.dumps(view.as_json(verdicts), indent=1))
    else:
        view.print_verdicts(verdicts)
