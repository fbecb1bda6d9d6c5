"""Forms of numbers, for the scanner's test: of telephones, payment cards, bank accounts, social security in the USA."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from tutelage.privacy.pii.forms import Form, Make, Split, digits, filled, in_fours, with_check_digit

_REGIONS: dict[Split, tuple[str, ...]] = {
    "development": ("US", "GB", "DE", "FR", "IN", "MX", "SE", "PL", "JP", "KE", "BR"),
    "held_out": ("US", "GB", "DE", "FR", "ES", "IT", "NL", "CH", "AU", "CN", "NG", "TR", "IE"),
}


def _formatted(style: str, region: str = "", separator: str = "") -> Make:
    """A valid number, the published example of its region with other last digits, as phonenumbers writes it."""

    def make(rng: Random, split: Split) -> str:
        import phonenumbers as library

        kind = rng.choice((library.PhoneNumberType.FIXED_LINE, library.PhoneNumberType.MOBILE))
        number: Any = library.example_number_for_type(region or rng.choice(_REGIONS[split]), kind)
        for _ in range(20):
            other: Any = library.PhoneNumber()
            other.merge_from(number)
            other.national_number = number.national_number // 10**5 * 10**5 + rng.randrange(10**5)
            if library.is_valid_number(other):
                number = other
                break
        text = str(library.format_number(number, getattr(library.PhoneNumberFormat, style))).removeprefix("tel:")
        return re.sub(r"[ -]+", separator, text) if separator else text

    return make


PHONE_NUMBER: tuple[Form, ...] = (
    Form("US dashes", filled("{area}-{exchange}-####")),
    Form("US dots", filled("{area}.{exchange}.####")),
    Form("US parentheses", filled("({area}) {exchange}-####")),
    Form("US parentheses, no space", filled("({area}){exchange}-####")),
    Form("US spaces", filled("{area} {exchange} ####")),
    Form("US slash", filled("{area}/{exchange}-####")),
    Form("US +1 parentheses", filled("+1 ({area}) {exchange}-####")),
    Form("US 1-dashes", filled("1-{area}-{exchange}-####")),
    Form("US +1.dots", filled("+1.{area}.{exchange}.####")),
    Form("US x extension", filled("{area}-{exchange}-#### x###")),
    Form("US ext. extension", filled("({area}) {exchange}-#### ext. ####")),
    Form("US extension in words", filled("{area}.{exchange}.####, extension ##")),
    Form("US toll-free", filled("1-800-{exchange}-####")),
    Form("US plain", filled("{area}{exchange}####"), "label"),
    Form("US seven digits", filled("{exchange}-####"), "label"),
    Form("international", _formatted("INTERNATIONAL")),
    Form("E.164", _formatted("E164")),
    Form("international dots", _formatted("INTERNATIONAL", separator=".")),
    Form("international dashes", _formatted("INTERNATIONAL", separator="-")),
    Form("tel URI", _formatted("RFC3966"), "link"),
    Form("UK national", _formatted("NATIONAL", "GB")),
    Form("UK dashes", _formatted("NATIONAL", "GB", "-")),
    Form("UK parentheses", filled("(020) 7946 0###")),
    Form("UK +44 (0)", filled("+44 (0)20 7946 0###")),
    Form("UK 0044", filled("0044 20 7946 0###")),
    Form("DE slash", filled("030/2345#####")),
    Form("DE space", filled("030 2345####")),
    Form("DE extension", filled("089 6345##-##")),
    Form("DE mobile", filled("0171 23#####")),
    Form("DE parentheses", filled("(030) 23 45 6# ##")),
    Form("DE +49 (0)", filled("+49 (0) 30 2345###")),
    Form("FR pairs", filled("01 4# ## ## ##")),
    Form("FR dots", filled("06.1#.##.##.##")),
    Form("FR dashes", filled("01-4#-##-##-##")),
    Form("FR 0033", filled("0033 1 4# ## ## ##")),
    Form("IDD 011", filled("011 44 20 7946 0###")),
    Form("national", _formatted("NATIONAL"), "label"),
    Form("BR", filled("(11) 9####-####")),
    Form("BR with +55", filled("+55 11 9####-####")),
    Form("ES", filled("91 523 ## ##")),
    Form("PL mobile", filled("601 ### ###")),
    Form("IN mobile", filled("98765 4####")),
    Form("MX", filled("55 5555 ####")),
    Form("US spaced dashes", filled("{area} - {exchange} - ####")),
    Form("US no-break space", filled("({area})\u00a0{exchange}-####")),
    Form("US mixed", filled("{area} {exchange}-####"), fresh=True),
    Form("US 1 and parentheses", filled("1 ({area}) {exchange}-####"), fresh=True),
    Form("US parentheses and dots", filled("({area}).{exchange}.####"), fresh=True),
    Form("US E.164", filled("+1{area}{exchange}####"), fresh=True),
    Form("US 001", filled("001-{area}-{exchange}-####x###"), fresh=True),
    Form("US Ext", filled("{area}-{exchange}-#### Ext ##"), fresh=True),
    Form("UK mobile", filled("07911 12####"), fresh=True),
    Form("UK mobile in threes", filled("07911 123 ###"), fresh=True),
    Form("NL mobile", filled("06-12 34 5# ##"), fresh=True),
    Form("NL", filled("020-55#####"), fresh=True),
    Form("AU", filled("(02) 9876 5###"), fresh=True),
    Form("AU mobile", filled("0412 345 ###"), fresh=True),
    Form("CH", filled("044 668 1# ##"), fresh=True),
    Form("IN", filled("+91-98765-4####"), fresh=True),
    Form("JP", filled("03-3224-9###"), fresh=True),
    Form("IT slash", filled("06/6982####"), fresh=True),
    Form("dots after +44", filled("+44.20.7946.0###"), fresh=True),
    Form("ES with +34", filled("(+34) 91 523 ## ##"), fresh=True),
)


def _grouped(number: str, sizes: Sequence[int], separator: str) -> str:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return separator.join(number[start : start + size] for start, size in zip(starts, sizes, strict=True))


def _card(prefixes: str, *sizes: int, separator: str = " ") -> Make:
    """A number with one of the prefixes, in groups of these sizes."""

    def make(rng: Random, _: Split) -> str:
        prefix = rng.choice(prefixes.split())
        return _grouped(with_check_digit(prefix + digits(rng, sum(sizes) - 1 - len(prefix))), sizes, separator)

    return make


CREDIT_CARD: tuple[Form, ...] = (
    Form("Visa spaced", _card("4", 4, 4, 4, 4)),
    Form("Visa plain", _card("4", 16)),
    Form("Visa dashed", _card("4", 4, 4, 4, 4, separator="-")),
    Form("Visa dotted", _card("4", 4, 4, 4, 4, separator=".")),
    Form("Visa 13", _card("4", 13)),
    Form("Mastercard plain", _card("51 52 53 54 55", 16)),
    Form("Mastercard spaced", _card("51 52 53 54 55", 4, 4, 4, 4)),
    Form("Mastercard 2-series", _card("2221 2345 2600 2720", 4, 4, 4, 4)),
    Form("Mastercard 2-series dashed", _card("2221 2345 2600 2720", 4, 4, 4, 4, separator="-")),
    Form("Amex spaced", _card("34 37", 4, 6, 5)),
    Form("Amex plain", _card("34 37", 15)),
    Form("Amex dashed", _card("34 37", 4, 6, 5, separator="-")),
    Form("Discover", _card("6011 644 65", 4, 4, 4, 4)),
    Form("Discover plain", _card("6011 644 65", 16)),
    Form("Diners plain", _card("300 305 36 38", 14)),
    Form("Diners spaced", _card("300 305 36 38", 4, 6, 4)),
    Form("Diners dashed", _card("300 305 36 38", 4, 6, 4, separator="-")),
    Form("JCB", _card("3528 3589", 4, 4, 4, 4)),
    Form("JCB plain", _card("3528 3589", 16)),
    Form("UnionPay", _card("6221 6229 6282", 4, 4, 4, 4)),
    Form("UnionPay 19", _card("6221 6229 6282", 6, 13)),
    Form("UnionPay 19 plain", _card("6221 6229 6282", 19)),
    Form("Maestro", _card("5018 5020 6304 6759", 4, 4, 4, 4)),
    Form("Maestro 19 spaced", _card("5018 5020 6304 6759", 4, 4, 4, 4, 3)),
    Form("Mir", _card("2200 2204", 4, 4, 4, 4)),
    Form("no-break spaces", _card("4", 4, 4, 4, 4, separator="\u00a0")),
    Form("commas", _card("4", 4, 4, 4, 4, separator=", ")),
    Form("Amex in fours", _card("34 37", 4, 4, 4, 3), fresh=True),
    Form("Visa 19", _card("4", 4, 4, 4, 4, 3), fresh=True),
    Form("JCB dashed", _card("3530 3566", 4, 4, 4, 4, separator="-"), fresh=True),
    Form("RuPay", _card("6521 6070", 4, 4, 4, 4), fresh=True),
    Form("Discover dotted", _card("6011 65", 4, 4, 4, 4, separator="."), fresh=True),
    Form("double spaces", _card("4 51", 4, 4, 4, 4, separator="  "), fresh=True),
    Form("in eights", _card("4 55", 8, 8), fresh=True),
    Form("en dashes", _card("4 52", 4, 4, 4, 4, separator="–"), fresh=True),
)

# Country code -> how its account numbers read: a letters, n digits, c either. SWIFT IBAN registry.
_BBAN = {
    "DE": "18n", "GB": "4a14n", "FR": "10n11c2n", "ES": "20n", "IT": "1a10n12c", "NL": "4a10n", "BE": "12n",
    "AT": "16n", "CH": "5n12c", "PL": "24n", "SE": "20n", "NO": "11n", "DK": "14n", "FI": "14n", "PT": "21n",
    "IE": "4a14n", "CZ": "20n", "HU": "24n", "RO": "4a16c", "GR": "7n16c", "SA": "2n18c", "AE": "19n", "IL": "19n",
    "MT": "4a5n18c", "LU": "3n13c", "QA": "4a21c", "PK": "4a16c", "KZ": "3n13c", "UA": "6n19c", "LV": "4a13c",
    "LT": "16n", "EE": "16n", "HR": "17n", "SI": "15n", "SK": "20n", "BG": "4a6n8c", "CY": "8n16c", "IS": "22n",
    "LI": "5n12c", "MC": "10n11c2n",
}  # fmt: skip
_FRESH_BBAN = {
    "TR": "5n1n16c", "BR": "23n1a1c", "GE": "2a16n", "AZ": "4a20c", "DO": "4c20n", "MD": "20c", "TN": "20n",
    "RS": "18n", "MK": "3n10c2n", "BA": "16n", "XK": "16n", "AL": "8n16c", "AD": "8n12c", "GI": "4a15c", "FO": "14n",
    "SM": "1a10n12c", "EG": "25n", "IQ": "4a15n", "JO": "4a4n18c", "KW": "4a22c", "LB": "4n20c", "MU": "4a19n3a",
    "CR": "18n", "GT": "24c", "VA": "18n", "BY": "4c4n16c", "ME": "18n", "GL": "14n", "SC": "4a20n3a", "VG": "4a16n",
}  # fmt: skip


def _iban(separator: str = "", *, change: Callable[[str], str] = str, of: Iterable[str] = ()) -> Make:
    """The account number of one of the countries, or else of one in the half, in groups of four."""
    alphabets = {"a": string.ascii_uppercase, "n": string.digits, "c": string.digits + string.ascii_uppercase}
    chosen = sorted(of)

    def make(rng: Random, split: Split) -> str:
        country = rng.choice(chosen or list(_BBAN)[split == "held_out" :: 2])
        parts = re.findall(r"(\d+)([anc])", (_BBAN | _FRESH_BBAN)[country])
        account = "".join(rng.choice(alphabets[kind]) for size, kind in parts for _ in range(int(size)))
        check = 98 - int("".join(str(int(c, 36)) for c in f"{account}{country}00")) % 97  # ISO 7064, MOD 97-10
        return change(in_fours(f"{country}{check:02}{account}", separator))

    return make


IBAN_CODE: tuple[Form, ...] = (
    Form("spaced", _iban(" ")),
    Form("plain", _iban()),
    Form("plain lower case", _iban(change=str.lower)),
    Form("spaced lower case", _iban(" ", change=str.lower)),
    Form("dashed", _iban("-")),
    Form("country apart", _iban(change=lambda iban: f"{iban[:4]} {iban[4:]}")),
    Form("German", _iban(" ", of=["DE"])),
    Form("British", _iban(" ", of=["GB"])),
    Form("French", _iban(of=["FR"])),
    Form("dotted", _iban(".")),
    Form("uneven groups", _iban(change=lambda iban: f"{iban[:4]} {iban[4:12]} {iban[12:]}")),
    Form("after IBAN, no space", _iban(change="IBAN{}".format)),
    Form("in threes", _iban(change=lambda iban: " ".join(iban[i : i + 3] for i in range(0, len(iban), 3)))),
    Form("no-break spaces", _iban("\u00a0")),
    Form("other countries", _iban(" ", of=_FRESH_BBAN), fresh=True),
    Form("other countries, plain", _iban(of=_FRESH_BBAN), fresh=True),
    Form("title case", _iban(change=str.capitalize), fresh=True),
    Form("double spaces", _iban("  "), fresh=True),
    Form("slashes", _iban("/"), fresh=True),
)


def _ssn(separator: str) -> Make:
    """Three, two and four digits as they are given out: no area 000, 666 or from 900 on, nothing all zeros."""

    def make(rng: Random, _: Split) -> str:
        area = rng.choice([*range(1, 666), *range(667, 900)])
        return f"{area:03}{separator}{rng.randrange(1, 100):02}{separator}{rng.randrange(1, 10_000):04}"

    return make


US_SSN: tuple[Form, ...] = (
    Form("dashed", _ssn("-")),
    Form("spaced", _ssn(" ")),
    Form("plain", _ssn(""), "label"),
    Form("dashed, labelled", _ssn("-"), "label"),
    Form("dotted", _ssn("."), "label"),
    Form("spaced, labelled", _ssn(" "), "label"),
    Form("en dashes", _ssn("–")),
    Form("spaced dashes", _ssn(" - "), "label"),
    Form("double spaces", _ssn("  ")),
    Form("no-break spaces", _ssn("\u00a0")),
    Form("minus signs", _ssn("\u2212")),
    Form("colons", _ssn(":"), "label"),
    Form("slashes", _ssn("/"), "label", fresh=True),
    Form("underscores", _ssn("_"), "label", fresh=True),
    Form("hard hyphens", _ssn("\u2011"), fresh=True),
    Form("plain after ss#", _ssn(""), "ss", fresh=True),
    Form("dashed after ss#", _ssn("-"), "ss", fresh=True),
)
