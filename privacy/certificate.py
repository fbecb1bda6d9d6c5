"""Certificates: what a silo signs about its lessons, and how anybody with the ledger recomputes it.

The claim is dp-accounting's, from Rényi curves on a grid of orders. `recompute` starts from the ledger's lines alone,
sums ρ, and converts it in closed form; it shares no accountant with the claim. It also derives each event anew from
the mechanism's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tutelage.configs.errors import PrivacyError
from tutelage.configs.records import Certificate, Spend
from tutelage.configs.store import canonical_json, file_digest
from tutelage.privacy import accounting
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.ledger import Entry, Ledger

AGREEMENT = 0.01
"""Relative difference of claimed and recomputed ε that two accountants may have."""


def sign(certificate: Certificate, key: SiloKey) -> Certificate:
    """The certificate with the silo's signature over all its other fields."""
    return certificate.model_copy(update={"signature": key.sign(_payload(certificate)).hex()})


def load(path: Path, public_keys: Mapping[str, str]) -> Certificate:
    """Read a certificate and verify its signature.

    Args:
        path: A certificate as JSON.
        public_keys: Silo -> public key in hex.

    Raises:
        PrivacyError: it is missing, edited, or of a silo that is not in this run.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        certificate = Certificate.model_validate_json(path.read_text(encoding="utf-8"))
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_keys[certificate.silo]))
        key.verify(bytes.fromhex(certificate.signature), _payload(certificate))
    except FileNotFoundError:
        raise PrivacyError(f"{path}: there is no certificate") from None
    except (OSError, ValidationError, KeyError, ValueError, InvalidSignature):
        raise PrivacyError(f"{path}: this certificate was edited, or is not signed by a silo of this run") from None
    return certificate


def _payload(certificate: Certificate) -> bytes:
    return canonical_json({**certificate.model_dump(mode="json"), "signature": None}).encode()


@dataclass(frozen=True)
class Recomputed:
    """A certificate beside what its ledger says."""

    silo: str
    claimed: float
    """ε of the run, as certified."""
    recomputed: float
    """The same by another accountant, from the ledger alone."""
    problems: tuple[str, ...]
    """In sentences; empty: everything holds."""


def recompute(certificate: Certificate, ledger: Ledger | None, lessons: Path) -> Recomputed:
    """Rebuild a certificate's ε from its ledger.

    Args:
        certificate: With a verified signature (`load`).
        ledger: The one it names. None: it is at a silo that is elsewhere, and what the silo signed is taken for what it
            spent; what holds then is that this adds up to the claim, and that the parameters say what it costs.
        lessons: The released lessons' file it names.

    Raises:
        PrivacyError: the ledger itself is damaged.
        UserError: there is no such ledger.
    """
    problems = []
    events, delta = [spend.event for spend in certificate.spends], certificate.delta
    if ledger is not None:
        found = _beside(certificate, ledger)
        problems += found.problems
        events, delta = found.events, found.delta
    if certificate.units > 1 and certificate.delta > accounting.max_delta(certificate.units):
        problems.append("delta is larger than 1/(N ln N)")
    for spend in certificate.spends:
        derived = _rho(spend)
        if derived is None:
            problems.append(f"the parameters of {spend.what} in round {spend.round} do not say what it costs")
        elif not derived <= accounting.rho_of(_event(spend)) * (1 + 1e-6):
            problems.append(f"the parameters of {spend.what} in round {spend.round} cost more than was reserved")
    recomputed = _recomputed(events, delta)
    if not _agree(recomputed, certificate.epsilon):
        problems.append("claimed and recomputed epsilon differ by more than 1%")
    if certificate.epsilon > certificate.epsilon_asked * (1 + AGREEMENT):
        problems.append("the run spent more than its recipe allows")
    if not lessons.exists() or file_digest(lessons) != certificate.lessons_digest:
        problems.append("the released lessons are not those that were certified")
    return Recomputed(certificate.silo, certificate.epsilon, recomputed, tuple(problems))


@dataclass(frozen=True)
class _Ledgered:
    """What a ledger says of a run, and where the certificate says otherwise."""

    events: list[dict[str, Any]]
    delta: float
    problems: list[str]


def _beside(certificate: Certificate, ledger: Ledger) -> _Ledgered:
    problems = []
    entries, terms = ledger.entries(), ledger.terms
    at = next((entry.number for entry in entries if entry.hash == certificate.ledger_head), None)
    if at is None:
        problems.append("the ledger does not hold the line that the certificate was made at")
    until = entries[: len(entries) if at is None else at + 1]
    here = [entry for entry in until if _is_of(entry, certificate)]
    found = [(entry.fields["event"], entry.fields["parts"]) for entry in here]
    if found != [(spend.event, spend.parts) for spend in certificate.spends]:
        problems.append("the certificate's spending is not the ledger's")
    stated = (certificate.unit, certificate.units, certificate.delta, certificate.adjacency)
    if stated != (terms.unit, terms.units, terms.delta, terms.adjacency):
        problems.append("unit, units, delta or adjacency are not those of the ledger's terms")
    spent = [entry.fields["event"] for entry in until if entry.kind == "reserve"]
    charged = [event for entry in until if entry.kind == "charge" for event in entry.fields["events"]]
    everything = _recomputed([*spent, *charged], terms.delta)
    if not _agree(everything, certificate.epsilon_ledger):
        problems.append("claimed and recomputed epsilon of the whole ledger differ by more than 1%")
    return _Ledgered([entry.fields["event"] for entry in here], terms.delta, problems)


def _recomputed(events: Sequence[dict[str, Any]], delta: float) -> float:
    rho = math.fsum(accounting.rho_of(accounting.event_from_json(event)) for event in events)
    return accounting.zcdp_epsilon(rho, delta) if math.isfinite(rho) else math.inf


def _agree(one: float, other: float) -> bool:
    return abs(one - other) <= AGREEMENT * max(one, other)


def _is_of(entry: Entry, certificate: Certificate) -> bool:
    purpose: dict[str, Any] = entry.fields.get("purpose", {})
    mine = purpose.get("run") == certificate.run_id and purpose.get("round", math.inf) <= certificate.round
    return entry.kind == "reserve" and mine and purpose.get("silo") == certificate.silo


def _event(spend: Spend) -> Any:
    return accounting.event_from_json(spend.event)


def _rho(spend: Spend) -> float | None:
    """ρ of one spend, derived from its parameters by the mechanisms' own formulas; None where they don't say."""
    match spend.parameters:
        case {"sensitivity": float() as moved, "temperature": float() as temperature, "max_tokens": int() as tokens}:
            return tokens * (moved / temperature) ** 2 / 2  # a draw costs C²/(2B²τ²)
        case {"sigma": float() as sigma} if sigma > 0:
            return 1 / (2 * sigma**2)
    return None
