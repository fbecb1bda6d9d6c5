"""A silo's privacy account: what has been spent on its records, ever, and a budget that is never passed.

Budget is reserved before the first private token is read, and a reservation is never given back: a process that dies
has spent it. The file is append-only JSONL, each line holding the hash of the one before. A line is written in full to
a second file (`.next`) before it is appended, so that a crash at any byte leaves a line that can be completed, and is:
what was being reserved counts as spent.

    line 0       {"kind": "terms", ...}     unit, units, adjacency, δ and budget: fixed for good
    line n       {"kind": "reserve", ...}   an event (see accounting.py), what it is for, and how many disjoint parts
                                            of the silo it may be spent on (parallel composition: each part once)
                 {"kind": "use", ...}       parts of a reservation that are about to be read
                 {"kind": "settle", ...}    what came of a reservation: counts, for the reader
                 {"kind": "charge", ...}    what another ledger has spent on units that are this silo's, too
                 {"kind": "internal", ...}  a private figure that is computed and never released: costs nothing

A reservation is asked for again by its purpose: after a crash the same question gives the same reservation, and the
parts that had been begun stay used. So a resumed run spends nothing twice, and loses what was being written.

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
    units: int
    """N: how many there are in the silo. Public under this adjacency: replaced by null, a unit leaves its place."""
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


class Allowance(Protocol):
    """What reading private records needs: budget, or the promise that nothing of it is released."""

    def claim(self, event: DpEvent, parts: Iterable[int]) -> None:
        """Call before the first private token of some parts of a silo is read."""
        ...


class Reservation:
    """Budget that has been spent, and may be used once for each of some disjoint parts of a silo.

    Whatever process holds one, what it says is in the ledger: a part is never claimed twice.
    """

    __slots__ = ("_ledger", "event", "number", "parts")

    def __init__(self, ledger: Ledger, number: int, event: DpEvent, parts: int) -> None:
        self._ledger, self.number, self.event, self.parts = ledger, number, event, parts

    def claim(self, event: DpEvent, parts: Iterable[int] = (0,)) -> None:
        """Use up some parts, for good. Call before their first private token is read.

        Args:
            event: What is going to happen to the units of each part.
            parts: 0-based.

        Raises:
            PrivacyError: a part has been used or does not exist, or the reservation was made for less than this costs.
        """
        if not accounting.rho_of(event) <= accounting.rho_of(self.event) * (1 + 1e-9):
            raise PrivacyError("a reservation does not cover what it is used for")
        self._ledger._use(self.number, sorted(parts))

    @property
    def unused(self) -> list[int]:
        """Parts that nobody has claimed, in order."""
        used = self._ledger._state().reservations[self.number].used
        return [part for part in range(self.parts) if part not in used]

    def settle(self, **outcome: str | int | float) -> None:
        """Write down what came of it, once. It gives nothing back, and parts left over stay spent and unused."""
        self._ledger._settle(self.number, outcome)


class Internal:
    """Leave to read private records for a figure or text that is never released. Made by `Ledger.internal`."""

    def claim(self, event: DpEvent, parts: Iterable[int] = (0,)) -> None:
        """Nothing is spent, whatever happens."""


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
        with ledger._locked() as state:
            if not state.entries:
                ledger._append(state, "terms", asdict(terms))
            elif state.entries[0].fields != asdict(terms):
                found = state.entries[0].fields
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
        return self._state().terms

    def entries(self) -> list[Entry]:
        """All lines, verified.

        Raises:
            UserError: there is no ledger.
            PrivacyError: it was edited, cut short or put together from several.
        """
        return self._state().entries

    def reserve(self, event: DpEvent, parts: int = 1, **purpose: str | int) -> Reservation:
        """Spend budget, before anything private is read; or find what was spent for the same purpose before.

        Args:
            event: What is going to happen to any one unit, at most.
            parts: How many disjoint parts of the silo it happens to: together they cost what one costs.
            purpose: What for: run, round, mechanism and the like. Never text of a record.

        Raises:
            BudgetError: the budget does not reach.
            PrivacyError: the ledger is damaged, or the purpose had another event or other parts.
            UserError: the disk is full; the budget may count as spent.
        """
        written = accounting.event_to_json(event)
        if parts < 1:
            raise ValueError("a reservation has at least one part")
        with self._locked() as state:
            fields = {"event": written, "parts": parts, "purpose": purpose}
            earlier = state.purposes.get(canonical_json(purpose))
            if earlier is not None:
                if state.entries[earlier].fields != fields:
                    raise PrivacyError(f"{self.path}: this purpose was reserved for with another event")
                return Reservation(self, earlier, event, parts)
            terms, spent = state.terms, state.events
            alone, before, together = (
                accounting.epsilon(events, terms.delta) for events in ([event], spent, [*spent, event])
            )
            if not together <= terms.budget * (1 + _ROUNDING):
                raise BudgetError(
                    f"asked for {alone:.4g}, which would bring epsilon to {together:.4g}; spent {before:.4g} of "
                    f"{terms.budget:.4g}, {_left(spent, terms):.4g} is left "
                    f"(unit {terms.unit}, {terms.adjacency}, delta {terms.delta:.3g})",
                    file=self.path,
                    remedy="ask for a smaller epsilon or fewer texts; `tutelage budget` shows what was spent on what",
                )
            return Reservation(self, self._append(state, "reserve", fields).number, event, parts)

    def has(self, **purpose: str | int) -> bool:
        """Whether there is a reservation for that very purpose."""
        return canonical_json(purpose) in self._state().purposes

    def charge(self, other: Ledger, name: str) -> None:
        """Add what another ledger has spent since the last such charge, because it is of some of the same units.

        Args:
            other: The ledger.
            name: What to call it here.
        """
        theirs = other._state()
        with self._locked() as state:
            through = state.charged.get(name, 0)
            fresh = [entry for entry in theirs.entries if entry.kind == "reserve" and entry.number > through]
            if fresh:
                events = [entry.fields["event"] for entry in fresh]
                fields = {"ledger": name, "through": fresh[-1].number, "events": events}
                self._append(state, "charge", fields)

    def internal(self, **purpose: str | int) -> Internal:
        """Write down, once, that something private is computed which is never released."""
        with self._locked() as state:
            if not any(entry.kind == "internal" and entry.fields["purpose"] == purpose for entry in state.entries):
                self._append(state, "internal", {"purpose": purpose})
        return Internal()

    def _use(self, number: int, parts: list[int]) -> None:
        with self._locked() as state:
            self._append(state, "use", {"reservation": number, "parts": parts})

    def _settle(self, number: int, outcome: Mapping[str, str | int | float]) -> None:
        with self._locked() as state:
            held = state.reservations.get(number)
            if held is None or not held.settled:
                self._append(state, "settle", {"reservation": number, "outcome": outcome})

    def _state(self) -> _State:
        if not self.path.exists() and not self._next.exists():
            raise UserError("there is no ledger", file=self.path, remedy="name the folder that holds it")
        with self._locked() as state:
            _ = state.terms
            return state

    def spent(self) -> float:
        """ε of everything reserved so far, at the terms' δ."""
        state = self._state()
        return accounting.epsilon(state.events, state.terms.delta)

    def left(self) -> float:
        """The ε that one more release may have: not the difference, since ε does not add up."""
        state = self._state()
        return _left(state.events, state.terms)

    @property
    def head(self) -> str:
        """Hash of the last line: what a certificate quotes."""
        return self.entries()[-1].hash

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_State]:
        """Hold the ledger for this process and hand out what it says. The lock dies with the process."""
        with self.path.with_name(f"{self.path.name}.lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield self._read()

    def _read(self) -> _State:
        """All lines, after completing one that was interrupted."""
        data = self.path.read_bytes() if self.path.exists() else b""
        upcoming = self._next.read_bytes() if self._next.exists() else b""
        *lines, tail = data.split(b"\n")
        state = _State(self.path)
        for line in lines:
            state.add(line + b"\n")
        if not tail and (_hash(upcoming) if upcoming else _GENESIS) == state.head:
            return state
        # Cut short. All is well if the announced line follows the last whole one and begins like what is left.
        if not upcoming or not upcoming.startswith(tail):
            raise state.damaged()
        state.add(upcoming)
        self._write(upcoming[len(tail) :])
        return state

    def _append(self, state: _State, kind: str, fields: Mapping[str, Any]) -> Entry:
        row = {"n": len(state.entries), "previous": state.head, "kind": kind, **fields}
        line = canonical_json(row).encode() + b"\n"
        entry = state.add(line)
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


_ROUNDING = 1e-9
"""Relative: a budget divided into shares and added up again may come out by so much larger."""
_FIELDS = {
    "terms": set(Terms.__dataclass_fields__),
    "reserve": {"event", "parts", "purpose"},
    "use": {"reservation", "parts"},
    "settle": {"reservation", "outcome"},
    "charge": {"ledger", "through", "events"},
    "internal": {"purpose"},
}


@dataclass
class _Held:
    """What has become of a reservation."""

    parts: int
    used: set[int] = field(default_factory=set)
    settled: bool = False


class _State:
    """What a ledger's lines come to, verified one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.reservations: dict[int, _Held] = {}
        self.purposes: dict[str, int] = {}
        """A reservation's purpose -> its number."""
        self.charged: dict[str, int] = {}
        """Another ledger -> its last line that was charged here."""
        self.events: list[DpEvent] = []
        """Everything that was ever spent."""

    @property
    def head(self) -> str:
        return self.entries[-1].hash if self.entries else _GENESIS

    @property
    def terms(self) -> Terms:
        if not self.entries:
            raise self.damaged()
        return Terms(**self.entries[0].fields)

    def damaged(self) -> PrivacyError:
        row = len(self.entries) + 1
        return PrivacyError(
            f"{self.path}, row {row}: the ledger was edited or cut short; what was spent cannot be known"
        )

    def add(self, line: bytes) -> Entry:
        """Take a line that follows those before it.

        Raises:
            PrivacyError: it does not, or means nothing.
        """
        number = len(self.entries)
        try:
            fields = json.loads(line)
            kind = fields.pop("kind")
            follows = fields.pop("n") == number and fields.pop("previous") == self.head
            known = set(fields) == _FIELDS[kind] and (kind == "terms") == (number == 0)
            if not follows or not known:
                raise ValueError
            entry = Entry(number, kind, fields, _hash(line))
            self._apply(entry)
        except (ValueError, KeyError, AttributeError, TypeError):
            raise self.damaged() from None
        self.entries.append(entry)
        return entry

    def _apply(self, entry: Entry) -> None:
        fields = entry.fields
        match entry.kind:
            case "reserve":
                self.reservations[entry.number] = _Held(_whole(fields["parts"], 1))
                self.purposes[canonical_json(fields["purpose"])] = entry.number
                self.events.append(entry.event)
            case "use":
                held, parts = self._held(fields["reservation"]), fields["parts"]
                if held.settled or not all(isinstance(part, int) and 0 <= part < held.parts for part in parts):
                    raise PrivacyError(f"{self.path}: a reservation has no such part, or is settled")
                if held.used & set(parts) or len(set(parts)) < len(parts):
                    raise PrivacyError("a part of a reservation is used once: reserve anew")
                held.used |= set(parts)
            case "settle":
                if self._held(fields["reservation"]).settled:
                    raise PrivacyError(f"{self.path}: a reservation is settled once")
                self._held(fields["reservation"]).settled = True
            case "charge":
                name, through = fields["ledger"], _whole(fields["through"], 1)
                if through <= self.charged.get(name, 0):
                    raise ValueError
                self.charged[name] = through
                self.events += [accounting.event_from_json(event) for event in fields["events"]]

    def _held(self, number: object) -> _Held:
        if not isinstance(number, int) or number not in self.reservations:
            raise PrivacyError(f"{self.path}: there is no such reservation")
        return self.reservations[number]


def _whole(value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError
    return value


def _left(spent: list[DpEvent], terms: Terms) -> float:
    from dp_accounting import ZCDpEvent

    rho = math.fsum(accounting.rho_of(event) for event in spent)
    rest = max(0.0, accounting.max_rho(terms.budget, terms.delta) - rho)
    return accounting.epsilon([ZCDpEvent(rest)], terms.delta)
