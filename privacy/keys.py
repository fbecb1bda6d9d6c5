"""A silo's keys: what it signs with, and what is sealed to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.store import write_atomic
from tutelage.privacy.vault import inside_vault

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.hpke import Suite

Private = TypeVar("Private", "Ed25519PrivateKey", "X25519PrivateKey")

_SEALED = b"tutelage:sealed/v1"


class SiloKey:
    """A silo's Ed25519 key pair (RFC 8032). Signatures are deterministic: same key, same bytes, same signature."""

    __slots__ = ("_private",)

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def create(cls, path: Path) -> SiloKey:
        """Make a key from the operating system's randomness and keep it at `path`, readable by its owner only.

        Raises:
            PrivacyError: the path is not inside a `vault` folder.
            UserError: there is a key already; replacing it would void every lesson it signed.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(_keep(path, Ed25519PrivateKey.generate))

    @classmethod
    def load(cls, path: Path) -> SiloKey:
        """Read a key that `create` wrote.

        Raises:
            PrivacyError: the path is not inside a `vault` folder.
            UserError: no such file, or it holds no Ed25519 key.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = _load(path)
        if not isinstance(private, Ed25519PrivateKey):
            raise _no_key(path, "Ed25519")
        return cls(private)

    @property
    def public_hex(self) -> str:
        """The public key, 64 hex digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature."""
        return self._private.sign(data)

    def __repr__(self) -> str:
        return f"<SiloKey {self.public_hex[:16]}, private half redacted>"

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("a silo's key must not be pickled: pass its file's path instead")


class SealingKey:
    """A silo's X25519 key pair: what `seal` made for its public half, only it can open (HPKE base mode, RFC 9180)."""

    __slots__ = ("_private",)

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def create(cls, path: Path) -> SealingKey:
        """As `SiloKey.create`."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        return cls(_keep(path, X25519PrivateKey.generate))

    @classmethod
    def load(cls, path: Path) -> SealingKey:
        """As `SiloKey.load`."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        private = _load(path)
        if not isinstance(private, X25519PrivateKey):
            raise _no_key(path, "X25519")
        return cls(private)

    @property
    def public_hex(self) -> str:
        """The public key, 64 hex digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def open(self, sealed: bytes, about: str) -> bytes:
        """What was sealed.

        Args:
            sealed: What `seal` returned.
            about: As it was given to `seal`.

        Raises:
            PrivacyError: it was changed, or sealed to another key or about something else.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return _suite().decrypt(sealed, self._private, info=_SEALED + about.encode())
        except InvalidTag:
            raise PrivacyError(f"what was sealed about {about} is not for this silo, or was changed") from None

    def __repr__(self) -> str:
        return f"<SealingKey {self.public_hex[:16]}, private half redacted>"

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("a silo's key must not be pickled: pass its file's path instead")


def seal(data: bytes, public_hex: str, about: str) -> bytes:
    """Encrypt for the holder of a `SealingKey`. Twice the same is not the same bytes; who sealed it is not shown.

    Args:
        data: What only they shall read.
        public_hex: Their `SealingKey.public_hex`.
        about: Bound to it: opened as about anything else, it doesn't open.

    Raises:
        PrivacyError: that is no X25519 key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        public = X25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        return _suite().encrypt(data, public, info=_SEALED + about.encode())
    except ValueError:
        raise PrivacyError("a silo's sealing key is no X25519 key: nothing was sealed") from None


def _suite() -> Suite:
    from cryptography.hazmat.primitives import hpke

    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


def _keep(path: Path, generate: Callable[[], Private]) -> Private:
    from cryptography.hazmat.primitives import serialization

    inside_vault(path)
    if path.exists():
        raise UserError("this silo has a key already", file=path, remedy="load it, or take a new run folder")
    private = generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomic(path, pem, mode=0o600)
    return private


def _load(path: Path) -> object:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    inside_vault(path)
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise UserError("this silo has no key", file=path, remedy="`tutelage silo init` makes its keys") from None
    except OSError:
        raise
    except Exception:  # of several kinds that the library documents nowhere: each bit was tried
        return None


def _no_key(path: Path, kind: str) -> UserError:
    return UserError(f"this file holds no {kind} key", file=path, remedy="restore it from a copy")
