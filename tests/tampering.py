"""Reading a custody log, and spoiling what it answers for."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.flows.verify import verify_run
from tutelage.privacy.custody import LOG
from tutelage.privacy.custody_check import Checked, Finding


def findings(root: Path, **options: Any) -> list[Finding]:
    return verify_run(root, **options).findings


def found(root: Path, **options: Any) -> set[tuple[str, str]]:
    return {(one.kind, one.where) for one in findings(root, **options)}


def log_lines(root: Path) -> list[bytes]:
    return (root / LOG).read_bytes().splitlines(keepends=True)


def payload(line: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(base64.b64decode(json.loads(line)["payload"]))
    return loaded


def flips(
    root: Path, places: list[tuple[Path, int]], draw: random.Random, **options: Any
) -> Iterator[tuple[str, Checked]]:
    """Each place with one bit of it changed, and put back."""
    for path, at in places:
        good = path.read_bytes()
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << draw.randrange(8))]) + good[at + 1 :])
        try:
            yield str(path.relative_to(root)), verify_run(root, **options)
        finally:
            path.write_bytes(good)


def named(name: str, checked: Checked) -> bool:
    """Whether what was found is that file, or a line of it."""
    return any(one.where == name or one.where.startswith(f"{name}, line") for one in checked.findings)
