"""Folders on a disk or on object storage: whatever fsspec opens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tutelage.configs.errors import UserError, without_credentials

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


@contextlib.contextmanager
def opened(address: str, key: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """A file system, and the folder in it that an address names.

    Args:
        address: `/models`, `s3://bucket/models`.
        key: The option or key it came from, for errors.

    Raises:
        UserError: it, or whatever is done meanwhile, failed; without the message, which may hold credentials.
    """
    import fsspec

    try:
        fs, root = fsspec.url_to_fs(address)
        yield fs, root.rstrip("/")
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"nothing here opens such an address ({error.name or 'a package is missing'})", key=key,
            remedy="install the file system's package, e.g. s3fs for s3://",
        ) from None  # fmt: skip
    except Exception as error:  # each file system has errors of its own, and their messages may hold credentials
        raise UserError(
            f"it could not be used ({type(error).__name__})", file=without_credentials(address), key=key,
            remedy="check its address, its permissions and the credentials in the environment",
        ) from None  # fmt: skip


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether it is this machine's own: with permissions, renames and locks."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)
