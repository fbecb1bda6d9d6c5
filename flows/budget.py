"""What ledgers and certificates say, for people: `tutelage budget` and `tutelage audit recompute`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.flows import layout
from tutelage.flows.stage import Run, open_run
from tutelage.privacy import accounting, certificate
from tutelage.privacy.ledger import Entry, Ledger
from tutelage.privacy.ledgers import Ledgers

Row = dict[str, Any]


def accounts(place: Path) -> list[Row]:
    """Every ledger of a folder: its terms, what was spent, and on what.

    Args:
        place: The folder of ledgers, a run's folder (its silos' ledgers only), or a folder that has `ledgers` in it.

    Raises:
        UserError: there are no ledgers.
        PrivacyError: one of them is damaged.
    """
    only = None
    if (place / "run.json").exists():
        run = open_run(place)
        if run.recipe.formal is None:
            raise UserError(
                "this run's lessons are screened: nothing is accounted for, and there is no budget",
                file=place,
                remedy="a recipe with privacy.mechanism private_prediction or private_evolution has one",
            )
        place, only = layout.ledgers_path(run), run.id
    elif (place / "ledgers").is_dir():
        place = place / "ledgers"
    found = [_account(ledger) for ledger in Ledgers(place).all()]
    return [row for row in found if only is None or any(spend.get("run") == only for spend in row["spends"])]


def _account(ledger: Ledger) -> Row:
    entries, terms = ledger.entries(), ledger.terms
    used = Counter[int]()
    for entry in entries:
        if entry.kind == "use":
            used[entry.fields["reservation"]] += len(entry.fields["parts"])
    spends = []
    for entry in entries:
        if entry.kind == "reserve":
            purpose = entry.fields["purpose"]
            spends.append(
                {key: purpose.get(key) for key in ("run", "silo", "round", "mechanism", "what")}
                | {"epsilon": _alone([entry.fields["event"]], terms.delta)}
                | {"parts": entry.fields["parts"], "parts_used": used[entry.number]}
            )
        elif entry.kind == "charge":
            what = f"the same units, in ledger {entry.fields['ledger'][:8]}"
            spends.append({"what": what, "epsilon": _alone(entry.fields["events"], terms.delta)})
    return {
        "ledger": ledger.path.stem,
        "silos": sorted({str(spend["silo"]) for spend in spends if spend.get("silo")}),
        **{key: value for key, value in asdict(terms).items() if key != "silo"},
        "spent": ledger.spent(),
        "left": ledger.left(),
        "spends": spends,
        "internal": [_internal(entry) for entry in entries if entry.kind == "internal"],
    }


def _alone(events: list[dict[str, Any]], delta: float) -> float:
    return accounting.epsilon([accounting.event_from_json(event) for event in events], delta)


def _internal(entry: Entry) -> Row:
    purpose: Row = dict(entry.fields["purpose"])
    return {key: purpose.get(key) for key in ("run", "silo", "round", "what", "bracket") if key in purpose}


def print_accounts(found: list[Row]) -> None:
    """Accounts as tables, one per ledger."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for row in found:
        names = ", ".join(row["silos"]) or "unused"
        console.print(f"[bold]{names}[/bold]  ledger {row['ledger'][:8]}", highlight=False)
        console.print(
            f"ε = {row['spent']:.3f} of {row['budget']:g} spent, {row['left']:.3f} left\n"
            f"δ = {row['delta']:.3g}, {row['units']} units of one {row['unit']}, {row['adjacency']}",
            highlight=False,
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in ("run", "round", "spent on"):
            table.add_column(column)
        table.add_column("ε alone", justify="right")
        table.add_column("parts used", justify="right", no_wrap=True)
        for spend in row["spends"]:
            parts = f"{spend['parts_used']} of {spend['parts']}" if "parts" in spend else "-"
            what = str(spend["what"]).replace("_", " ")
            if what == "teach":
                what = f"{spend['mechanism'].replace('_', ' ')}"
            shown = [str(spend.get(key) or "-") for key in ("run", "round")]
            table.add_row(*shown, what, f"{spend['epsilon']:.3f}", parts)
        console.print(table)
        notes = Counter(_worded(note) for note in row["internal"])
        if notes:
            said = ", ".join(f"{what} ({count} times)" if count > 1 else what for what, count in notes.items())
            console.print(f"computed and never released: {said}", highlight=False)
        console.print()
    console.print("ε of single lines do not add up: together they cost less than their sum.", highlight=False)


def _worded(note: Row) -> str:
    return str(note["what"]).replace("_", " ") + (
        f" at ε = {note['bracket']}".replace("inf", "∞") if "bracket" in note else ""
    )


def recompute_run(run: Run) -> list[Row]:
    """Every certificate of a run beside what its ledger says; see `privacy.certificate.recompute`.

    Ledgers of silos that are elsewhere are there: `tutelage audit recompute` of the silo's own run folder looks at it.

    Raises:
        UserError: the run promises nothing formal, or has no certificate yet.
        PrivacyError: a ledger is damaged.
    """
    if run.recipe.formal is None:
        raise UserError(
            "this run's lessons are screened: it claims no epsilon", file=run.dir.root, remedy="see its report"
        )
    keys, ledgers = layout.public_keys(run), layout.ledgers_path(run)
    rows = []
    for round in range(1, run.recipe.rounds + 1):
        for silo in run.silos:
            path = layout.certificate_path(run, round, silo)
            if not path.exists() and not run.dir.manifest_path(f"round-{round}/certify-{silo}").exists():
                continue
            row: Row = {"round": round, "silo": silo, "claimed": None, "recomputed": None, "ledger": True}
            try:
                claim = certificate.load(path, keys)
                if (claim.run_id, claim.silo, claim.round) != (run.id, silo, round):
                    raise PrivacyError("this certificate is another run's, silo's or round's")
                held = ledgers / f"{claim.ledger}.jsonl"
                elsewhere = run.recipe.federation is not None and not held.exists()
                ledger = None if elsewhere else Ledger(held)
                found = certificate.recompute(claim, ledger, layout.released_path(run, round, silo))
                row["ledger"] = not elsewhere
                row |= {"claimed": found.claimed, "recomputed": found.recomputed, "delta": claim.delta}
                row["problems"] = list(found.problems)
            except (PrivacyError, UserError) as error:
                row["problems"] = [str(error)]
            rows.append(row)
    if not rows:
        raise UserError("no round is certified yet", file=run.dir.root, remedy=f"tutelage resume {run.dir.root}")
    return rows


def _verdict(row: Row) -> str:
    if row["problems"]:
        return "FAILED"
    return "holds" if row["ledger"] else "adds up; the ledger is at the silo"


def print_recomputed(rows: list[Row]) -> None:
    """One line per certificate, and what is wrong with it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("round", "silo"):
        table.add_column(column)
    for column in ("δ", "claimed ε", "recomputed ε", "difference"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        claimed, again = row["claimed"], row["recomputed"]
        figures = ["-"] * 4
        if claimed is not None:
            apart = abs(claimed - again) / max(claimed, again) if max(claimed, again) > 0 else 0.0
            figures = [f"{row['delta']:.3g}", f"{claimed:.5f}", f"{again:.5f}", f"{100 * apart:.3f}%"]
        table.add_row(str(row["round"]), row["silo"], *figures, _verdict(row))
    console = Console()
    console.print(table)
    for row in rows:
        for problem in row["problems"]:
            console.print(f"round {row['round']}, {row['silo']}: {problem}", highlight=False, markup=False)
