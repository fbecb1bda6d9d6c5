"""A silo's privacy account: what has been spent on its records, ever, and a budget that is never passed.

Budget is reserved before the first private token is read, and a reservation is never given back: a process that dies
has spent it. The file is append-only JSONL, each line holding the hash of the one before. A line is written in full to
a second file (`.next`) before it is appended, so that a crash at any byte leaves a line that can be completed, and is:
what was being reserved counts as spent.

    line 0       {"kind": "terms", ...}     unit, adjacency, δ and budget: fixed for good
    line n       {"kind": "reserve", ...}   an event (see accounting.py) and what it is for
                 {"kind": "settle", ...}    what came of a reservation: counts, for the reader
                 {"kind": "internal", ...}  a private figure that was computed and never released: costs nothing

What this cannot see is a whole folder put back to an earlier state, `.next` included; a certificate carries the hash
of the ledger's last line, so whoever holds a later one can.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.store import canonical_json, disk_is_full, write_atomic
from tutelage.privacy import accounting

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_GENESIS = "0" * 64


class BudgetError(UserError):
    """A reservation would pass the silo's budget. Nothing was read and nothing was spent."""


@dataclass(frozen=True)
class Terms:
    """What a ledger's ε means. Fixed when the ledger is begun."""

    silo: str
    """The silo's fingerprint."""
    unit: str
    """`record` or `owner`: what is protected as a whole."""
    delta: float
    budget: float
    """The ε that all spending together may reach."""
    adjacency: str = accounting.ADJACENCY

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise UserError("must lie between 0 and 1", key="privacy.delta", remedy="1/(N ln N) or less")
        if not 0 <= self.budget < math.inf:
            raise UserError("must be finite and not negative", key="privacy.budget", remedy="an epsilon such as 8")


@dataclass(frozen=True)
class Entry:
    """One verified line."""

    number: int
    kind: str
    fields: Mapping[str, Any]
    hash: str
    """sha256 (hex) of the line; the next line's `previous`."""

    @property
    def event(self) -> DpEvent:
        """A reservation's event."""
        return accounting.event_from_json(self.fields["event"])


class Reservation:
    """Budget that has been spent and may be used once, in the process that reserved it."""

    __slots__ = ("_used", "event", "number")

    def __init__(self, number: int, event: DpEvent) -> None:
        self.number, self.event, self._used = number, event, False

    def use(self, event: DpEvent) -> None:
        """Call before the first private token is read.

        Args:
            event: What is going to happen.

        Raises:
            PrivacyError: it has been used, or was made for less than this costs.
        """
        if not accounting.rho_of(event) <= accounting.rho_of(self.event) * (1 + 1e-9):
            raise PrivacyError("a reservation does not cover what it is used for")
        if self._used:
            raise PrivacyError("a reservation is used once: reserve anew")
        self._used = True

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("a reservation must not be pickled: it could be used twice")


class Ledger:
    """One silo's ledger file.

    Every method locks the file, checks the whole chain and completes an interrupted line before it does anything, so
    ledgers of several processes on one file are safe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next = path.with_name(f"{path.name}.next")

    @classmethod
    def begin(cls, path: Path, terms: Terms) -> Ledger:
        """Begin a ledger, or open one of the same terms.

        Raises:
            UserError: there is one of other terms; they are fixed when a ledger is begun.
            PrivacyError: the ledger is damaged.
        """
        ledger = cls(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(f"cannot be a ledger ({error.strerror})", file=path, remedy="name another place") from None
        with ledger._locked() as entries:
            if not entries:
                ledger._append(entries, "terms", asdict(terms))
            elif entries[0].fields != asdict(terms):
                found = entries[0].fields
                other = sorted(name for name, value in asdict(terms).items() if found.get(name) != value)
                raise UserError(
                    f"this ledger was begun with other terms ({', '.join(other)}), and they are fixed",
                    file=path,
                    key="privacy",
                    remedy="use the terms that `tutelage budget` shows",
                )
        return ledger

    @property
    def terms(self) -> Terms:
        """What was agreed when the ledger was begun."""
        return _terms(self.path, self.entries())

    def entries(self) -> list[Entry]:
        """All lines, verified.

        Raises:
            UserError: there is no ledger.
            PrivacyError: it was edited, cut short or put together from several.
        """
        if not self.path.exists() and not self._next.exists():
            raise UserError("there is no ledger", file=self.path, remedy="name the folder that holds it")
        with self._locked() as entries:
            _terms(self.path, entries)
            return entries

    def reserve(self, event: DpEvent, **purpose: str | int) -> Reservation:
        """Spend budget, before anything private is read.

        Args:
            event: What is going to happen, at most.
            purpose: What for: run, round, mechanism and the like. Never text of a record.

        Raises:
            BudgetError: the budget does not reach.
            PrivacyError: the ledger is damaged.
            UserError: the disk is full; the budget may count as spent.
        """
        written = accounting.event_to_json(event)
        with self._locked() as entries:
            terms = _terms(self.path, entries)
            spent = _events(entries)
            alone, before, together = (
                accounting.epsilon(events, terms.delta) for events in ([event], spent, [*spent, event])
            )
            if not together <= terms.budget:
                raise BudgetError(
                    f"asked for {alone:.4g}, which would bring epsilon to {together:.4g}; spent {before:.4g} of "
                    f"{terms.budget:.4g}, {_left(spent, terms):.4g} is left "
                    f"(unit {terms.unit}, {terms.adjacency}, delta {terms.delta:.3g})",
                    file=self.path,
                    remedy="ask for a smaller epsilon or fewer texts; `tutelage budget` shows what was spent on what",
                )
            entry = self._append(entries, "reserve", {"event": written, "purpose": purpose})
            return Reservation(entry.number, event)

    def settle(self, reservation: Reservation, **outcome: str | int | float) -> None:
        """Write down what came of a reservation. It gives nothing back.

        Raises:
            PrivacyError: there is no such reservation, or it is settled; or the ledger is damaged.
        """
        with self._locked() as entries:
            _check_settles(self.path, entries, reservation.number)
            self._append(entries, "settle", {"reservation": reservation.number, "outcome": outcome})

    def note_internal(self, **purpose: str | int) -> None:
        """Write down that a private figure was computed which is never released."""
        with self._locked() as entries:
            _terms(self.path, entries)
            self._append(entries, "internal", {"purpose": purpose})

    def spent(self) -> float:
        """ε of everything reserved so far, at the terms' δ."""
        entries = self.entries()
        return accounting.epsilon(_events(entries), _terms(self.path, entries).delta)

    def left(self) -> float:
        """The ε that one more release may have: not the difference, since ε does not add up."""
        entries = self.entries()
        return _left(_events(entries), _terms(self.path, entries))

    @property
    def head(self) -> str:
        """Hash of the last line: what a certificate quotes."""
        return self.entries()[-1].hash

    @contextlib.contextmanager
    def _locked(self) -> Iterator[list[Entry]]:
        """Hold the ledger for this process and hand out its lines. The lock dies with the process."""
        with self.path.with_name(f"{self.path.name}.lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield self._read()

    def _read(self) -> list[Entry]:
        """All lines, after completing one that was interrupted."""
        data = self.path.read_bytes() if self.path.exists() else b""
        upcoming = self._next.read_bytes() if self._next.exists() else b""
        *lines, tail = data.split(b"\n")
        entries: list[Entry] = []
        for line in lines:
            entries.append(_verified(self.path, line + b"\n", entries))
        last = entries[-1].hash if entries else _GENESIS
        if not tail and (_hash(upcoming) if upcoming else _GENESIS) == last:
            return entries
        # Cut short. All is well if the announced line follows the last whole one and begins like what is left.
        if not upcoming or not upcoming.startswith(tail):
            raise _damaged(self.path, len(entries) + 1)
        entries.append(_verified(self.path, upcoming, entries))
        self._write(upcoming[len(tail) :])
        return entries

    def _append(self, entries: list[Entry], kind: str, fields: Mapping[str, Any]) -> Entry:
        previous = entries[-1].hash if entries else _GENESIS
        line = canonical_json({"n": len(entries), "previous": previous, "kind": kind, **fields}).encode() + b"\n"
        entry = _verified(self.path, line, entries)
        write_atomic(self._next, line, mode=0o600)
        self._write(line)
        return entry

    def _write(self, data: bytes) -> None:
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                while data:
                    data = data[os.write(file, data) :]
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            if disk_is_full(error):
                raise UserError("the disk is full", file=self.path, remedy="free some space, then go on") from None
            raise


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


_FIELDS = {"terms": set(Terms.__dataclass_fields__), "reserve": {"event", "purpose"}, "internal": {"purpose"}}
_FIELDS["settle"] = {"reservation", "outcome"}


def _verified(path: Path, line: bytes, before: list[Entry]) -> Entry:
    """A line that follows those before it.

    Raises:
        PrivacyError: it does not.
    """
    number = len(before)
    try:
        fields = json.loads(line)
        kind = fields.pop("kind")
        follows = fields.pop("n") == number and fields.pop("previous") == (before[-1].hash if before else _GENESIS)
        known = set(fields) == _FIELDS[kind] and (kind == "terms") == (number == 0)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise _damaged(path, number + 1) from None
    if not follows or not known:
        raise _damaged(path, number + 1)
    if kind == "settle":
        _check_settles(path, before, fields["reservation"])
    return Entry(number, kind, fields, _hash(line))


def _check_settles(path: Path, entries: list[Entry], number: object) -> None:
    for entry in reversed(entries):  # a settlement follows soon after its reservation
        if entry.number == number and entry.kind == "reserve":
            return
        if entry.number == number or (entry.kind == "settle" and entry.fields["reservation"] == number):
            break
    raise PrivacyError(f"{path}: there is no such open reservation")


def _damaged(path: Path, row: int) -> PrivacyError:
    return PrivacyError(f"{path}, row {row}: the ledger was edited or cut short; what was spent cannot be known")


def _terms(path: Path, entries: list[Entry]) -> Terms:
    if not entries:
        raise _damaged(path, 1)
    return Terms(**entries[0].fields)


def _events(entries: list[Entry]) -> list[DpEvent]:
    return [entry.event for entry in entries if entry.kind == "reserve"]


def _left(spent: list[DpEvent], terms: Terms) -> float:
    from dp_accounting import ZCDpEvent

    rho = math.fsum(accounting.rho_of(event) for event in spent)
    rest = max(0.0, accounting.max_rho(terms.budget, terms.delta) - rho)
    return accounting.epsilon([ZCDpEvent(rest)], terms.delta)
