"""Regular expressions that are kept from running for ever, and the pieces of them that several detectors share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

import regex

from tutelage.configs.errors import PrivacyError

Found = re.Match[str]  # what the `regex` module returns is the same, but untyped
Place = tuple[int, int]
"""Start and end of a piece of a text."""

_SECONDS = 60
"""A pattern that takes longer with one text stops the run. The patterns themselves are written to take no more than a
time that grows as the text does: possessive where nothing is won by giving back, of bounded length elsewhere."""

# An initial, or a word with a capital: Ó, Müller, O'Neill, Jean-Luc, but neither "Anna's" nor "F10".
CAPITAL = r"(?:\p{Lu}\.|\p{Lu}(?:[\p{L}\p{M}]|-(?=\p{L})|['’](?!s\b)(?=\p{L})){1,40}+)"
PARTICLES = (
    r"(?:(?i:af|al|av|bin|binti|da|de|del|della|dello|den|der|di|do|dos|du|el|ibn|la|le|ten|ter|van|von|y|zu|zur)"
    r"[ \t]+){1,3}"
)
NAMES = rf"{CAPITAL}(?:[ \t]+(?:{PARTICLES})?{CAPITAL}){{0,3}}"


@cache
def compiled(pattern: str) -> regex.Pattern[str]:
    """A pattern as all detectors write it: with MULTILINE and without IGNORECASE; compiled when it is first used."""
    return regex.compile(pattern, regex.MULTILINE)


def matches(pattern: str, text: str, *, overlapped: bool = False) -> Iterator[Found]:
    """What a pattern matches in a text.

    Raises:
        PrivacyError: it took a minute; skipped, it would let the text through. The message holds nothing of the text.
    """
    try:
        yield from compiled(pattern).finditer(text, overlapped=overlapped, timeout=_SECONDS)
    except TimeoutError:
        raise PrivacyError("a detector of personal data did not finish with a text") from None


def said_before(pattern: str, text: str, start: int) -> bool:
    """Whether a pattern, which ends in `$`, matches the end of the 24 characters before `start`."""
    return compiled(pattern).search(text, max(0, start - 24), start) is not None


class Pattern(NamedTuple):
    """One way to write an entity down, as a detector."""

    regex: str
    score: float
    check: Callable[[Found], bool] | None = None
    """Whether what matched bears looking at."""

    def find(self, text: str) -> Iterator[Place]:
        """Where it matches and its check lets pass."""
        for found in matches(self.regex, text):
            if self.check is None or self.check(found):
                yield found.span()


class Finder(NamedTuple):
    """What no single pattern can say, as a detector."""

    find: Callable[[str], Iterable[Place]]
    score: float


Detector = Pattern | Finder
