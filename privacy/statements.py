"""What a custody log consists of: signed statements, each of which names the one before it.

A line is a DSSE envelope (github.com/secure-systems-lab/dsse, protocol.md 1.0) around an in-toto Statement
(github.com/in-toto/attestation, spec/v1/statement.md). Its subjects are files, named from the run's folder, with their
digests. Its predicate says which stage left them, and names as materials the stages it came from, each with a digest of
that stage's inputs, files and facts; `previous` is the sha256 of the line before it, line feed included.

in-toto asks for URIs as predicate types, which need not resolve, and lets an algorithm of one's own stand in a set of
digests: `hmac_sha256` is HMAC-SHA-256 (RFC 2104) in lowercase hex, of what `Tags` says.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Signature, SSlibKey

from tutelage.configs.store import canonical_json
from tutelage.privacy.keys import SiloKey

BEGUN, STAGE, FOUND, SHOWN = (f"tutelage:custody/{kind}/v1" for kind in ("begun", "stage", "found", "shown"))
"""Predicate types: a log's first line; a stage; one that was complete before the log was begun; the report's pages."""
RUN, REPORT = "run", "report"
"""What BEGUN and SHOWN stand under where a stage has its name."""

_STATEMENT = "https://in-toto.io/Statement/v1"
_PAYLOAD = "application/vnd.in-toto+json"
_NO_LINE = "0" * 64

Digest = str
"""`sha256:HEX` or `hmac_sha256:HEX`."""


class Tags:
    """Digests as a log shows them.

    A plain digest lets anybody try what a file may have held, such as a silo's exact votes. So only what lies in
    release/ is named by its sha256, all else by an HMAC under a secret of the run.

    Args:
        secret: None where it is not at hand; then only what lies in release/ can be compared.
    """

    def __init__(self, secret: bytes | None) -> None:
        self._secret = secret

    @classmethod
    def of(cls, key: SiloKey) -> Tags:
        """Those of the run that has this key."""
        # A signature that is never shown, and always the same (RFC 8032): so there is no second secret to keep.
        # What envelopes sign begins with "DSSEv1 ", so none can have it.
        return cls(hashlib.sha256(key.sign(b"tutelage custody tags v1")).digest())

    def file(self, name: str, sha256: str) -> Digest | None:
        """A file's digest; None where there is no secret.

        Args:
            name: From the run's folder. The HMAC is of it, too: equal files are not seen to be equal.
            sha256: Of its content, hex.
        """
        return f"sha256:{sha256}" if name.startswith("release/") else self._keyed("file", name, sha256)

    def stage(self, name: str, made: str) -> Digest | None:
        """What a stage came to (`manifest_digest`); None where there is no secret."""
        return self._keyed("stage", name, made)

    def _keyed(self, *parts: str) -> Digest | None:
        if self._secret is None:
            return None
        return "hmac_sha256:" + hmac.digest(self._secret, "\0".join(parts).encode(), "sha256").hex()


@dataclass(frozen=True)
class Statement:
    """A line whose signature holds."""

    kind: str
    """Its predicate type."""
    name: str
    """The stage's; or RUN, or REPORT."""
    run_id: str
    number: int
    """1-based: which line it says it is."""
    previous: str
    """sha256 (hex) of the line before it."""
    subjects: Mapping[str, Digest]
    materials: tuple[tuple[str, Digest], ...]
    """Stages it came from, in order."""
    made: Digest | None
    """What later statements name it by as material."""
    beside: frozenset[str]
    """Subjects that are no results of the stage: journals and the like, which it left in the vault."""
    gone: tuple[str, ...]
    """Files that others had left and it removed."""


@dataclass
class Chain:
    """A log, line by line."""

    lines: list[tuple[Statement | None, str]] = field(default_factory=list)
    """Every whole line: its statement, None where the signature doesn't hold or the line means nothing; its sha256."""
    problems: list[tuple[int, str]] = field(default_factory=list)
    """Line (1-based), and what is wrong with it. Empty: the log is whole."""

    @property
    def head(self) -> str:
        """sha256 (hex) of the last whole line."""
        return self.lines[-1][1] if self.lines else _NO_LINE

    @property
    def statements(self) -> list[Statement]:
        return [statement for statement, _ in self.lines if statement]

    def latest(self) -> dict[str, Statement]:
        """Name -> its last statement, which takes the place of those before it."""
        return {statement.name: statement for statement in self.statements}

    def answers(self) -> dict[str, Statement]:
        """File -> the statement that answers for it."""
        found: dict[str, Statement] = {}
        latest: dict[str, Statement] = {}
        for statement in self.statements:
            former = latest.get(statement.name)
            for name in former.subjects if former else ():
                if found.get(name) is former:
                    del found[name]
            for name in statement.gone:
                found.pop(name, None)
            found |= dict.fromkeys(statement.subjects, statement)
            latest[statement.name] = statement
        return found


def read_chain(data: bytes, public_key: str) -> Chain:
    """Check a log's signatures and the order of its lines.

    Args:
        data: The whole file.
        public_key: The run's, hex.
    """
    chain = Chain()
    *lines, torn = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        statement = _opened(line, public_key)
        after_a_bad_one = bool(chain.lines) and chain.lines[-1][0] is None
        if statement is None:
            chain.problems.append((number, "was changed, or is not signed by the run's key"))
        elif statement.number != number:
            chain.problems.append((number, f"was line {statement.number}: lines were removed, added or swapped"))
        elif statement.previous != chain.head and not after_a_bad_one:
            chain.problems.append((number, "does not follow the line before it"))
        elif (statement.kind == BEGUN) != (number == 1):
            chain.problems.append((number, "does not stand where it belongs"))
        elif statement.run_id != next(iter(chain.statements), statement).run_id:
            chain.problems.append((number, "is of another run"))
        chain.lines.append((statement, hashlib.sha256(line + b"\n").hexdigest()))
    if torn:
        chain.problems.append((len(lines) + 1, "was cut short"))
    return chain


def write_line(
    chain: Chain,
    key: SiloKey,
    kind: str,
    name: str,
    run_id: str,
    files: Mapping[str, Digest | None],
    predicate: Mapping[str, Any],
) -> bytes:
    """A signed line that follows a chain.

    Args:
        chain: The log so far.
        key: The run's.
        kind: Predicate type.
        name: The stage's; or RUN, or REPORT.
        run_id: The run's.
        files: The subjects.
        predicate: What else there is to say.
    """
    statement = {
        "_type": _STATEMENT,
        "subject": [descriptor(file, digest) for file, digest in sorted(files.items())],
        "predicateType": kind,
        "predicate": {
            "line": len(chain.lines) + 1,
            "previous": chain.head,
            "run": run_id,
            "name": name,
            **predicate,
        },
    }
    envelope = Envelope(canonical_json(statement).encode(), _PAYLOAD, {})
    signature = Signature(_verifier(key.public_hex).keyid, key.sign(envelope.pae()).hex())
    return _spelled(envelope.payload, signature) + b"\n"


def descriptor(name: str, digest: Digest | None) -> dict[str, Any]:
    """An in-toto ResourceDescriptor."""
    return {"name": name, "digest": digest_set(digest)}


def digest_set(digest: Digest | None) -> dict[str, str]:
    """An in-toto DigestSet of one digest."""
    assert digest is not None, "who writes a log has its secret"
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}


def pinned_key(data: bytes) -> str | None:
    """The public key (hex) that a log's first line names, whoever signed it; None where it can't be read."""
    try:
        payload = json.loads(base64.b64decode(json.loads(data.split(b"\n", 1)[0])["payload"]))
        named = payload["predicate"]["public_key"]
        return named if len(bytes.fromhex(named)) == 32 else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


@functools.lru_cache(maxsize=1 << 13)
def _opened(line: bytes, public_key: str) -> Statement | None:
    """A line's statement, if the key signed it. (Every stage reads the log: a process opens each line once.)"""
    try:
        key = _verifier(public_key)
        envelope = Envelope.from_dict(json.loads(line))
        envelope.verify([key], 1)
        # A line has one spelling: base64 and JSON would leave bytes that can be changed unnoticed.
        if line != _spelled(envelope.payload, envelope.signatures[key.keyid]):
            return None
        return _statement(json.loads(envelope.payload))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, VerificationError):
        return None


def _spelled(payload: bytes, signature: Signature) -> bytes:
    bare = Signature(signature.keyid, signature.signature)
    return canonical_json(Envelope(payload, _PAYLOAD, {bare.keyid: bare}).to_dict()).encode()


@functools.lru_cache(maxsize=16)
def _verifier(public_key: str) -> SSlibKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)))


def _statement(row: Mapping[str, Any]) -> Statement:
    predicate = row["predicate"]
    if row["_type"] != _STATEMENT or row["predicateType"] not in (BEGUN, STAGE, FOUND, SHOWN):
        raise ValueError
    return Statement(
        kind=row["predicateType"],
        name=predicate["name"],
        run_id=predicate["run"],
        number=predicate["line"],
        previous=predicate["previous"],
        subjects=dict(map(_read_descriptor, row["subject"])),
        materials=tuple(map(_read_descriptor, predicate.get("materials", ()))),
        made=_read_digest(predicate["made"]) if "made" in predicate else None,
        beside=frozenset(predicate.get("beside", ())),
        gone=tuple(predicate.get("gone", ())),
    )


def _read_descriptor(row: Mapping[str, Any]) -> tuple[str, Digest]:
    return row["name"], _read_digest(row["digest"])


def _read_digest(row: Mapping[str, str]) -> Digest:
    [(algorithm, value)] = row.items()
    return f"{algorithm}:{value}"
