"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set teach.temperature=0.8")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, max=64, help="Stages at once, a process each; every one holds its own models.")
]
