"""Names of persons by lists and a dictionary: which capitalised words are one, and where it begins and ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tutelage.privacy.pii.pattern import PARTICLES, Place, compiled, matches, said_before
from tutelage.privacy.pii.words import fold, is_english, known, tokens

_SMALL_PAIR = r"(?<![\p{L}\p{M}\p{N}_@.'’-])(?P<first>\p{Ll}{3,}+)[ \t]+(?P<last>\p{Ll}{3,}+)(?![\p{L}\p{N}_@.'’-])"
_BEFORE_PLACES = r"\b(?i:fort|lake|los|mount|mt\.?|port|saint|san|santa|santo|são|st\.?)[ ]\Z"
_ABBREVIATED = frozenset(("am", "bc", "dc", "eu", "la", "ny", "pm", "po", "sf", "uk", "un", "us", "usa"))
# A name goes on with none of these, a verb at the beginning of a sentence does: "Mark the date", "Jack up the car".
_AFTER_VERBS = (
    r"[ \t]+(?:a|all|an|any|down|each|every|her|him|his|it|its|me|my|of|off|our|out|some|that|the|their|them|these|"
    r"this|those|up|us|what|your)\b"
)
_AFTER_SMALL = r"\p{Ll}[ \t]\Z"
_PARTED = r"[<>{}|=]"
_BETWEEN_NAMES = rf"[\"”)]?[ \t]+[\"“(]?(?:{PARTICLES})?|[ \t]*\n[> \t]*|"
_LONGEST = 4
"""Words in a name that is put together here."""


class Candidates:
    """The capitalised words of a text, and which of them may belong to one name."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens = text, tokens(text)

    def joined(self, i: int) -> bool:
        """Whether token i follows the one before it as the parts of a name do, if need be on the next line."""
        if not 0 < i < len(self.tokens):
            return False
        gap = self.text[self.tokens[i - 1].end : self.tokens[i].start]
        return compiled(_BETWEEN_NAMES).fullmatch(gap) is not None and (
            "\n" not in gap or self.named(i) or not self.tokens[i].long
        )

    def named(self, i: int) -> bool:
        """Whether token i may be a name, for all that lists and dictionary know."""
        token = self.tokens[i]
        return token.unknown or (token.is_in(known().people) and token.folded not in known().functions)

    def place(self, i: int) -> bool:
        """Whether token i is the second half of a place such as San Francisco."""
        return said_before(_BEFORE_PLACES, self.text, self.tokens[i].start)

    def together(self, inside: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The first and last of tokens in a row, parted where markup or a column of a table ends."""
        first = 0
        for k in range(1, len(inside) + 1):
            if k == len(inside) or compiled(_PARTED).search(
                self.text, self.tokens[inside[k - 1]].end, self.tokens[inside[k]].start
            ):
                yield inside[first], inside[k - 1]
                first = k

    def verb(self, i: int) -> bool:
        """Whether token i, a word of the dictionary, looks like an imperative."""
        token = self.tokens[i]
        before = self.text[max(0, token.start - 4) : token.start].rstrip()
        return (
            (not before or before[-1] in ".!?:;>")
            and is_english(token.folded)
            and compiled(_AFTER_VERBS).match(self.text, token.end) is not None
        )

    def initials(self, first: int, last: int) -> bool:
        """Whether these are at least two initials of a person, and a name may follow."""
        letters = "".join(token.folded for token in self.tokens[first : last + 1])
        return (
            len(letters) > 1 and letters not in _ABBREVIATED and self.tokens[last + 1].folded not in known().functions
        )

    def initialled(self, i: int) -> bool:
        """Whether token i is an initial, or may be what follows one: "Jason A. Hepburn"."""
        return not self.tokens[i].long or (
            not self.tokens[i - 1].long and self.tokens[i].folded not in known().functions
        )

    def in_sentence(self, i: int) -> bool:
        """Whether a small letter comes before token i: its capital is no sentence's."""
        return said_before(_AFTER_SMALL, self.text, self.tokens[i].start)

    def widened(self, first: int, last: int) -> tuple[int, int]:
        """The tokens of a name, together with its neighbours that may belong to it."""
        most = first + _LONGEST - 1
        while last < most and self.joined(last + 1) and (self.named(last + 1) or self.initialled(last + 1)):
            last += 1
        while self.joined(first) and last < first + _LONGEST - 1:
            before = self.tokens[first - 1]
            # at the beginning of a sentence any word has a capital: "Ask Peter"
            proper = self.in_sentence(first - 1) and before.folded not in known().functions
            if not (before.unknown or before.is_in(known().given) or proper):
                break
            first -= 1
        return first, last

    def span(self, first: int, last: int) -> Place:
        """Where these tokens stand."""
        return self.tokens[first].start, self.tokens[last].end


def listed_names(text: str) -> Iterator[Place]:
    """Names by the lists: a sure given name with its neighbours, or two words or initials that make each other sure."""
    names = Candidates(text)
    for i, token in enumerate(names.tokens):
        if not token.long:
            found = _initialled(names, i)
        elif names.place(i) or (names.joined(i + 1) and names.place(i + 1)):
            found = None
        elif token.is_in(known().given) and not (token.shouted and len(token.folded) < 4) and not names.verb(i):
            found = _around_given(names, i)
        else:
            found = _paired(names, i)
        if found:
            yield names.span(*found)


def _initialled(names: Candidates, i: int) -> tuple[int, int] | None:
    """The initials from token i on, with the name after them. One alone may number a heading."""
    last = i
    while last < i + 3 and names.joined(last + 1) and not names.tokens[last + 1].long:
        last += 1
    if names.joined(last + 1) and (names.named(last + 1) or names.initials(i, last)):
        return i, last + 1
    return None


def _around_given(names: Candidates, i: int) -> tuple[int, int]:
    """A given name with its neighbours; next to it any word is a surname."""
    first, last = names.widened(i, i)
    if last == i and names.joined(i + 1) and "\n" not in names.text[names.tokens[i].end : names.tokens[i + 1].start]:
        last += names.tokens[i + 1].folded not in known().functions
    return first, last


def _paired(names: Candidates, i: int) -> tuple[int, int] | None:
    """Token i and the next, or the next but an initial, that make each other sure."""
    if not names.joined(i + 1):
        return None
    token = names.tokens[i]
    initial = not names.tokens[i + 1].long and names.joined(i + 2)
    last = i + 1 + initial
    other = names.tokens[last]
    sure = other.is_in(known().surnames) or token.is_in(known().given_or_word) or initial
    sure = sure or (token.unknown and other.unknown and names.in_sentence(i) and not token.shouted)
    named = names.named(i) and names.named(last) and (token.unknown or other.unknown)
    return (i, last) if sure and named and not names.place(last) else None


def small_names(text: str) -> Iterator[Place]:
    """A given name and a surname without capitals, both in no dictionary."""
    for found in matches(_SMALL_PAIR, text, overlapped=True):
        if fold(found["first"]) in known().given and fold(found["last"]) in known().surnames:
            yield found.span()
