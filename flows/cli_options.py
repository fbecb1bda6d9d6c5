"""What several commands share: arguments, options, exit codes and a check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from uuid import UUID

    from tutelage.configs.schema import Recipe

REFUSED = 3
"""Exit code: a gate or a person held a student back."""
WAITS = 5
"""Exit code: a person's approval is awaited."""
INTERRUPTED = 130

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set teach.temperature=0.8")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, max=64, help="Stages at once, a process each; every one holds its own models.")
]


def check_models(recipe: Recipe) -> None:
    """Stop where a recipe's models, or what its teachers run on, can't be had."""
    from tutelage.configs.adapters import check_adapter
    from tutelage.configs.models import check_model
    from tutelage.configs.schema import OpenAIConfig, VllmConfig
    from tutelage.teachers.engines.openai import read_key
    from tutelage.teachers.engines.vllm import vllm_python

    scorer = getattr(recipe.teach.route, "scorer_model", None)
    for name in (*(one.model for one in recipe.teach.staff), recipe.student.base, *([scorer] if scorer else [])):
        check_model(name)
    if recipe.federation:  # its teachers are elsewhere
        return
    for teacher in recipe.teach.staff:
        if teacher.adapter:
            check_adapter(teacher.adapter, teacher.model)
        match teacher.engine:
            case VllmConfig():
                vllm_python()
            case OpenAIConfig() as server:
                read_key(server)


def follow(flow_run: UUID, root: Path) -> None:
    """Show the states of a flow run until it has ended or waits, and end with the exit code that says how."""
    from tutelage.flows.schedule.flow_runs import watch

    try:
        state = watch(flow_run, lambda said: typer.echo(said, err=True))
    except KeyboardInterrupt:
        typer.echo(f"the run goes on in {root}", err=True)
        sys.exit(INTERRUPTED)
    if state.is_paused():
        typer.echo(f'{root} waits: tutelage approve {root} --by "Your Name" --reason "..."', err=True)
        raise typer.Exit(WAITS)
    if not state.is_completed():
        raise typer.Exit(1)
    if state.name != "Completed":  # refused or declined
        raise typer.Exit(REFUSED)
