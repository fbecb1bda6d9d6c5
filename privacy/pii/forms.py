"""How personal data is written down, for the scanner's test: a form is a pattern whose fields are filled at random."""

from __future__ import annotations

import ipaddress
import re
import string
import unicodedata
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any, Literal, NamedTuple

Split = Literal["development", "held_out"]
Make = Callable[[Random, Split], str]


class Form(NamedTuple):
    """One way to write an entity down."""

    name: str
    make: Make
    carriers: str = "free label"
    """The groups of carriers that it may stand in."""
    stratum: str = ""
    """Reported apart from the entity's other forms, and outside its recall."""
    fresh: bool = False
    """In the half that is held out alone."""


# Locales of Faker whose names are in Latin script, from every continent.
_ORIGINS: dict[Split, tuple[str, ...]] = {
    "development": (
        "en_US", "en_IN", "en_KE", "en_NZ", "de_DE", "es_MX", "it_IT", "pl_PL", "sv_SE", "pt_BR", "cs_CZ", "tr_TR",
        "id_ID", "hr_HR", "fr_CA", "az_AZ", "fi_FI", "ja_JP",
    ),
    "held_out": (
        "en_GB", "en_PK", "en_NG", "en_IE", "de_AT", "es_ES", "fr_FR", "nl_NL", "no_NO", "da_DK", "pt_PT", "hu_HU",
        "ro_RO", "vi_VN", "lt_LT", "zu_ZA", "zh_CN", "sk_SK", "et_EE",
    ),
}  # fmt: skip
_WORDS: dict[Split, tuple[str, ...]] = {
    "development": ("harbour", "copper", "lantern", "orchard", "granite", "meadow", "falcon", "willow", "ember"),
    "held_out": ("pebble", "juniper", "anchor", "thistle", "beacon", "saffron", "maple", "cobalt", "heron"),
}
_SUFFIXES: dict[Split, tuple[str, ...]] = {
    "development": ("com", "org", "de", "co.uk", "io", "fr", "com.au", "info", "nl", "museum"),
    "held_out": ("com", "net", "edu", "es", "ac.uk", "ch", "co.jp", "biz", "it", "photography", "dev", "gov"),
}
_NETWORKS = ("10", "192.168", "172.16", "203.0.113", "8.8", "151.101", "66.35")
_AREAS = ("212", "415", "312", "617", "206", "503", "713", "305", "404", "919")
_HASH = "\0"
"""Stands for a `#` that is none of a pattern's digits."""


@cache
def faker(locale: str) -> Any:
    """Faker's names and addresses of a locale. Seed it with every call: it is shared."""
    from faker import Factory

    return Factory.create(locale, providers=["faker.providers.person", "faker.providers.address"])


def filled(pattern: str, change: Callable[[str], str] = str) -> Make:
    """A form by a pattern with `{fields}` of `_Values`, in which every `#` becomes a digit, changed as a whole."""

    def make(rng: Random, split: Split) -> str:
        text = pattern.format_map(_Values(rng, split))
        return change(re.sub("#", lambda _: rng.choice(string.digits), text).replace(_HASH, "#"))

    return make


class _Values(dict[str, str]):
    """Values for the fields of a form: method `_x` makes one when field `{x}` asks, and it stays within that form."""

    def __init__(self, rng: Random, split: Split) -> None:
        super().__init__()
        self._rng, self._split = rng, split

    def __missing__(self, field: str) -> str:
        self[field] = value = str(getattr(self, f"_{field}")())
        return value

    # --- names

    def _first(self) -> str:
        fake = faker(self._rng.choice(_ORIGINS[self._split]))
        fake.seed_instance(self._rng.getrandbits(32))
        roman = hasattr(fake, "first_romanized_name")
        self["last"] = fake.last_romanized_name() if roman else fake.last_name()
        return str(fake.first_romanized_name() if roman else fake.first_name())

    def _last(self) -> str:
        self["first"] = self._first()
        return self["last"]

    def _LAST(self) -> str:
        return self["last"].upper()

    def _f(self) -> str:
        return self["first"][0]

    def _l(self) -> str:
        return self["last"][0]

    def _initial(self) -> str:
        return self._rng.choice("ABCDEFGHJKLM")

    def _particle(self) -> str:
        return self._rng.choice(("van der", "de la", "von", "al", "dos"))

    def _clan(self) -> str:
        return self._rng.choice(("Mc", "Mac", "O’", "Fitz"))

    def _other(self) -> str:
        return self._rng.choice(("Hopkins", "Ferrari", "Novak", "Oyelaran", "Jensen", "Kaplan"))

    # --- addresses on the net

    def _user(self) -> str:
        first, last = (_plain(self[part]) for part in ("first", "last"))
        return self._rng.choice((f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}", f"{first}##", last))

    def _tag(self) -> str:
        return self._rng.choice(("lists", "shop2", "x.y"))

    def _sign(self) -> str:
        """What a local part may hold beside letters, digits and dots: RFC 5322, atext."""
        return self._rng.choice(f"!{_HASH}$%&'*/=?^_`{{|}}~")

    def _word(self) -> str:
        return self._rng.choice(_WORDS[self._split])

    def _name(self) -> str:
        words = _WORDS[self._split]
        return self._rng.choice(words) + self._rng.choice(("", "#", f"-{self._rng.choice(words)}"))

    def _suffix(self) -> str:
        return self._rng.choice(_SUFFIXES[self._split])

    def _domain(self) -> str:
        return f"{self['name']}.{self['suffix']}"

    def _scheme(self) -> str:
        return self._rng.choice(("sftp", "ssh", "ldap", "rtsp", "wss"))

    def _port(self) -> str:
        return str(self._rng.randrange(80, 9999))

    def _v4(self) -> str:
        start = self._rng.choice((*_NETWORKS, str(self._rng.randrange(11, 223))))
        return ".".join([start, *(str(self._rng.randrange(1, 255)) for _ in range(3 - start.count(".")))])

    def _v6(self) -> str:
        return v6(self._rng)

    # --- numbers

    def _hash(self) -> str:
        return _HASH

    def _hex(self) -> str:
        return f"{self._rng.getrandbits(32):08x}"

    def _invalid(self) -> str:
        """Sixteen digits with a wrong check digit."""
        number = with_check_digit("4" + digits(self._rng, 14))
        return number[:-1] + str((int(number[-1]) + self._rng.randrange(1, 10)) % 10)

    def _invalid_spaced(self) -> str:
        return in_fours(self["invalid"])

    def _invalid_dashed(self) -> str:
        return in_fours(self["invalid"], "-")

    def _area(self) -> str:
        return self._rng.choice(_AREAS)

    def _exchange(self) -> str:
        """No 211 and the like, which are services."""
        pair = f"{self._rng.randrange(1, 10)}{self._rng.randrange(10)}".replace("11", "23")
        return f"{self._rng.randrange(2, 10)}{pair}"


def _plain(word: str) -> str:
    """Its small letters without accents."""
    return re.sub(r"[^a-z]", "", unicodedata.normalize("NFKD", word).lower()) or "x"


def digits(rng: Random, n: int) -> str:
    """So many digits."""
    return "".join(rng.choices(string.digits, k=n))


def in_fours(text: str, separator: str = " ") -> str:
    """The text in groups of four."""
    return separator.join(text[i : i + 4] for i in range(0, len(text), 4))


def with_check_digit(body: str) -> str:
    """The digits of a card with their check digit. ISO/IEC 7812-1 annex B."""
    total = sum(sum(divmod(int(c) * (2 - i % 2), 10)) for i, c in enumerate(reversed(body)))
    return body + str(-total % 10)


def v6(rng: Random, zeros: int | None = None) -> str:
    """An address with so many groups of zeros in its middle, abbreviated."""
    zeros = rng.randrange(1, 6) if zeros is None else zeros
    groups = [0x2000 + rng.randrange(0x1000), *(rng.randrange(1, 0x10000) for _ in range(7))]
    groups[2 : 2 + zeros] = [0] * zeros
    return str(ipaddress.IPv6Address(":".join(f"{group:x}" for group in groups)))
