"""What a silo hands over: which stage it finished, a few facts and files' digests, signed with its key.

Whoever takes it checks the signature against a key that was known beforehand, and every file against its digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tutelage.configs.errors import PrivacyError
from tutelage.configs.records import Frozen
from tutelage.configs.store import canonical_json
from tutelage.privacy.keys import SiloKey

_KIND = "tutelage:handed/v1"
"""Signed along with it: the same key signs lessons and certificates, and none of these must pass for another."""


class Handed(Frozen):
    """One stage of a silo."""

    run_id: str
    silo: str
    stage: str
    """As the run's own stages are named, e.g. `round-1/screen-north`."""
    facts: dict[str, Any]
    """What the stage committed: counts and figures."""
    files: dict[str, str]
    """File, named from the run's folder -> its sha256 (hex). All lie below release/."""
    signature: str
    """Ed25519, hex."""


def sign(handed: Handed, key: SiloKey) -> bytes:
    """The statement with the silo's signature over all its other fields, as JSON."""
    signed = handed.model_copy(update={"signature": key.sign(_payload(handed)).hex()})
    return (canonical_json(signed.model_dump()) + "\n").encode()


def verify(data: bytes, *, run_id: str, silo: str, stage: str, public_keys: Mapping[str, str]) -> Handed:
    """Read a statement, and be sure that this silo made it about this stage of this run.

    Args:
        data: What `sign` returned.
        run_id: Expected.
        silo: Expected.
        stage: Expected.
        public_keys: Silo -> public key in hex.

    Raises:
        PrivacyError: it is of another silo, run or stage, was edited, or is no statement.
    """
    import json

    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    refused = f"what silo {silo} is said to have handed over as {stage} "
    try:
        handed = Handed.model_validate(json.loads(data))
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_keys[silo]))
        key.verify(bytes.fromhex(handed.signature), _payload(handed))
    except (ValidationError, KeyError, ValueError, RecursionError, InvalidSignature):
        raise PrivacyError(refused + "was edited, or is not signed by it") from None
    if (handed.run_id, handed.silo, handed.stage) != (run_id, silo, stage):
        raise PrivacyError(refused + "is about another run, silo or stage")
    return handed


def _payload(handed: Handed) -> bytes:
    return canonical_json({**handed.model_dump(), "signature": None, "kind": _KIND}).encode()
