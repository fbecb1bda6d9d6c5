"""A ledger of 100 records at ε = 4, and what a test asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dp_accounting as dp

from tutelage.privacy import accounting
from tutelage.privacy.ledger import Ledger, Terms

TERMS = Terms(silo="a1b2", unit="record", units=100, delta=1e-6, budget=4.0)
TENTH = dp.ZCDpEvent(accounting.max_rho(4.0, 1e-6) / 10)


def begin(folder: Path, terms: Terms = TERMS) -> Ledger:
    return Ledger.begin(folder / "ledger.jsonl", terms)


def spend(ledger: Ledger, times: int = 1, **purpose: Any) -> None:
    """Reserve for purposes that were never reserved for."""
    for _ in range(times):
        ledger.reserve(TENTH, run="r", line=len(ledger.entries()), **purpose)


def kinds(ledger: Ledger) -> list[str]:
    return [entry.kind for entry in ledger.entries()]


def uses(ledger: Ledger) -> list[tuple[int, int]]:
    """Reservation and part of everything that was ever claimed."""
    found = [entry.fields for entry in ledger.entries() if entry.kind == "use"]
    return [(fields["reservation"], part) for fields in found for part in fields["parts"]]


def two(folder: Path) -> tuple[Ledger, Ledger]:
    return begin(folder / "here"), begin(folder / "there")


def files(ledger: Ledger) -> tuple[bytes, bytes]:
    return ledger.path.read_bytes(), ledger._next.read_bytes()


def put(ledger: Ledger, data: bytes, upcoming: bytes | None) -> None:
    ledger.path.write_bytes(data)
    if upcoming is None:
        ledger._next.unlink(missing_ok=True)
    else:
        ledger._next.write_bytes(upcoming)
