"""The lists of words in `data/`, one file each: words with white space between them, and lines of comment with `#`."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def own(name: str) -> tuple[str, ...]:
    """The words of a list."""
    lines = files("tutelage.privacy.pii").joinpath(f"data/{name}.txt").read_text("utf-8").splitlines()
    return tuple(word for line in lines if not line.startswith("#") for word in line.split())
