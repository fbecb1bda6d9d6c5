"""Forked processes that end when they are done."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def ending(target: Callable[..., object]) -> Callable[..., None]:
    """The target, after which its process ends at once, with 0.

    Else the interpreter's own end would wait for threads that earlier tests started in the parent (Prefect's) and the
    child does not have, and fail.
    """

    def run(*arguments: Any) -> None:
        target(*arguments)
        os._exit(0)

    return run
