"""The PII scanner's own recall and precision, on generated text in which every piece of personal data is known.

`planted` puts values of one entity, in many forms, into sentences and mails; `clean` writes texts without any that look
as if they had some; `check` lets a `Scrubber` loose on both and counts. All is invented and repeatable by its seed, so
the figures are public.

What it doesn't know: forms nobody listed here, names in other scripts than Latin, and how often real text looks like
this. The figures compare scanners; they bound nothing. Carriers and the origins of names come in two halves: one the
scanner's patterns were written against (`development`), one that they weren't (`held_out`, the default).

Run:
    python -m tutelage.privacy.pii_check [--n 200] [--seed 0] [--split held_out] [--misses 5]
"""

from __future__ import annotations

import argparse
import ipaddress
import random
import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tutelage.configs.records import Metric
from tutelage.privacy.scrub import ENTITIES, Scrubbed, Scrubber, Span, check_entities
from tutelage.privacy.stats import share_metric

if TYPE_CHECKING:
    from random import Random

Split = Literal["development", "held_out"]


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
    spans: tuple[Known, ...]
    """In the order of the text. `value` is one of them."""
    value: Known
    """The one the text was made for; others, such as the name in its signature, come along."""


class _Form(NamedTuple):
    """One way to write an entity down."""

    name: str
    make: Callable[[Random, Split], str]
    carriers: str = "free label"
    """The groups of carriers that it may stand in."""
    stratum: str = ""
    """Reported apart from the entity's other forms, and outside its recall."""


# --- values ---------------------------------------------------------------------------------------------------------


def _digits(rng: Random, n: int) -> str:
    return "".join(rng.choices(string.digits, k=n))


def _template(pattern: str) -> Callable[[Random, Split], str]:
    """A form as a pattern: `#` any digit, `%` a digit but 0, `@` a lower-case letter."""
    alphabets = {"#": string.digits, "%": "123456789", "@": string.ascii_lowercase}

    def make(rng: Random, _: Split) -> str:
        return "".join(rng.choice(alphabets[c]) if c in alphabets else c for c in pattern)

    return make


@cache
def _faker(locale: str) -> Any:
    from faker import Factory

    return Factory.create(locale, providers=["faker.providers.person", "faker.providers.address"])


# Locales of Faker whose names are in Latin script, of every continent. Each half has English-speaking ones.
_ORIGINS: dict[Split, tuple[str, ...]] = {
    "development": (
        "en_US", "en_IN", "en_KE", "en_NZ", "de_DE", "es_MX", "it_IT", "pl_PL", "sv_SE", "pt_BR", "cs_CZ", "tr_TR",
        "id_ID", "hr_HR", "fr_CA", "az_AZ", "fi_FI", "ja_JP",
    ),
    "held_out": (
        "en_GB", "en_PK", "en_NG", "en_IE", "de_AT", "es_ES", "fr_FR", "nl_NL", "no_NO", "da_DK", "pt_PT",
        "hu_HU", "ro_RO", "vi_VN", "lt_LT", "zu_ZA", "zh_CN", "sk_SK", "et_EE",
    ),
}  # fmt: skip


class _Name(NamedTuple):
    first: str
    last: str


def _name(rng: Random, split: Split) -> _Name:
    fake = _faker(rng.choice(_ORIGINS[split]))
    fake.seed_instance(rng.getrandbits(32))
    if hasattr(fake, "first_romanized_name"):
        return _Name(fake.first_romanized_name(), fake.last_romanized_name())
    return _Name(fake.first_name(), fake.last_name())


def _ascii(word: str) -> str:
    plain = unicodedata.normalize("NFKD", word).lower()
    return re.sub(r"[^a-z]", "", plain) or "x"


def _user(rng: Random, split: Split) -> str:
    first, last = map(_ascii, _name(rng, split))
    return rng.choice((f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}", f"{first}{_digits(rng, 2)}", last))


_WORDS: dict[Split, tuple[str, ...]] = {
    "development": ("harbour", "copper", "lantern", "orchard", "granite", "meadow", "falcon", "willow", "ember"),
    "held_out": ("pebble", "juniper", "anchor", "thistle", "beacon", "saffron", "maple", "cobalt", "heron"),
}
_TLDS: dict[Split, tuple[str, ...]] = {
    "development": ("com", "org", "de", "co.uk", "io", "fr", "com.au", "info", "nl", "museum"),
    "held_out": ("com", "net", "edu", "es", "ac.uk", "ch", "co.jp", "biz", "it", "photography", "dev", "gov"),
}


def _domain(rng: Random, split: Split) -> str:
    words = _WORDS[split]
    name = rng.choice(
        (rng.choice(words), f"{rng.choice(words)}-{rng.choice(words)}", rng.choice(words) + _digits(rng, 1))
    )
    return f"{name}.{rng.choice(_TLDS[split])}"


def _email(pattern: Callable[[str, str, Random], str]) -> Callable[[Random, Split], str]:
    return lambda rng, split: pattern(_user(rng, split), _domain(rng, split), rng)


def _spelled(at: str, dot: str) -> Callable[[Random, Split], str]:
    def make(rng: Random, split: Split) -> str:
        return _user(rng, split).replace(".", dot) + at + _domain(rng, split).replace(".", dot)

    return make


_EMAIL = (
    _Form("plain", _email(lambda user, domain, _: f"{user}@{domain}")),
    _Form("plus tag", _email(lambda user, domain, rng: f"{user}+{rng.choice(('lists', 'shop2', 'x.y'))}@{domain}")),
    _Form("subdomain", _email(lambda user, domain, _: f"{user}@mail.eu-west.{domain}")),
    _Form("upper case", _email(lambda user, domain, _: f"{user}@{domain}".upper())),
    _Form("title case", _email(lambda user, domain, _: f"{user.title()}@{domain.title()}")),
    _Form("punctuated local part", _email(lambda user, domain, rng: f"{user}{rng.choice(_PUNCTUATION)}a@{domain}")),
    _Form("quoted local part", _email(lambda user, domain, _: f'"{user} at home"@{domain}')),
    _Form("domain literal", _email(lambda user, _, rng: f"{user}@[{_v4(rng)}]")),
    _Form("one letter", _email(lambda user, domain, _: f"{user[0]}@{domain}")),
    _Form("international domain", _email(lambda user, domain, _: f"{user}@bücher-{domain}")),
    _Form("international local part", _email(lambda user, domain, _: f"zoë.{user}@{domain}")),
    _Form("punycode domain", _email(lambda user, domain, _: f"{user}@xn--bcher-kva.{domain}")),
    _Form("mailto", _email(lambda user, domain, _: f"{user}@{domain}"), "link"),
    _Form("single-label host", _email(lambda user, domain, _: f"{user}@{domain.partition('.')[0]}")),
    _Form("digits only", _email(lambda _, domain, rng: f"{_digits(rng, 9)}@{domain}")),
    _Form("underscored", _email(lambda user, domain, _: f"_{user}_@{domain}")),
    _Form("at and dot", _spelled(" at ", " dot "), stratum="obfuscated"),
    _Form("(at) and (dot)", _spelled(" (at) ", " (dot) "), stratum="obfuscated"),
    _Form("[at]", _spelled(" [at] ", "."), stratum="obfuscated"),
    _Form("AT and DOT", _spelled(" AT ", " DOT "), stratum="obfuscated"),
    _Form("{at}, no spaces", _spelled("{at}", "."), stratum="obfuscated"),
    _Form("spaced at sign", _spelled(" @ ", "."), stratum="obfuscated"),
    _Form("(dot) only", _spelled("@", "(dot)"), stratum="obfuscated"),
    _Form("_at_", _spelled("_at_", "."), stratum="obfuscated"),
)  # fmt: skip

_PHONE_REGIONS: dict[Split, tuple[str, ...]] = {
    "development": ("US", "GB", "DE", "FR", "IN", "MX", "SE", "PL", "JP", "KE", "BR"),
    "held_out": ("US", "GB", "DE", "FR", "ES", "IT", "NL", "CH", "AU", "CN", "NG", "TR", "IE"),
}


_PUNCTUATION = "!#$%&'*/=?^_`{|}~"
"""What a local part may hold beside letters, digits and dots (RFC 5322, atext)."""


def _number(rng: Random, region: str) -> Any:
    """A valid number of the region: its published example with other last digits."""
    import phonenumbers
    from phonenumbers import PhoneNumberType

    kind = rng.choice((PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE))
    example: Any = phonenumbers.example_number_for_type(region, kind)
    for _ in range(100):
        number = phonenumbers.PhoneNumber()
        number.merge_from(example)
        number.national_number = example.national_number // 10**5 * 10**5 + rng.randrange(10**5)
        if phonenumbers.is_valid_number(number):
            return number
    return example


def _formatted(style: str, *regions: str) -> Callable[[Random, Split], str]:
    def make(rng: Random, split: Split) -> str:
        import phonenumbers

        number = _number(rng, rng.choice(regions or _PHONE_REGIONS[split]))
        text = phonenumbers.format_number(number, getattr(phonenumbers.PhoneNumberFormat, style))
        return str(text).removeprefix("tel:")

    return make


def _restyled(style: str, separator: str, *regions: str) -> Callable[[Random, Split], str]:
    make = _formatted(style, *regions)
    return lambda rng, split: re.sub(r"[ -]+", separator, make(rng, split))


def _nanp(pattern: str) -> Callable[[Random, Split], str]:
    """A number of the United States; `AAA` the area, `EEE` the exchange, `#` a digit."""

    def make(rng: Random, split: Split) -> str:
        area = rng.choice(("212", "415", "312", "617", "206", "503", "713", "305", "404", "919"))
        exchange = f"{rng.randrange(2, 10)}{rng.randrange(1, 10)}{rng.randrange(10)}".replace("11", "23")
        filled = pattern.replace("AAA", area).replace("EEE", exchange)
        return re.sub("#", lambda _: rng.choice(string.digits), filled)

    return make


_PHONE = (
    _Form("US dashes", _nanp("AAA-EEE-####")),
    _Form("US dots", _nanp("AAA.EEE.####")),
    _Form("US parentheses", _nanp("(AAA) EEE-####")),
    _Form("US parentheses, no space", _nanp("(AAA)EEE-####")),
    _Form("US spaces", _nanp("AAA EEE ####")),
    _Form("US slash", _nanp("AAA/EEE-####")),
    _Form("US +1 parentheses", _nanp("+1 (AAA) EEE-####")),
    _Form("US 1-dashes", _nanp("1-AAA-EEE-####")),
    _Form("US +1.dots", _nanp("+1.AAA.EEE.####")),
    _Form("US x extension", _nanp("AAA-EEE-#### x###")),
    _Form("US ext. extension", _nanp("(AAA) EEE-#### ext. ####")),
    _Form("US extension in words", _nanp("AAA.EEE.####, extension ##")),
    _Form("US toll-free", _nanp("1-800-EEE-####")),
    _Form("US plain", _nanp("AAAEEE####"), "label"),
    _Form("US seven digits", _nanp("EEE-####"), "label"),
    _Form("international", _formatted("INTERNATIONAL")),
    _Form("E.164", _formatted("E164")),
    _Form("international dots", _restyled("INTERNATIONAL", ".")),
    _Form("international dashes", _restyled("INTERNATIONAL", "-")),
    _Form("tel URI", _formatted("RFC3966"), "link"),
    _Form("UK national", _formatted("NATIONAL", "GB")),
    _Form("UK dashes", _restyled("NATIONAL", "-", "GB")),
    _Form("UK parentheses", _template("(020) 7946 0###")),
    _Form("UK +44 (0)", _template("+44 (0)20 7946 0###")),
    _Form("UK 0044", _template("0044 20 7946 0###")),
    _Form("DE slash", _template("030/2345#####")),
    _Form("DE space", _template("030 2345####")),
    _Form("DE extension", _template("089 6345##-##")),
    _Form("DE mobile", _template("0171 23#####")),
    _Form("DE parentheses", _template("(030) 23 45 6# ##")),
    _Form("DE +49 (0)", _template("+49 (0) 30 2345###")),
    _Form("FR pairs", _template("01 4# ## ## ##")),
    _Form("FR dots", _template("06.1#.##.##.##")),
    _Form("FR dashes", _template("01-4#-##-##-##")),
    _Form("FR 0033", _template("0033 1 4# ## ## ##")),
    _Form("IDD 011", _template("011 44 20 7946 0###")),
    _Form("national", _formatted("NATIONAL"), "label"),
)  # fmt: skip


def _v4(rng: Random) -> str:
    start = rng.choice(("10", "192.168", "172.16", "203.0.113", "8.8", "151.101", "66.35", str(rng.randrange(11, 223))))
    rest = 4 - len(start.split("."))
    return ".".join([start, *(str(rng.randrange(1, 255)) for _ in range(rest))])


def _v6(rng: Random, zeros: int = 0) -> ipaddress.IPv6Address:
    """An address with so many groups of zeros in its middle."""
    groups = [0x2000 + rng.randrange(0x1000), *(rng.randrange(1, 0x10000) for _ in range(7))]
    for i in range(2, 2 + zeros):
        groups[i] = 0
    return ipaddress.IPv6Address(":".join(f"{group:x}" for group in groups))


def _url(pattern: Callable[[str, str, Random], str]) -> Callable[[Random, Split], str]:
    return lambda rng, split: pattern(_domain(rng, split), rng.choice(_WORDS[split]), rng)


_URL = (
    _Form("https", _url(lambda domain, _, __: f"https://{domain}/")),
    _Form("http with path", _url(lambda domain, word, _: f"http://www.{domain}/{word}/index.html")),
    _Form("no path", _url(lambda domain, _, __: f"http://{domain}")),
    _Form("www", _url(lambda domain, word, _: f"www.{domain}/{word}")),
    _Form("bare host", _url(lambda domain, _, __: domain)),
    _Form("bare host with path", _url(lambda domain, word, rng: f"{domain}/{word}/{_digits(rng, 3)}")),
    _Form("bare subdomain", _url(lambda domain, word, _: f"{word}.{domain}")),
    _Form("port", _url(lambda domain, word, rng: f"http://{domain}:{rng.randrange(80, 9999)}/{word}")),
    _Form("bare host with port", _url(lambda domain, _, rng: f"{domain}:{rng.randrange(80, 9999)}")),
    _Form("query", _url(lambda domain, word, rng: f"https://{domain}/?id={_digits(rng, 6)}&u={word}%20a")),
    _Form("bare host with query", _url(lambda domain, word, rng: f"{domain}?q={word}+{_digits(rng, 2)}")),
    _Form("fragment", _url(lambda domain, word, _: f"https://{domain}/a_b/c~d/#{word}")),
    _Form("parentheses in the path", _url(lambda domain, word, _: f"https://en.{domain}/wiki/{word}_(x)")),
    _Form("user and password", _url(lambda domain, word, _: f"ftp://{word}:s3cret@{domain}/pub")),
    _Form("IPv4 host", _url(lambda _, word, rng: f"http://{_v4(rng)}/{word}")),
    _Form("IPv4 host and port", _url(lambda _, word, rng: f"http://{_v4(rng)}:8080/{word}?x=1")),
    _Form("IPv6 host", _url(lambda _, word, rng: f"http://[{_v6(rng, 4)}]:8080/{word}")),
    _Form("punycode", _url(lambda domain, _, __: f"http://xn--mnchen-3ya.{domain}/")),
    _Form("international host", _url(lambda domain, _, __: f"https://münchen.{domain}/straße")),
    _Form("international bare host", _url(lambda domain, _, __: f"café-{domain}")),
    _Form("upper case", _url(lambda domain, word, _: f"HTTP://WWW.{domain.upper()}/{word.upper()}.HTM")),
    _Form("intranet", _url(lambda _, word, __: f"http://{word}/wiki")),
    _Form("localhost", _url(lambda _, word, rng: f"http://localhost:{rng.randrange(1024, 9999)}/{word}")),
    _Form("defanged", _url(lambda domain, word, _: f"hxxp://{domain}/{word}")),
    _Form("other scheme", _url(lambda domain, word, rng: f"{rng.choice(('sftp', 'ssh', 'ldap', 'rtsp', 'wss'))}://{word}.{domain}/x")),
    _Form("deep link", _url(lambda domain, word, rng: f"https://{domain}/r/{word}/{rng.getrandbits(64):016x}?t=a-b_c.d,e;f=1")),
)  # fmt: skip


def _luhn(body: str) -> str:
    """The digits with their check digit. ISO/IEC 7812-1 annex B."""
    total = sum(sum(divmod(int(c) * (2 - i % 2), 10)) for i, c in enumerate(reversed(body)))
    return body + str(-total % 10)


def _card(prefixes: str, length: int, *groups: int, separator: str = " ") -> Callable[[Random, Split], str]:
    def make(rng: Random, _: Split) -> str:
        prefix = rng.choice(prefixes.split())
        number = _luhn(prefix + _digits(rng, length - 1 - len(prefix)))
        return separator.join(_cut(number, groups or (length,)))

    return make


def _cut(text: str, sizes: Iterable[int]) -> Iterator[str]:
    start = 0
    for size in sizes:
        yield text[start : start + size]
        start += size


_CARD = (
    _Form("Visa spaced", _card("4", 16, 4, 4, 4, 4)),
    _Form("Visa plain", _card("4", 16)),
    _Form("Visa dashed", _card("4", 16, 4, 4, 4, 4, separator="-")),
    _Form("Visa dotted", _card("4", 16, 4, 4, 4, 4, separator=".")),
    _Form("Visa 13", _card("4", 13)),
    _Form("Mastercard plain", _card("51 52 53 54 55", 16)),
    _Form("Mastercard spaced", _card("51 52 53 54 55", 16, 4, 4, 4, 4)),
    _Form("Mastercard 2-series", _card("2221 2345 2600 2720", 16, 4, 4, 4, 4)),
    _Form("Mastercard 2-series dashed", _card("2221 2345 2600 2720", 16, 4, 4, 4, 4, separator="-")),
    _Form("Amex spaced", _card("34 37", 15, 4, 6, 5)),
    _Form("Amex plain", _card("34 37", 15)),
    _Form("Amex dashed", _card("34 37", 15, 4, 6, 5, separator="-")),
    _Form("Discover", _card("6011 644 65", 16, 4, 4, 4, 4)),
    _Form("Discover plain", _card("6011 644 65", 16)),
    _Form("Diners plain", _card("300 305 36 38", 14)),
    _Form("Diners spaced", _card("300 305 36 38", 14, 4, 6, 4)),
    _Form("Diners dashed", _card("300 305 36 38", 14, 4, 6, 4, separator="-")),
    _Form("JCB", _card("3528 3589", 16, 4, 4, 4, 4)),
    _Form("JCB plain", _card("3528 3589", 16)),
    _Form("UnionPay", _card("6221 6229 6282", 16, 4, 4, 4, 4)),
    _Form("UnionPay 19", _card("6221 6229 6282", 19, 6, 13)),
    _Form("UnionPay 19 plain", _card("6221 6229 6282", 19)),
    _Form("Maestro", _card("5018 5020 6304 6759", 16, 4, 4, 4, 4)),
    _Form("Maestro 19 spaced", _card("5018 5020 6304 6759", 19, 4, 4, 4, 4, 3)),
    _Form("Mir", _card("2200 2204", 16, 4, 4, 4, 4)),
)  # fmt: skip

# Country code -> how its account numbers read: a letters, n digits, c either. SWIFT IBAN registry, release 97.
_BBAN = {
    "DE": "18n", "GB": "4a14n", "FR": "10n11c2n", "ES": "20n", "IT": "1a10n12c", "NL": "4a10n", "BE": "12n",
    "AT": "16n", "CH": "5n12c", "PL": "24n", "SE": "20n", "NO": "11n", "DK": "14n", "FI": "14n", "PT": "21n",
    "IE": "4a14n", "CZ": "20n", "HU": "24n", "RO": "4a16c", "GR": "7n16c", "SA": "2n18c", "AE": "19n", "IL": "19n",
    "MT": "4a5n18c", "LU": "3n13c", "QA": "4a21c", "PK": "4a16c", "KZ": "3n13c", "UA": "6n19c", "LV": "4a13c",
    "LT": "16n", "EE": "16n", "HR": "17n", "SI": "15n", "SK": "20n", "BG": "4a6n8c", "CY": "8n16c", "IS": "22n",
    "LI": "5n12c", "MC": "10n11c2n",
}  # fmt: skip


def _iban(grouped: Callable[[str, Random], str], *countries: str) -> Callable[[Random, Split], str]:
    def make(rng: Random, split: Split) -> str:
        country = rng.choice(countries or tuple(_BBAN)[split == "held_out" :: 2])
        alphabets = {"a": string.ascii_uppercase, "n": string.digits, "c": string.digits + string.ascii_uppercase}
        parts = re.findall(r"(\d+)([anc])", _BBAN[country])
        bban = "".join(rng.choice(alphabets[kind]) for size, kind in parts for _ in range(int(size)))
        number = int("".join(str(int(c, 36)) for c in f"{bban}{country}00"))
        return grouped(f"{country}{98 - number % 97:02}{bban}", rng)  # ISO 7064, MOD 97-10

    return make


def _fours(text: str, separator: str = " ") -> str:
    return separator.join(text[i : i + 4] for i in range(0, len(text), 4))


_IBAN = (
    _Form("spaced", _iban(lambda iban, _: _fours(iban))),
    _Form("plain", _iban(lambda iban, _: iban)),
    _Form("plain lower case", _iban(lambda iban, _: iban.lower())),
    _Form("spaced lower case", _iban(lambda iban, _: _fours(iban.lower()))),
    _Form("dashed", _iban(lambda iban, _: _fours(iban, "-"))),
    _Form("country apart", _iban(lambda iban, _: f"{iban[:4]} {iban[4:]}")),
    _Form("German", _iban(lambda iban, _: _fours(iban), "DE")),
    _Form("British", _iban(lambda iban, _: _fours(iban), "GB")),
    _Form("French", _iban(lambda iban, _: iban, "FR")),
    _Form("dotted", _iban(lambda iban, _: _fours(iban, "."))),
    _Form("uneven groups", _iban(lambda iban, _: f"{iban[:4]} {iban[4:12]} {iban[12:]}")),
)


def _ssn(separator: str) -> Callable[[Random, Split], str]:
    def make(rng: Random, _: Split) -> str:
        area = rng.choice([*range(1, 666), *range(667, 900)])
        return f"{area:03}{separator}{rng.randrange(1, 100):02}{separator}{rng.randrange(1, 10_000):04}"

    return make


_SSN = (
    _Form("dashed", _ssn("-")),
    _Form("spaced", _ssn(" ")),
    _Form("plain", _ssn(""), "label"),
    _Form("dashed, labelled", _ssn("-"), "label"),
    _Form("dotted", _ssn("."), "label"),
    _Form("spaced, labelled", _ssn(" "), "label"),
    _Form("en dashes", _ssn("–")),
    _Form("spaced dashes", _ssn(" - "), "label"),
)

_IP = (
    _Form("IPv4", lambda rng, _: _v4(rng)),
    _Form("IPv4 and more", lambda rng, _: _v4(rng), "part"),
    _Form("IPv4 range", lambda rng, _: f"{_v4(rng)}-{_v4(rng)}"),
    _Form("IPv6 in full", lambda rng, _: _v6(rng).exploded),
    _Form("IPv6", lambda rng, _: str(_v6(rng))),
    _Form("IPv6 with ::", lambda rng, _: str(_v6(rng, rng.randrange(1, 6)))),
    _Form("IPv6 upper case", lambda rng, _: str(_v6(rng, 2)).upper()),
    _Form("IPv6 ending in ::", lambda rng, _: str(ipaddress.IPv6Address(int(_v6(rng)) >> 80 << 80))),
    _Form("IPv6 and more", lambda rng, _: str(_v6(rng, 3)), "part6"),
    _Form("link-local with zone", lambda rng, _: f"fe80::{rng.getrandbits(16):x}:{rng.getrandbits(16):x}%eth0"),
    _Form("IPv4-mapped", lambda rng, _: f"::ffff:{_v4(rng)}"),
    _Form("IPv6 zeros kept", lambda rng, _: ":".join(f"{int(g, 16):x}" for g in _v6(rng, 2).exploded.split(":"))),
)


def _person(pattern: Callable[[str, str, Random], str]) -> Callable[[Random, Split], str]:
    return lambda rng, split: pattern(*_name(rng, split), rng)


# `bare`: in the midst of a sentence, with nothing to show that it is a name.
_PERSON = (
    _Form("full", _person(lambda first, last, _: f"{first} {last}"), "bare"),
    _Form("full, again", _person(lambda first, last, _: f"{first} {last}"), "bare"),
    _Form("first", _person(lambda first, _, __: first), "bare"),
    _Form("middle initial", _person(lambda first, last, rng: f"{first} {rng.choice('ABCDEFGHJKLM')}. {last}"), "bare"),
    _Form("initials", _person(lambda first, last, rng: f"{first[0]}. {rng.choice('ABCDEF')}. {last}"), "bare"),
    _Form("one initial", _person(lambda first, last, _: f"{first[0]}. {last}"), "bare table"),
    _Form("upper case", _person(lambda first, last, _: f"{first} {last}".upper()), "bare sign table"),
    _Form("possessive", _person(lambda first, last, _: f"{first} {last}"), "whose"),
    _Form("title and last", _person(lambda _, last, __: last), "title"),
    _Form("title and full", _person(lambda first, last, _: f"{first} {last}"), "title"),
    _Form("last, first", _person(lambda first, last, _: f"{last}, {first}"), "table"),
    _Form("LAST First", _person(lambda first, last, _: f"{last.upper()} {first}"), "table"),
    _Form("in a table", _person(lambda first, last, _: f"{first} {last}"), "table"),
    _Form("greeted", _person(lambda first, _, __: first), "greet"),
    _Form("greeted in full", _person(lambda first, last, _: f"{first} {last}"), "greet"),
    _Form("signed", _person(lambda first, _, __: first), "sign"),
    _Form("signed in full", _person(lambda first, last, _: f"{first} {last}"), "sign"),
    _Form("signed with initial", _person(lambda first, last, _: f"{first} {last[0]}."), "sign"),
    _Form("in a header", _person(lambda first, last, _: f"{first} {last}"), "header"),
    _Form("in a header, lower case", _person(lambda first, last, _: f"{first} {last}".lower()), "header"),
    _Form("quoted", _person(lambda first, last, _: f"{first} {last}"), "quote"),
)  # fmt: skip


def _street(locale: str) -> Callable[[Random, Split], str]:
    def make(rng: Random, _: Split) -> str:
        fake = _faker(locale)
        fake.seed_instance(rng.getrandbits(32))
        return str(fake.street_address()).replace("\n", ", ")

    return make


def _american(rng: Random, _: Split) -> str:
    fake = _faker("en_US")
    fake.seed_instance(rng.getrandbits(32))
    return str(fake.address()).replace("\n", ", ")


_STREET = (
    _Form("American street", _street("en_US")),
    _Form("American, in full", _american),
    _Form("British street", _street("en_GB")),
    _Form("PO box", _template("P.O. Box ####")),
    _Form("Canadian street", _street("en_CA")),
    _Form("Australian street", _street("en_AU")),
    _Form("German street", _street("de_DE"), stratum="not_english"),
    _Form("French street", _street("fr_FR"), stratum="not_english"),
    _Form("Spanish street", _street("es_ES"), stratum="not_english"),
    _Form("Italian street", _street("it_IT"), stratum="not_english"),
    _Form("Dutch street", _street("nl_NL"), stratum="not_english"),
)

_FORMS: dict[str, tuple[_Form, ...]] = {
    "EMAIL_ADDRESS": _EMAIL,
    "PHONE_NUMBER": _PHONE,
    "URL": _URL,
    "CREDIT_CARD": _CARD,
    "IBAN_CODE": _IBAN,
    "US_SSN": _SSN,
    "IP_ADDRESS": _IP,
    "PERSON": _PERSON,
    "STREET_ADDRESS": _STREET,
}

# --- carriers -------------------------------------------------------------------------------------------------------

# Entity ("" any but names) -> group -> texts, those for development and for holding out in turn. `{}` is the value,
# `{PERSON}` and the like other personal data, `{label}` a word for the entity.
_CARRIERS: dict[str, dict[str, tuple[str, ...]]] = {
    "": {
        "free": (
            "Mine is {}.",
            "Please note {} for the file.",
            "{} is what they gave me.",
            "{} turned up in the log again.",
            "It was {}, I think.",
            "If it is still {}, tell me today.",
            "The form says ({}).",
            "The old one (that is, {}) still works.",
            'She wrote "{}" on the card.',
            "He typed '{}' twice and gave up.",
            "Old entry: {}; new entry: none.",
            "We have two of them, {} and another one.",
            "So far I have {}",
            "What they sent was {}",
            "can you check {} for me?\n\nDone.",
            "is it {} or not?\n\nIt is.",
            "1. ask for the key\n2. {}\n3. wait",
            "- open the door\n- {}\n- leave",
            "| 14 | {} | open |",
            "row\tvalue\tstate\n7\t{}\tdone",
            "Hello,\n\nas agreed: {}\n\nBest regards,\n{PERSON}",
            "Hi there,\n\nhere it comes.\n{}\n\nCheers\n{PERSON}",
            "number,value,state\n3,{},open",
            "key={} state=open",
            "From: {PERSON} <{EMAIL_ADDRESS}>\nSubject: as promised\n\n{} and nothing else.",
            "To: {EMAIL_ADDRESS}\nSubject: your question\n\nThe answer is {}!",
        ),
        "label": (
            "{label}: {}",
            "My {label} is {}.",
            "{label} {}",
            "Here is the {label} you asked for: {}.",
            "{PERSON}\n{label}: {}\nsecond floor",
            "-- \n{PERSON} | {label} {} | closed on Fridays",
            "name: {PERSON}\n{label}: {}\nstate: open",
            "Thanks,\n{PERSON}\n\n{label}  {}",
            "We still need your {label}, is it {}?",
            "They changed the {label} to {} last week.",
        ),
    },
    "EMAIL_ADDRESS": {
        "free": (
            "Write to {} and I will answer tonight.",
            "Send it to {} before noon.",
            "{} bounced twice this morning.",
            "I copied {} on the last message.",
            "From: {PERSON} <{}>\nSubject: minutes\n\nThe minutes are attached.",
            "To: <{}>\nCc: {EMAIL_ADDRESS}\nSubject: lunch\n\nShall we eat at noon?",
            "Name | Mail\n{PERSON} | {}",
            "Questions? {} knows more.",
        ),
        "link": ("Mail to <mailto:{}> please.", '<a href="mailto:{}">write</a>', "mailto:{}?subject=hi", "(mailto:{})"),
    },
    "PHONE_NUMBER": {
        "free": (
            "Call me at {} after six.",
            "You can ring {} at any hour.",
            "Her mobile is {}, but she rarely answers.",
            "I tried {} and nobody picked up.",
            "Text {} when you arrive.",
            "Leave a message on {}.",
        ),
        "link": ("Ring <tel:{}> now.", '<a href="tel:{}">call</a>', "tel:{}", "The link is tel:{}."),
    },
    "URL": {
        "free": (
            "See {} for the details.",
            "The photos are on {} now.",
            "I read it at {}, have a look.",
            "Download it from {} and install it.",
            "The page <{}> is gone.",
            "More under {}.",
        )
    },
    "CREDIT_CARD": {
        "free": (
            "Please charge it to {} as usual.",
            "I paid with {} last month.",
            "The card {} expires in 12/27.",
            "They billed {} twice!",
        )
    },
    "IBAN_CODE": {
        "free": (
            "Transfer the rent to {} by Monday.",
            "Pay into {} please.",
            "The refund went to {}.",
            "My account {} is with another bank now.",
        )
    },
    "US_SSN": {
        "free": (
            "The applicant gave {} as the number.",
            "My social is {}.",
            "They need {} for the tax form.",
            "It is filed under {}, as always.",
        )
    },
    "IP_ADDRESS": {
        "free": (
            "{} does not answer to ping.",
            "The server moved to {} last night.",
            "Received: from unknown (HELO x) ({}) by mail; Mon, 2 Sep 2002 10:11:12 +0100",
            "sshd: failed password for root from {} port 22",
            "Block {} at the firewall.",
            "The default route goes through {} again.",
        ),
        # a port or the length of a network's prefix identifies nobody, so they are no part of the value
        "part": (
            "Connect to {}:8080 with the browser.",
            "The tunnel ends in {}:443.",
            "Allow {}/24 only.",
            "Everything from {}/16 is blocked.",
            "Received: from [{}] by mail",
            "Received: from x ([{}]:25) by mail",
        ),
        "part6": (
            "Connect to [{}]:8080 with the browser.",
            "The tunnel ends in [{}]:443.",
            "Allow {}/64 only.",
            "Everything from {}/48 is blocked.",
            "Received: from [IPv6:{}] by mail",
            "Received: from x ([{}]) by mail",
        ),
    },
    "STREET_ADDRESS": {
        "free": (
            "We moved to {} in spring.",
            "Send the parcel to {}.",
            "{PERSON}\n{}",
            "They live at {}, next to the church.",
            "The office is at {}.",
            "Meet me in front of {} at eight.",
        )
    },
    "PERSON": {
        "bare": (
            "I talked to {} about the budget last week.",
            "The slides come from {}, not from me.",
            "{} will send you the new version tomorrow.",
            "{} has the key to the basement.",
            "Yesterday {} said that the server is down again.",
            "Last time {} brought the cake.",
            "Could you ask {} whether the room is free?",
            "Nobody told {} that we moved the meeting.",
            "The talk by {} was the best of the day.",
            "We hired {} in spring, and it was a good choice.",
            "Please forward this to {}.",
            "It was agreed with {}",
            "I met {} at the conference; we had lunch.",
            "As {} wrote, the patch breaks the build.",
            "Only {} and the driver were in the car.",
            "According to {}, the roof leaks.",
        ),
        "whose": (
            "I think {}'s idea is better.",
            "We used {}'s car for the trip.",
            "It was {}'s turn to cook.",
            "Where is {}'s umbrella?",
        ),
        "title": (
            "Mr. {} called this morning.",
            "Please see Dr. {} on Tuesday.",
            "I wrote to Mrs {} about the invoice.",
            "Prof. {} gives the lecture.",
            "Dear Ms. {},\n\nthank you for the letter.",
            "Dear Mr {}:\n\nwe are sorry.",
            "We asked Miss {} to come.",
            "Then Sir {} opened the fair.",
        ),
        "table": (
            "name | team | room\n{} | blue | 214",
            "Name: {}\nRoom: 12",
            "1. {}\n2. nobody\n3. nobody",
            "Attendees: {}; the others were ill.",
            "Contact: {}, second floor",
            "present: {} (chair)",
        ),
        "greet": (
            "Hi {},\n\nthe report is done.",
            "Dear {},\n\nthank you for the flowers.",
            "Hello {}, how was the trip?",
            "Hey {}! Are you coming tonight?",
            "Good morning {},\n\nwe start at nine.",
            "Thanks {}, that helped a lot.",
        ),
        "sign": (
            "The report is attached.\n\nRegards,\n{}",
            "See you on Monday.\n\nBest wishes,\n{}",
            "I will be late.\n\nCheers\n{}",
            "Keep me posted.\n\nThanks,\n{}",
            "It works now.\n\n-- \n{}",
            "Sorry for the noise.\n\nKind regards\n\n{}\nsecond floor",
            "Call me.\n\nYours sincerely,\n{}",
            "We will see.\n\nAll the best,\n\n{}",
        ),
        "header": (
            "From: {} <{EMAIL_ADDRESS}>\nSubject: minutes\n\nThe minutes are attached.",
            'To: "{}" <{EMAIL_ADDRESS}>\nSubject: lunch\n\nShall we eat at noon?',
            "Cc: {} <{EMAIL_ADDRESS}>\nDate: today\n\nPlease read this.",
            "From: {EMAIL_ADDRESS} ({})\nSubject: build\n\nThe build is broken.",
        ),
        "quote": (
            "On Tuesday, {} wrote:\n> it is broken\n\nI know.",
            "{} wrote:\n> who has the key?\n\nI have it.",
            "{} <{EMAIL_ADDRESS}> writes:\n> no\n\nYes.",
            "On 12 May, {} <{EMAIL_ADDRESS}> wrote:\n> when?\n\nAt noon.",
        ),
    },
}
_LABELS = {
    "EMAIL_ADDRESS": ("E-mail", "Mail", "email address", "EMAIL"),
    "PHONE_NUMBER": ("Phone", "Tel.", "mobile", "Fax", "telephone number", "cell", "phone number", "Tel"),
    "URL": ("Web", "Homepage", "website", "URL"),
    "CREDIT_CARD": ("Card number", "credit card", "Visa", "card no."),
    "IBAN_CODE": ("IBAN", "account", "Bank account", "iban"),
    "US_SSN": ("SSN", "social security number", "Social Security No.", "SSN#", "social security", "ssn"),
    "IP_ADDRESS": ("IP", "IP address", "Host", "address"),
    "STREET_ADDRESS": ("Address", "home address", "Ship to", "address"),
}

# How a text is laid out. White space is collapsed as often as in the records of the mail corpus; a line may break
# within a value where it has a space.
_LAYOUTS = {"as it is": 8, "collapsed": 4, "quoted": 2, "broken": 1, "upper case": 1}


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
    forms = list(_FORMS[entity])
    return [_plant(rng, entity, forms[i % len(forms)], split) for i in range(n)]


def _plant(rng: Random, entity: str, form: _Form, split: Split) -> Planted:
    own, general = _CARRIERS.get(entity, {}), _CARRIERS[""] if entity != "PERSON" else {}
    carriers = [
        carrier
        for group in form.carriers.split()
        for table in (own, general)
        for carrier in table.get(group, ())[split == "held_out" :: 2]
    ]
    carrier = rng.choice(carriers).replace("{label}", rng.choice(_LABELS.get(entity, ("",))))
    layout = rng.choices(list(_LAYOUTS), list(_LAYOUTS.values()))[0]
    pieces, known, length = [], [], 0
    for piece in re.split(r"(\{\w*\})", carrier):
        if piece.startswith("{"):
            other = piece[1:-1]
            value = (_FORMS[other][0] if other else form).make(rng, split)
            if layout == "broken" and not other and "\n" not in carrier:
                value = _break(rng, value)
            known.append(Known(length, length + len(value), other or entity, "" if other else form.name))
            piece = value
        pieces.append(piece)
        length += len(piece)
    return _laid_out("".join(pieces), known, layout)


def _break(rng: Random, value: str) -> str:
    spaces = [i for i, c in enumerate(value) if c == " "]
    at = rng.choice(spaces) if spaces else len(value)
    return f"{value[:at]}\n{value[at + 1 :]}" if spaces else value


def _laid_out(text: str, known: list[Known], layout: str) -> Planted:
    if layout == "upper case" and len(text.upper()) == len(text):
        text = text.upper()
    moved: list[int] = []  # old position -> new
    out: list[str] = []
    length = 0
    if layout == "quoted":
        out.append("> ")
        length = 2
    for i, c in enumerate(text):
        piece = c
        if layout == "collapsed" and c.isspace():
            piece = "" if i and text[i - 1].isspace() else " "
        elif layout == "quoted" and c == "\n":
            piece = "\n> "
        moved.append(length)
        out.append(piece)
        length += len(piece)
    moved.append(length)
    spans = tuple(one._replace(start=moved[one.start], end=moved[one.end]) for one in known)
    value = next(one for one in spans if one.form)
    return Planted("".join(out), spans, value)


# --- texts without personal data --------------------------------------------------------------------------------------


def _failing_luhn(rng: Random, n: int) -> str:
    number = _luhn("4" + _digits(rng, n - 2))
    return number[:-1] + str((int(number[-1]) + rng.randrange(1, 10)) % 10)


def _hex(rng: Random, n: int) -> str:
    return f"{rng.getrandbits(4 * n):0{n}x}"


# `name`: a common word that is a name too, or the name of something else than a person.
_CLEAN: dict[str, tuple[str | Callable[[Random], str], ...]] = {
    "number": (
        lambda rng: f"Your order number is {_digits(rng, 9)}, please keep it.",
        lambda rng: f"Order no. {_digits(rng, 10)} has been shipped.",
        lambda rng: f"Ticket #{_digits(rng, 7)} was closed.",
        lambda rng: f"Invoice {_digits(rng, 8)} is still open.",
        lambda rng: f"The reference is {_failing_luhn(rng, 16)}.",
        lambda rng: f"Please quote {_fours(_failing_luhn(rng, 16))} when you write.",
        lambda rng: f"The parcel {_failing_luhn(rng, 16)} is on its way.",
        lambda rng: f"Tracking code: {_fours(_failing_luhn(rng, 16), '-')}.",
        lambda rng: f"The book has the ISBN 978-0-{_digits(rng, 3)}-{_digits(rng, 5)}-{_digits(rng, 1)}.",
        lambda rng: f"ISBN 0-{_digits(rng, 3)}-{_digits(rng, 5)}-X is out of print.",
        lambda rng: f"The part is a {rng.choice('ABCD')}{_digits(rng, 2)}-{_digits(rng, 4)}-{_digits(rng, 2)}.",
        lambda rng: f"Use screw {_digits(rng, 2)}-{_digits(rng, 3)}-{_digits(rng, 4)} for it.",
        lambda rng: f"The limit is ${_digits(rng, 1)}1,{_digits(rng, 3)}.{_digits(rng, 2)} per year.",
        lambda rng: f"We sold {rng.randrange(1, 9)},{_digits(rng, 3)},{_digits(rng, 3)} of them.",
        lambda rng: f"The code 9{_digits(rng, 2)}-00-{_digits(rng, 4)} is only an example.",
        lambda rng: f"It says 000-{_digits(rng, 2)}-{_digits(rng, 4)} on the label.",
        lambda rng: f"The account XY{_digits(rng, 2)} {_fours(_digits(rng, 16))} does not exist.",
        lambda rng: f"Article DE{_digits(rng, 6)} is sold out.",
        lambda rng: f"The value is {rng.random():.10f} at best.",
        lambda rng: f"Pi is 3.14159265, and {rng.randrange(10, 99)}% is too much.",
        lambda rng: f"The unix time was {1_000_000_000 + rng.randrange(10**8)} then.",
        lambda rng: f"At {1_000_000_000 + rng.randrange(10**8)} seconds the counter overflows.",
    ),
    "time": (
        lambda rng: f"We meet from {rng.randrange(8, 12)}:30-{rng.randrange(13, 18)}:45.",
        lambda rng: f"Open {rng.randrange(7, 10)}.00 - {rng.randrange(16, 20)}.30 on weekdays.",
        lambda rng: f"It happened on 20{_digits(rng, 2)}-0{rng.randrange(1, 10)}-1{_digits(rng, 1)} at noon.",
        lambda rng: f"The log ends at 2002-08-2{rng.randrange(9)}T10:22:{rng.randrange(10, 60)}Z.",
        lambda rng: f"The deadline is 1{rng.randrange(10)}/0{rng.randrange(1, 9)}/2002, not later.",
        lambda rng: f"It ran from 0{rng.randrange(1, 9)}.12.2001 to 1{rng.randrange(10)}.01.2002.",
        lambda rng: f"The years 19{_digits(rng, 2)}-2002 were good.",
        lambda rng: f"In season {rng.randrange(1990, 2001)}-2001 they won {rng.randrange(2, 9)}-{rng.randrange(2)}.",
        lambda rng: f"Mon, {rng.randrange(10, 28)} Aug 2002 12:34:{rng.randrange(10, 60)} -0400",
        lambda rng: f"Tue Sep {rng.randrange(10, 28)} 09:{rng.randrange(10, 60)}:21 EDT 2002",
    ),
    "code": (
        lambda rng: f"Version 2.{rng.randrange(20)}.{rng.randrange(20)} fixes the bug.",
        lambda rng: f"We run version {rng.randrange(1, 9)}.0.{rng.randrange(9)}.{rng.randrange(20)} of the driver.",
        lambda rng: f"See section {rng.randrange(1, 9)}.{rng.randrange(1, 9)}.{rng.randrange(1, 9)}.2 of the manual.",
        lambda rng: f"Upgrade to release 10.{rng.randrange(9)}.{rng.randrange(9)}.1 first.",
        lambda rng: f"The commit is {_hex(rng, 40)}.",
        lambda rng: f"Its checksum (md5) is {_hex(rng, 32)}.",
        lambda rng: f"Revert {_hex(rng, 8)} if the tests fail.",
        lambda rng: f"Request {_hex(rng, 8)}-{_hex(rng, 4)}-4{_hex(rng, 3)}-a{_hex(rng, 3)}-{_hex(rng, 12)} timed out.",
        lambda rng: f"The card has the address 00:1b:{_hex(rng, 2)}:{_hex(rng, 2)}:5e:{_hex(rng, 2)}.",
        "Call os.path.join(a, b) and then sys.exit(1).",
        "The class std::vector is in the namespace std::ranges.",
        "Use foo.bar() instead of self.items[i].name here.",
        "It prints x = y.z + 1; and then stops.",
        "Open report.doc, setup.py and notes.txt in that order.",
        "The files main.rs, build.sh and README.md have changed.",
        "Unpack backup.zip and run install.pl after that.",
        "Delete core.1042 and *.tmp; keep index.html.",
        "Use @property or @staticmethod as a decorator.",
        "The team meets @ noon, lunch is @ 5 dollars each.",
        "It costs 3.50 e.g. in the U.S. and less elsewhere, i.e. here.",
        "That is the end.Then we go home.",
        "The host 256.300.1.2 cannot exist.",
        "The ratio is 10:20:30 and the window is 12::30.",
        "Look at the dot on the map and at the line below.",
        "Press Ctrl-C twice, then F10, then Enter.",
        "Edit /etc/passwd and ~/.bashrc as root.",
        "Set a[0]=b.c and x->y.z to null.",
    ),
    "name": (
        "Mark the date in your calendar.",
        "Mark every page that you have read.",
        "Will you come to the party?",
        "Will it rain tomorrow?",
        "May I ask a question?",
        "May we use the garden in June?",
        "Rose petals and a glass of wine.",
        "Rose and lavender smell best.",
        "Hope this helps.",
        "Hope to see you soon.",
        "Bill them at the end of the month.",
        "Bill of materials: see below.",
        "Grace periods end on Friday.",
        "Summer sales start on Monday.",
        "In April and in August the shop is closed.",
        "We close in May and open again in June.",
        "Jack up the car before you change the wheel.",
        "Frank words are rare these days.",
        "Pat the dough dry and let it rest.",
        "Chase the bug until it is gone.",
        "Drew a line and then another one.",
        "Sue them for damages.",
        "Art and music are taught on Fridays.",
        "Faith and reason can live together.",
        "Dawn came early, and we left.",
        "Christian values and European history were the topics.",
        "We fly to Berlin on Monday and to Paris on Friday.",
        "The offices in San Francisco and New York are closed.",
        "Sydney and Melbourne are far apart.",
        "She studied in Oxford before she moved to Georgia.",
        "The rain in Spain falls mainly on Madrid.",
        "Trains from London to Florence take a day.",
        "Microsoft released a patch on Tuesday.",
        "Deutsche Bank and General Motors published figures.",
        "Intel and Sun sell processors to IBM.",
        "Red Hat and Debian are distributions of Linux.",
        "Ask the European Union or the United Nations.",
        "The Federal Reserve met in Washington.",
        "Python, Perl and Java are languages.",
        "Apache and Sendmail run on the old machine.",
        "Dear Sir or Madam, please read this.",
        "Dear customer, your parcel is here.",
        "Hi all, the meeting is moved to Monday.",
        "Hello everybody, lunch is ready.",
        "Thanks for the quick answer.",
        "Best regards and see you soon.",
        "Merry Christmas and a happy New Year!",
        "The Golden Gate Bridge is closed for repair.",
        "The Windows machine talks to the Linux box.",
        "FREE OFFER!!! ACT NOW AND SAVE BIG MONEY",
        "LIMITED TIME ONLY: CALL TODAY FOR DETAILS",
        "Make Money Fast From Your Own Home Today",
        "Lose Weight Now Without Any Diet Or Exercise",
    ),
    "prose": (
        "Then we go to the shop and buy five things.",
        "The old bridge was painted green last year.",
        "I cannot find the key to the second drawer.",
        "Please bring a chair and something to drink.",
        "The test fails on the slow machine only.",
        "He says that the roof is older than the house.",
        "Nobody knows why the lights went out.",
        "The soup needs more salt and less pepper.",
        "We should talk about the plan before the week is over.",
        "It took three hours to drive home in the snow.",
    ),
}  # fmt: skip


def clean(n: int, seed: int, split: Split = "held_out") -> list[str]:
    """Texts without personal data, most of which look as if they had some: all kinds in turn.

    Args, as `planted`.
    """
    rng = random.Random(f"{seed}/{split}/clean")
    kinds = [texts[split == "held_out" :: 2] for texts in _CLEAN.values()]
    makers = [maker for texts in kinds for maker in texts]
    order = [makers[i % len(makers)] for i in range(n)]
    return [maker if isinstance(maker, str) else maker(rng) for maker in order]


# --- the check --------------------------------------------------------------------------------------------------------


def check(
    scrubber: Scrubber, entities: Sequence[str], n: int = 200, seed: int = 0, split: Split = "held_out"
) -> tuple[Metric, ...]:
    """Measure a scrubber on planted and on clean text.

    `pii.recall.ENTITY` is the share of planted values of which no letter and no digit is left: a value replaced but for
    a part is a miss. `pii.recall.ENTITY.STRATUM` is the same for forms that are no part of it, such as addresses
    spelled to fool machines, and `pii.recall.PERSON.bare` for names in the midst of a sentence, which are a part of it.
    `pii.precision.ENTITY` is the share of replaced spans of the entity, over all texts, that overlap personal data
    of whatever entity; missing where nothing was replaced. `pii.clean_changed_share` is the share of clean texts in
    which anything was replaced.

    Args:
        scrubber: What to measure.
        entities: Which of `ENTITIES` to plant; those that the scrubber should replace.
        n: How many texts per entity, and of clean ones. 200 take some 10 seconds on one core.
        seed: The same seed gives the same texts.
        split: `held_out`, or `development` for the half that the patterns were written against.

    Returns:
        Metrics with exact 95% intervals. All text is generated, so none is internal.

    Raises:
        UserError: an entity nobody knows.
    """
    check_entities(entities)
    cases = {entity: planted(entity, n, seed, split) for entity in entities}
    plain = clean(n, seed, split)
    texts = [one.text for some in cases.values() for one in some]
    results = scrubber.scrub_many([*texts, *plain])
    found = dict(zip(cases, _in_parts(results, [len(some) for some in cases.values()]), strict=True))

    recall: dict[str, list[bool]] = defaultdict(list)
    precision: dict[str, list[bool]] = {entity: [] for entity in entities}
    for entity, some in cases.items():
        forms = {form.name: form for form in _FORMS[entity]}
        for one, result in zip(some, found[entity], strict=True):
            form, hit = forms[one.value.form], covered(one, result)
            recall[f"{entity}.{form.stratum}" if form.stratum else entity].append(hit)
            if form.carriers.startswith("bare"):
                recall[f"{entity}.bare"].append(hit)
            alarms = _alarms(one.spans, result)
            for span in result.spans:
                precision[span.entity].append(span not in alarms)
    changed = results[len(texts) :]
    for result in changed:
        for span in result.spans:
            precision[span.entity].append(False)

    metrics = [share_metric(f"pii.recall.{key}", sum(hits), len(hits), exact=True) for key, hits in recall.items()]
    metrics += [
        share_metric(f"pii.precision.{key}", sum(hits), len(hits), exact=True) for key, hits in precision.items()
    ]
    metrics.append(
        share_metric("pii.clean_changed_share", sum(bool(one.spans) for one in changed), len(changed), exact=True)
    )
    return tuple(metrics)


def covered(one: Planted, result: Scrubbed) -> bool:
    """Whether every letter and digit of the planted value was replaced, under whichever label."""
    left = set(range(one.value.start, one.value.end))
    for span in result.spans:
        left.difference_update(range(span.start, span.end))
    return not any(one.text[i].isalnum() for i in left)


def _alarms(known: Sequence[Known], result: Scrubbed) -> list[Span]:
    """The replaced spans that overlap no personal data."""
    return [span for span in result.spans if not any(span.start < one.end and one.start < span.end for one in known)]


def _in_parts(items: Sequence[Scrubbed], sizes: Iterable[int]) -> Iterator[Sequence[Scrubbed]]:
    start = 0
    for size in sizes:
        yield items[start : start + size]
        start += size


def main() -> None:
    """Print the figures, and with `--misses` what was missed or replaced in vain."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=200, help="texts per entity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=["development", "held_out"], default="held_out")
    parser.add_argument("--misses", action="store_true", help="print every text with a miss or a false alarm")
    parser.add_argument("--entities", nargs="*", default=ENTITIES, metavar="ENTITY")
    args = parser.parse_args()
    scrubber = Scrubber(ENTITIES, 0.4)
    for metric in check(scrubber, args.entities, args.n, args.seed, args.split):
        print(f"{metric.name:40} {metric.value:6.3f}  [{metric.ci_low:.3f}, {metric.ci_high:.3f}]  n={metric.n}")
    if args.misses:
        for entity in args.entities:
            cases = planted(entity, args.n, args.seed, args.split)
            for one, result in zip(cases, scrubber.scrub_many(one.text for one in cases), strict=True):
                if not covered(one, result):
                    print(f"missed {entity} ({one.value.form}): {one.text!r} -> {result.text!r}")
                for span in _alarms(one.spans, result):
                    print(f"false alarm {span.entity}: {one.text[span.start : span.end]!r} in {one.text!r}")
        plain = clean(args.n, args.seed, args.split)
        for text, result in zip(plain, scrubber.scrub_many(plain), strict=True):
            if result.spans:
                print(f"changed: {text!r} -> {result.text!r}")


if __name__ == "__main__":
    main()
