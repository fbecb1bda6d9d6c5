"""A silo's key: what it signs its lessons with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.store import write_atomic
from tutelage.privacy.vault import inside_vault

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


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
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        inside_vault(path)
        if path.exists():
            raise UserError("this silo has a key already", file=path, remedy="load it, or take a new run folder")
        private = Ed25519PrivateKey.generate()
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_atomic(path, pem, mode=0o600)
        return cls(private)

    @classmethod
    def load(cls, path: Path) -> SiloKey:
        """Read a key that `create` wrote.

        Raises:
            PrivacyError: the path is not inside a `vault` folder.
            UserError: no such file, or it holds no Ed25519 key.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        inside_vault(path)
        try:
            private = load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            raise UserError("this silo has no key", file=path, remedy="create one with SiloKey.create") from None
        except OSError:
            raise
        except Exception:  # of several kinds that the library documents nowhere: each bit was tried
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise UserError("this file holds no Ed25519 key", file=path, remedy="restore it from a copy")
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
