"""A folder of ledgers: one per set of private units, wherever and under whatever name those units turn up.

A ledger is keyed by its silo's fingerprint. Adding a record to a silo makes another fingerprint, and must not make a
fresh budget: so each ledger has a list of its units' tags beside it, and what one ledger spends is charged to all that
share a unit with it. Tags are HMACs under a key that never leaves the folder: they say which units are the same and
nothing else, and a record's is of its text before any cut, without its label. (A record that was edited is another
record; only where the owner is the unit does it stay the same.)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.store import write_atomic
from tutelage.privacy.ledger import Ledger, Reservation, Terms
from tutelage.privacy.vault import PrivateRecord

if TYPE_CHECKING:
    from dp_accounting import DpEvent


class SiloLedger(Ledger):
    """A ledger that answers for what others in its folder have spent on the same units."""

    def __init__(self, path: Path, folder: Ledgers, largest_unit: int) -> None:
        super().__init__(path)
        self._folder, self._largest_unit = folder, largest_unit

    def reserve(self, event: DpEvent, parts: int = 1, **purpose: str | int) -> Reservation:
        """See `Ledger.reserve`; what the same units have cost elsewhere is charged first."""
        with self._folder.locked():
            mine = self.terms
            for other in self._folder.overlapping(self):
                theirs = other.terms
                if theirs.budget < mine.budget:
                    raise UserError(
                        f"some of these units have a budget of {theirs.budget:g} in another ledger, "
                        f"{other.path.stem[:8]}, and budgets are fixed; this one says {mine.budget:g}",
                        file=self.path,
                        key="privacy.budget",
                        remedy=f"set it to {theirs.budget:g}",
                    )
                # To an owner of k records a mechanism that protects one costs up to k² ρ (group privacy of zCDP).
                apart = mine.unit == "owner" and theirs.unit == "record"
                self.charge(other, other.path.stem, self._largest_unit**2 if apart else 1)
            return super().reserve(event, parts, **purpose)


class Ledgers:
    """The ledgers of one holder of private records.

    Args:
        folder: Where they lie. Made if it is not there, closed to others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(
        self,
        records: Sequence[PrivateRecord],
        *,
        unit: str,
        units: int,
        delta: float,
        budget: float,
        owner_of: Mapping[str, str] | None = None,
    ) -> SiloLedger:
        """The ledger of a silo; begun if there is none.

        Args:
            records: All of the silo's.
            unit: `record` or `owner`.
            units: How many of them the silo has.
            delta: δ of the terms.
            budget: ε of the terms.
            owner_of: Record id -> owner, for owners.

        Raises:
            UserError: there is one with other terms, or the folder cannot be written.
            PrivacyError: it is damaged.
        """
        tags = self._tags(records, owner_of)
        fingerprint = hmac.digest(self._key(), "\n".join(tags).encode(), "sha256").hex()[:16]
        path = self.folder / f"{fingerprint}.jsonl"
        with self.locked():
            # Tags first: a ledger without them could not be charged with what others spend.
            if not self._tags_path(path).exists():
                write_atomic(self._tags_path(path), "".join(f"{tag}\n" for tag in tags), mode=0o600)
            Ledger.begin(path, Terms(fingerprint, unit, units, delta, budget))
        largest = 1 if owner_of is None else max(Counter(owner_of[record.id] for record in records).values())
        return SiloLedger(path, self, largest)

    def all(self) -> list[Ledger]:
        """Every ledger of the folder, by fingerprint.

        Raises:
            UserError: there is no such folder, or nothing in it.
        """
        found: list[Ledger] = [Ledger(path) for path in sorted(self.folder.glob("*.jsonl"))]
        if not found:
            raise UserError("there are no ledgers here", file=self.folder, remedy="name the folder that holds them")
        return found

    def overlapping(self, ledger: Ledger) -> list[Ledger]:
        """The other ledgers that have a unit or a record in common with one."""
        mine = self._read_tags(ledger.path)
        others = (other for other in self.all() if other.path != ledger.path)
        return [other for other in others if mine & self._read_tags(other.path)]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the whole folder: two runs on overlapping silos must see each other's spending."""
        self._make()
        with (self.folder / "lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"cannot be a folder of ledgers ({error.strerror})",
                file=self.folder,
                key="privacy.ledgers",
                remedy="name another folder",
            ) from None

    def _key(self) -> bytes:
        with self.locked():
            path = self.folder / "key"
            if not path.exists():
                if any(self.folder.glob("*.jsonl")):
                    raise PrivacyError(
                        f"{path}: the key of these ledgers is gone; silos cannot be told apart without it"
                    )
                write_atomic(path, secrets.token_bytes(32), mode=0o600)
            return path.read_bytes()

    def _tags(self, records: Sequence[PrivateRecord], owner_of: Mapping[str, str] | None) -> list[str]:
        """A tag per record and, where owners are known, per owner."""
        named = [f"record\0{record.source}" for record in records]
        if owner_of is not None:
            named += [f"owner\0{owner_of[record.id]}" for record in records]
        key = self._key()
        return sorted(
            {hmac.digest(key, name.encode(errors="surrogatepass"), hashlib.sha256).hex()[:32] for name in named}
        )

    def _tags_path(self, ledger: Path) -> Path:
        return ledger.with_suffix(".tags")

    def _read_tags(self, ledger: Path) -> set[str]:
        path = self._tags_path(ledger)
        if not path.exists():
            raise PrivacyError(f"{path}: gone, so what its ledger shares with others cannot be known")
        return set(path.read_text().split())
