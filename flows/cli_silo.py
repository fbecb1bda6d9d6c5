"""The commands of a silo that is at a place of its own: made, shown, at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

silo = typer.Typer(
    rich_markup_mode=None,
    help="A silo at a place of its own: its records stay there, and signed lessons go to the exchange.",
    no_args_is_help=True,
)

Home = Annotated[Path, typer.Argument(help="The silo's folder.")]


@silo.command()
def init(
    home: Home,
    name: Annotated[str, typer.Option("--name", help="As recipes will call it.")],
    exchange: Annotated[str, typer.Option("--exchange", help="Where lessons go: a folder, or s3://bucket/folder.")],
    coordinator: Annotated[str, typer.Option("--coordinator", help="Public key of who may ask.")],
    records: Annotated[Path, typer.Option("--records", help="Its private records: JSONL, CSV, Parquet.")],
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="The most that all runs may spend; without: screened lessons.")
    ] = None,
) -> None:
    """Make a silo's folder, its settings and its keys, and print what a recipe needs."""
    from tutelage.flows.federation.silo import create

    place = exchange if "://" in exchange else str(Path(exchange).resolve())
    made = create(home, name, place, coordinator, records.resolve(), epsilon)
    typer.echo(f"made {home}: see silo.yaml. For the recipe:", err=True)
    typer.echo(_for_recipes(made.config.name, made.key.public_hex, made.sealing.public_hex))


@silo.command()
def keys(home: Home) -> None:
    """Print a silo's public keys, as a recipe takes them."""
    from tutelage.flows.federation.silo import Silo

    made = Silo.open(home)
    typer.echo(_for_recipes(made.config.name, made.key.public_hex, made.sealing.public_hex))


@silo.command()
def coordinator(
    runs: Annotated[Path, typer.Argument(help="Folder of the run folders that will ask.")] = Path("runs"),
) -> None:
    """Print the public key that the runs of a folder ask silos with, for their silo.yaml; made if there is none."""
    from tutelage.flows.federation.coordinator import coordinator_key

    typer.echo(coordinator_key(runs).public_hex)


@silo.command()
def work(
    home: Home,
    run_id: Annotated[str | None, typer.Argument(help="One run, to the end of the silo's part. Default: all.")] = None,
) -> None:
    """Take part in the runs that are at the exchange, without a Prefect server; Ctrl-C ends it."""
    from tutelage.flows.federation.part import work as take_part
    from tutelage.flows.federation.silo import Silo
    from tutelage.flows.server import start_embedded

    opened = Silo.open(home)
    start_embedded()
    take_part(opened, run_id, lambda said: typer.echo(said, err=True))


@silo.command()
def up(home: Home) -> None:
    """Start the silo's worker on the Prefect server that PREFECT_API_URL names; runs call it. Ctrl-C ends it."""
    from tutelage.flows.federation.silo import Silo
    from tutelage.flows.schedule.up import silo_up

    opened = Silo.open(home)
    silo_up(opened.home, opened.config.name, typer.echo)


def _for_recipes(name: str, signing: str, sealing: str) -> str:
    return f"{name}: {{signing: {signing}, sealing: {sealing}}}"
