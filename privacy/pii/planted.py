"""Generated texts in which every piece of personal data is known, and texts that have none, for the scanner's test."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

import yaml

from tutelage.privacy.pii import forms_numbers, forms_online, forms_people
from tutelage.privacy.pii.forms import Form, Split, filled
from tutelage.privacy.pii.spans import check_entities


class Known(NamedTuple):
    """Where personal data stands in a text, as `text[start:end]`, what it is and in which form."""

    start: int
    end: int
    entity: str
    form: str


@dataclass(frozen=True, slots=True)
class Planted:
    """A generated text and all the personal data in it."""

    text: str
    value: Known
    """What the text was made for."""
    spans: tuple[Known, ...]
    """That and what came along, such as the name in a signature, in the order of the text."""


FORMS: dict[str, tuple[Form, ...]] = {
    "EMAIL_ADDRESS": forms_online.EMAIL_ADDRESS,
    "PHONE_NUMBER": forms_numbers.PHONE_NUMBER,
    "URL": forms_online.URL,
    "CREDIT_CARD": forms_numbers.CREDIT_CARD,
    "IBAN_CODE": forms_numbers.IBAN_CODE,
    "US_SSN": forms_numbers.US_SSN,
    "IP_ADDRESS": forms_online.IP_ADDRESS,
    "PERSON": forms_people.PERSON,
    "STREET_ADDRESS": forms_people.STREET_ADDRESS,
}

# How a text is laid out. White space is collapsed as often as in the records of the mail corpus; a line may break
# within a value where it has a space.
_LAYOUTS = {"as it is": 8, "collapsed": 4, "quoted": 2, "broken": 1, "upper case": 1}


@cache
def _read(name: str) -> dict[str, Any]:
    """A file of texts in `data/`; its head says what they are."""
    return yaml.safe_load(files("tutelage.privacy.pii").joinpath(f"data/{name}.yaml").read_text("utf-8"))


def planted(entity: str, n: int, seed: int, split: Split = "held_out") -> list[Planted]:
    """Texts with one value of the entity each, all its forms in turn.

    Args:
        entity: One of `ENTITIES`.
        n: How many texts.
        seed: The same seed gives the same texts.
        split: Which half of the carriers and of the names' origins to take.

    Raises:
        UserError: an entity nobody knows.
    """
    check_entities([entity])
    rng = random.Random(f"{seed}/{split}/{entity}")
    forms = [form for form in FORMS[entity] if split == "held_out" or not form.fresh]
    return [_plant(rng, entity, forms[i % len(forms)], split) for i in range(n)]


def _plant(rng: Random, entity: str, form: Form, split: Split) -> Planted:
    """The form with values, in one of its carriers, which is laid out in one of the ways."""
    texts = _read("carriers")
    tables = [texts["carriers"].get(entity, {}), texts["carriers"]["any"] if entity != "PERSON" else {}]
    carriers = [
        carrier
        for group in form.carriers.split()
        for table in tables
        for carrier in table.get(group, [])[split == "held_out" :: 2]
    ]
    carrier = rng.choice(carriers).replace("{label}", rng.choice(texts["labels"].get(entity, ("",))))
    layout = rng.choices(list(_LAYOUTS), list(_LAYOUTS.values()))[0]
    pieces, known, length = [], [], 0
    for piece in re.split(r"(\{\w*\})", carrier):
        if piece.startswith("{"):
            other = piece[1:-1]
            value = (FORMS[other][0] if other else form).make(rng, split)
            if layout == "broken" and not other and "\n" not in carrier:
                value = _break(rng, value)
            known.append(Known(length, length + len(value), other or entity, "" if other else form.name))
            piece = value
        pieces.append(piece)
        length += len(piece)
    return _laid_out("".join(pieces), known, layout)


def _break(rng: Random, value: str) -> str:
    """Break the line at one of the spaces."""
    spaces = [i for i, c in enumerate(value) if c == " "]
    if not spaces:
        return value
    at = rng.choice(spaces)
    return f"{value[:at]}\n{value[at + 1 :]}"


def _laid_out(text: str, known: list[Known], layout: str) -> Planted:
    """The text in its layout, and where that has moved what is known."""
    if layout == "upper case" and len(text.upper()) == len(text):
        text = text.upper()
    pieces = list(text)
    for i, c in enumerate(text):
        if layout == "collapsed" and c.isspace():
            pieces[i] = "" if i and text[i - 1].isspace() else " "
        elif layout == "quoted" and c == "\n":
            pieces[i] = "\n> "
    before = "> " if layout == "quoted" else ""
    moved = list(accumulate(map(len, pieces), initial=len(before)))
    spans = tuple(one._replace(start=moved[one.start], end=moved[one.end]) for one in known)
    return Planted(before + "".join(pieces), next(one for one in spans if one.form), spans)


def clean(n: int, seed: int, split: Split = "held_out") -> list[str]:
    """Texts without personal data, most of which look as if they had some: all patterns in turn.

    Args: as `planted`.
    """
    rng = random.Random(f"{seed}/{split}/clean")
    kinds = {kind: patterns[split == "held_out" :: 2] for kind, patterns in _read("clean").items()}
    patterns = [pattern for some in kinds.values() for pattern in some]
    texts = []
    for i in range(n):
        sentence = filled(patterns[i % len(patterns)])(rng, split)
        # the model reads a sentence by its neighbours, so that the same one is another case each time
        other = rng.choice(kinds["prose"])
        texts.append(rng.choice((sentence, f"{other} {sentence}", f"{sentence} {other}", f"{other}\n\n{sentence}")))
    return texts
