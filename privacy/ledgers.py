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
import itertools
import secrets
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

    def __init__(self, path: Path, folder: Ledgers) -> None:
        super().__init__(path)
        self._folder = folder

    def reserve(self, event: DpEvent, parts: int = 1, **purpose: str | int) -> Reservation:
        """See `Ledger.reserve`; what the same units have cost elsewhere is charged first.

        Raises:
            UserError: some of the units have a smaller budget elsewhere, or were accounted for by another unit.
        """
        with self._folder.locked():
            if not self.has(**purpose):  # what was granted stays granted, whatever others do
                self._charge_others()
            return super().reserve(event, parts, **purpose)

    def spent(self) -> float:
        """See `Ledger.spent`; with what others have spent on the same units."""
        with self._folder.locked():
            self._charge_others()
            return super().spent()

    def left(self) -> float:
        """See `Ledger.left`; with what others have spent on the same units."""
        with self._folder.locked():
            self._charge_others()
            return super().left()

    def _charge_others(self) -> None:
        mine = self.terms
        for other in self._folder.overlapping(self):
            theirs = other.terms
            if not any(entry.kind == "reserve" for entry in other.entries()):
                continue
            if theirs.unit != mine.unit:
                raise UserError(
                    f"some of these records were accounted for by {theirs.unit}, in ledger {other.path.stem[:8]}: what "
                    f"that cost one {mine.unit} cannot be told",
                    file=self.path,
                    key="privacy.unit",
                    remedy=f"set it to {theirs.unit}",
                )
            if theirs.budget < mine.budget:
                raise UserError(
                    f"some of these units have a budget of {theirs.budget:g}, in ledger {other.path.stem[:8]}, and "
                    f"budgets are fixed; this one says {mine.budget:g}",
                    file=self.path,
                    key="privacy.budget",
                    remedy=f"set it to {theirs.budget:g}",
                )
            self.charge(other, other.path.stem)


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
        with self.locked():
            tags = _tags(self._key(), records, owner_of)
            fingerprint = _fingerprint(self._key(), tags)
            path = self.folder / f"{fingerprint}.jsonl"
            # Tags first: a ledger without them could not be charged with what others spend.
            if not self._tags_path(path).exists():
                write_atomic(self._tags_path(path), "".join(f"{tag}\n" for tag in tags), mode=0o600)
            Ledger.begin(path, Terms(fingerprint, unit, units, delta, budget))
        return SiloLedger(path, self)

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
        key = self._key()
        mine = self._read_tags(ledger.path, key)
        others = (other for other in self.all() if other.path != ledger.path)
        return [other for other in others if mine & self._read_tags(other.path, key)]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the whole folder: two runs on overlapping silos must see each other's spending."""
        self._make()
        with (self.folder / "lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise UserError(
                f"cannot be a folder of ledgers ({error.strerror})",
                file=self.folder,
                key="privacy.ledgers",
                remedy="name another folder",
            ) from None

    def _key(self) -> bytes:
        """The folder's key, made for its first ledger. Call while the folder is locked."""
        path = self.folder / "key"
        if not path.exists() and not any(self.folder.glob("*.jsonl")):
            write_atomic(path, secrets.token_bytes(_KEY_BYTES), mode=0o600)
        key = path.read_bytes() if path.exists() else b""
        if len(key) != _KEY_BYTES:
            raise PrivacyError(f"{path}: the key of these ledgers is gone; silos cannot be told apart without it")
        return key

    def _tags_path(self, ledger: Path) -> Path:
        return ledger.with_suffix(".tags")

    def _read_tags(self, ledger: Path, key: bytes) -> set[str]:
        path = self._tags_path(ledger)
        tags = path.read_text().split() if path.exists() else []
        # Emptied, or under another key, they would share nothing with anybody, and that would be a fresh budget.
        if _fingerprint(key, tags) != ledger.stem:
            raise PrivacyError(f"{path}: gone or edited, so what its ledger shares with others cannot be known")
        return set(tags)


_KEY_BYTES = 32


def _tags(key: bytes, records: Sequence[PrivateRecord], owner_of: Mapping[str, str] | None) -> list[str]:
    """A tag per record and, where owners are known, one more for its owner; sorted."""
    named: Iterator[str] = (f"record\0{record.source}" for record in records)
    if owner_of is not None:
        named = itertools.chain(named, (f"owner\0{owner_of[record.id]}" for record in records))
    return sorted(hmac.digest(key, name.encode(errors="surrogatepass"), hashlib.sha256).hex()[:32] for name in named)


def _fingerprint(key: bytes, tags: Sequence[str]) -> str:
    return hmac.digest(key, "\n".join(tags).encode(), "sha256").hex()[:16]
