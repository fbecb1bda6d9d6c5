"""Where a published version goes from the registry, each kind of place in a file of its own under one contract.

    /models, s3://bucket/models   folders.py: whatever fsspec opens
    hf://ORG/NAME                 hub.py
    mlflow:NAME                   tracking.py

A version is put there whole or not at all. What a library says of an error is not repeated: it may quote credentials.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.students.targets import folders, hub, tracking


def send(version: Path, target: str, name: str, about: dict[str, Any]) -> str:
    """Put a version where others get it, and make it the latest there.

    Args:
        version: Its folder: adapter, tokenizer, card, report.
        target: A folder as fsspec writes it, `hf://ORG/NAME`, or `mlflow:` with a registered model's name or without.
        name: What the student is called in a folder, and in MLflow if the target names nothing else; on a hub the
            repository has a name.
        about: What the index says of it beside its files; tags in MLflow, in words on a hub.

    Returns:
        Where it is.

    Raises:
        UserError: the target can't be reached or written to, or is none.
    """
    return _place(target).send(version, target, name, about)


def make_latest(target: str, name: str, version: str) -> str:
    """Make an earlier version the latest again.

    Args:
        target: As for `send`.
        name: As for `send`.
        version: E.g. `v3`.

    Returns:
        Where it is.

    Raises:
        UserError: there is no such version, or as for `send`.
    """
    return _place(target).make_latest(target, name, version)


def _place(target: str) -> Any:
    return next((place for place in (hub, tracking) if target.startswith(place.SCHEME)), folders)
