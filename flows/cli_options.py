"""What several commands share: arguments, options, exit codes and a check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from tutelage.configs.schema import Recipe

REFUSED = 3
"""Exit code: a gate or a person held a student back."""
WAITS = 5
"""Exit code: a person's approval is awaited."""

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set teach.temperature=0.8")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, max=64, help="Stages at once, a process each; every one holds its own models.")
]


def check_models(recipe: Recipe) -> None:
    """Stop where a recipe's models can't be had."""
    from tutelage.configs.models import check_model

    for name in (recipe.teach.model, recipe.student.base):
        check_model(name)


def stop_unless_passed(state: State[Any], root: Path) -> None:
    """End with the exit code that says how a flow run ended, unless it passed every gate."""
    if state.is_paused():
        typer.echo(f'{root} waits: tutelage approve {root} --by "Your Name" --reason "..."', err=True)
        raise typer.Exit(WAITS)
    if not state.is_completed():
        raise typer.Exit(1)
    if state.name != "Completed":  # refused or declined
        raise typer.Exit(REFUSED)
