"""The commands of who reviews, approves and publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.configs.errors import UserError
from tutelage.flows.cli_options import REFUSED, RunPath, follow

if TYPE_CHECKING:
    from tutelage.configs.records import Override
    from tutelage.flows.stage import Run


def inspect(
    run_dir: RunPath,
    by: Annotated[str | None, typer.Option("--by", help="Who reviews. Default: the user of this machine.")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Read, search and review what a run released, in a browser of this machine."""
    import contextlib
    import getpass

    from tutelage.flows.inspector.serve import serve

    name = (by or getpass.getuser()).strip()
    if not 0 < len(name) <= 100:
        raise UserError("a name has 1 to 100 letters", key="--by", remedy='--by "Your Name"')
    with contextlib.suppress(KeyboardInterrupt):  # it is how this ends
        serve(run_dir, name, port, browser=browser, say=typer.echo)


def approve(
    run_dir: RunPath,
    by: Annotated[str, typer.Option("--by", help="Your name.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for all to read.")],
    round: Annotated[int | None, typer.Option("--round", help="Default: the one that waits.")] = None,
    decline: Annotated[
        bool, typer.Option("--decline", help="Say no: it is not published, and the run goes on.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Of a flow run: until it has ended or waits again. Ctrl-C ends the waiting.")
    ] = False,
) -> None:
    """Approve a student that its gate has passed, or decline it; for runs with `gate.approval`."""
    from pydantic import ValidationError

    from tutelage.configs.store import RunDir
    from tutelage.flows import approve as word
    from tutelage.flows.schedule import flow_runs
    from tutelage.flows.stage import open_run

    run = open_run(run_dir)
    round = round or word.waiting(run) or run.recipe.rounds
    with RunDir(run_dir).locked():
        try:
            made = word.decide(run, round, approved=not decline, by=by.strip(), reason=reason.strip())
        except ValidationError:
            raise UserError(
                "who decides gives a name and a reason of 3 letters or more",
                key="--by" if len(by.strip()) < 3 else "--reason",
                remedy='--by "Your Name" --reason "..."; both stand on the model card and in the log',
            ) from None
    typer.echo(f"round {round} {'approved' if made.approved else 'declined'} by {made.by}")
    try:
        resumed = flow_runs.resume_waiting(run_dir, made)
    except UserError as error:  # the decision stands, whether or not anybody can be told
        typer.echo(f"its flow run was not resumed: {error}", err=True)
        resumed = None
    typer.echo("its flow run goes on" if resumed else f"go on with: tutelage resume {run_dir}")
    if wait and resumed:
        follow(resumed, run_dir)


def publish(
    run_dir: RunPath,
    round: Annotated[int | None, typer.Option("--round", help="Default: the last.")] = None,
    override: Annotated[bool, typer.Option("--override", help="Publish although the gate refused.")] = False,
    by: Annotated[str, typer.Option("--by", help="With --override: your name.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="With --override: why, for all to read.")] = "",
    to: Annotated[
        str | None,
        typer.Option("--to", help="Also put it there: a folder, s3://..., hf://ORG/NAME, mlflow:NAME."),
    ] = None,
    latest: Annotated[
        str | None, typer.Option("--latest", help="With --to: publish nothing, make this version the latest again.")
    ] = None,
) -> None:
    """Say where a run's student was published, or put it where others get it.

    Only what its gate has passed, and a person approved where the recipe asks for that, unless somebody overrides it.
    """
    from tutelage.configs.store import RunDir
    from tutelage.flows import layout, registry
    from tutelage.flows.stage import open_run
    from tutelage.students import targets

    run = open_run(run_dir)
    if latest is not None:
        if to is None:
            raise UserError("where is it to be the latest?", key="--latest", remedy="name the place with --to")
        typer.echo(targets.make_latest(to, run.recipe.name, latest))
        return
    round = run.recipe.rounds if round is None else round
    if not layout.report_path(run, round).exists():
        raise UserError(f"round {round} is not finished", file=run_dir, remedy=f"tutelage resume {run_dir}")
    if override:
        with RunDir(run_dir).locked():
            typer.echo(str(registry.publish_by_hand(run, round, _override(by, reason))))
    else:
        _stop_if_refused(run, round)
        typer.echo(str(registry.published_version(run, round)))
    if to is not None:
        typer.echo(registry.send_round(run, round, to))


def ask(
    run_dir: RunPath,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to label or answer; none: the lines of standard input."),
    ] = None,
    round: Annotated[int | None, typer.Option("--round", help="Default: the last.")] = None,
) -> None:
    """Ask a run's published student."""
    import sys

    from tutelage.flows.ask import ask as answers
    from tutelage.flows.stage import open_run

    run = open_run(run_dir)
    asked = texts or [line.strip() for line in sys.stdin if line.strip()]
    if not asked:
        raise UserError("nothing was asked", remedy=f'tutelage ask {run_dir} "some text"')
    for answer in answers(run, round or run.recipe.rounds, asked):
        typer.echo(answer)


def _override(by: str, reason: str) -> Override:
    from pydantic import ValidationError

    from tutelage.configs.records import Override

    try:
        return Override(by=by.strip(), reason=reason.strip())
    except ValidationError:
        raise UserError(
            "who overrides a gate gives a name (3 letters or more) and a reason (20 or more)",
            key="--by" if len(by.strip()) < 3 else "--reason",
            remedy='--override --by "Your Name" --reason "..."; both stand on the model card and in the log',
        ) from None


def _stop_if_refused(run: Run, round: int) -> None:
    """Say why a round's student is not published, where its gate or a person refused it."""
    from tutelage.flows import approve, layout

    decision = layout.report(run, round).decision
    for outcome in decision.outcomes:
        if not outcome.passed:
            typer.echo(f"refused: {outcome.rule}: {outcome.reason}", err=True)
    if not decision.passed:
        raise typer.Exit(REFUSED)
    if run.recipe.gate.approval:
        root, word = run.dir.root, approve.approval(run, round)
        if word is None:
            raise UserError(f"round {round} waits for approval", file=root, remedy=f"tutelage approve {root}")
        if not word.approved:
            typer.echo(f"declined by {word.by}, {word.at}: {word.reason}", err=True)
            raise typer.Exit(REFUSED)
