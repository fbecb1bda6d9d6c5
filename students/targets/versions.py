"""How versions are numbered: v1, v2, ..."""

from __future__ import annotations

import re

_VERSION = re.compile(r"v([1-9][0-9]*)")


def number_of(version: str) -> int:
    """The number of a version's name.

    Raises:
        ValueError: it is none.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError
    return int(match[1])


def numbers_in(names: list[str]) -> list[int]:
    """The numbers of those names that are versions'."""
    return [int(match[1]) for match in map(_VERSION.fullmatch, names) if match]
