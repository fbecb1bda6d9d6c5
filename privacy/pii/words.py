"""What a word is, for all that lists of names and a dictionary know."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from tutelage.privacy.pii.lists import own
from tutelage.privacy.pii.pattern import CAPITAL, compiled, matches
from tutelage.privacy.pii.pipeline import pipeline

_TOKEN = rf"(?<![\p{{L}}\p{{M}}\p{{N}}_@])(?:{CAPITAL}(?![\p{{L}}\p{{N}}_])|\p{{Lu}}\.(?=\p{{Lu}}[\p{{Ll}}.]))"
_BRAND = r"(?!(?:Ma?c|De|Di|Du|El|Fitz|La|Le|Lo|Mc|St|Van|Von)\p{Lu})\p{L}*\p{Ll}\p{Lu}"
_CONTRACTIONS = ("'d", "'ll", "'m", "'re", "'t", "'ve")
_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
_ENDINGS = ("s", "es", "ed", "d", "ing", "ly")
_FOLDED = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "ə": "e", "’": "'"})


@dataclass(frozen=True, slots=True)
class Words:
    """Names and words, folded."""

    given: frozenset[str]
    """Given names that are hardly ever anything else."""
    given_or_word: frozenset[str]
    """All given names: words such as "will" and places such as "paris" too."""
    surnames: frozenset[str]
    """Surnames that are in no dictionary."""
    people: frozenset[str]
    """All names of the lists."""
    english: frozenset[str]
    """Function words, verbs, adjectives, adverbs and nouns, some of them the names of places and famous people."""
    functions: frozenset[str]
    """Words that no name ends in."""


@cache
def known() -> Words:
    """Names from the package mimesis, of some 40 languages, and WordNet's words, which spaCy's lemmatizer carries."""
    lookups = pipeline().get_pipe("lemmatizer").lookups  # type: ignore[attr-defined]
    tables = [lookups.get_table(table)[kind] for table in ("lemma_index", "lemma_exc") for kind in _PARTS_OF_SPEECH]
    functions = {fold(word) for word in (*pipeline().Defaults.stop_words, *own("no_names"))}
    english = functions.union(*({fold(word) for word in table} for table in tables))
    sure = {fold(name) for name in (*own("given_though_words"), *own("more_given"))}
    # of two letters there are too many other words
    given = {name for name in map(fold, _listed("names")) if len(name) > 2}
    surnames = {name for name in (fold(name).split()[-1] for name in _listed("surnames")) if len(name) > 2}
    return Words(
        given=frozenset(sure | (given - english)),
        given_or_word=frozenset(sure | given),
        surnames=frozenset(surnames - english),
        people=frozenset(sure | given | surnames),
        english=frozenset(english),
        functions=frozenset(functions),
    )


def _listed(kind: str) -> Iterator[str]:
    """The `names` or `surnames` that mimesis has, which it keeps in one file per language."""
    for language in files("mimesis").joinpath("datasets").iterdir():
        people = language.joinpath("person.json")
        if people.is_file():
            yield from _strings(json.loads(people.read_text("utf-8")).get(kind, []))


def _strings(tree: object) -> Iterator[str]:
    """The strings in nested dictionaries and lists."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(part)


def fold(word: str) -> str:
    """Lower case, without accents."""
    if word.isascii():
        return word.lower()  # nearly every word, in a tenth of the time
    plain = unicodedata.normalize("NFKD", word.casefold().translate(_FOLDED))
    return "".join(c for c in plain if not unicodedata.combining(c))


def is_english(folded: str) -> bool:
    """Whether a word, or each part of a compound, is in the dictionary, as it is or with a regular ending."""
    english = known().english
    if "-" in folded:
        return all(is_english(part) for part in folded.split("-"))
    return folded in english or any(folded.endswith(end) and folded.removesuffix(end) in english for end in _ENDINGS)


class Token(NamedTuple):
    """A capitalised word, or an initial."""

    start: int
    end: int
    folded: str
    """Without the full stop of an initial."""
    shouted: bool
    brand: bool
    """Written like SourceForge, and not like McDonald."""

    @property
    def long(self) -> bool:
        """Whether it is more than an initial."""
        return len(self.folded) > 1

    @property
    def unknown(self) -> bool:
        """Whether it is a word that no dictionary has, and no contraction."""
        return self.long and not (self.brand or self.folded.endswith(_CONTRACTIONS) or is_english(self.folded))

    def is_in(self, names: frozenset[str]) -> bool:
        """Whether it, or one side of its hyphen, is such a name."""
        return self.folded in names or ("-" in self.folded and any(part in names for part in self.folded.split("-")))


def tokens(text: str) -> list[Token]:
    """The capitalised words and initials of a text, in order."""
    return [
        Token(
            found.start(),
            found.end(),
            fold(found[0].rstrip(".")),
            len(found[0]) > 2 and found[0].isupper(),
            compiled(_BRAND).match(found[0]) is not None,
        )
        for found in matches(_TOKEN, text)
    ]
