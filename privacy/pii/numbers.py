"""Numbers that somebody was given: of telephones, payment cards, bank accounts, and social security in the USA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tutelage.privacy.pii.pattern import Detector, Finder, Found, Pattern, Place, compiled, matches, said_before

if TYPE_CHECKING:
    from phonenumbers import PhoneNumber

_HYPHENS = r"\u2010-\u2014\u2212-"  # hyphens, dashes and minus, last in a class of characters

# A number after one of these is said to be something else.
_NUMBERED = (
    r"(?i)(?:\b(?:article|case|code|id|invoice|isbn|issn|order|part|ref|reference|serial|ticket|tracking)\b"
    r"[\s\w.:-]{0,12}|\bno\.?\s{0,2}|\#\s{0,2})\Z"
)

# --- telephones -------------------------------------------------------------------------------------------------------

_PHONE_WORD = (
    r"(?i:\b(?:call|calling|cell|cellphone|dial|fax|handy|hotline|mobile|pager|ph|phone|reach|ring|sms|tel|telephone|"
    r"text(?=[ ])|voicemail|whatsapp)\b)"
)
_EXTENSION = r"(?:(?:[ ]?[,;])?\s?(?i:ext(?:ension)?\.?|x|\#)\s?\d{1,6}\b)?"
# With a + or the prefix of a call abroad; or with a 0, as within most countries, and a sign in between.
_DIALLED = rf"(?<![\w./])(?:\(?\+|00[ .-]?|011[ .-]|\(?0)\(?[1-9](?:[\s()./{_HYPHENS}]{{0,3}}\d){{5,16}}"
# Without a prefix: where a call within the country has none.
_GROUPED = (
    rf"(?<![\w./+$€£{_HYPHENS}]|\d[ {_HYPHENS}])(?:\(\d{{2,3}}\)\s?|\d{{2,5}}[\s{_HYPHENS}])"
    rf"\d{{2,6}}(?:[\s{_HYPHENS}]\d{{2,5}}){{0,3}}+(?![\w{_HYPHENS}]|[.,/]\d|[ ]\d++(?!\.))"
)
_GROUPING_REGIONS = ("ES", "PL", "IT", "PT", "IN", "BR", "MX", "CN")
_REGIONS = ("GB", "DE", "FR", "IE", "NL", "SE", "CH", "AU", "IT")
_DATE = r"\d?\d([./-])\d?\d\1(?:19|20)?\d\d(?![./-]?\d)"


def _us_number(found: Found) -> bool:
    """In use in North America, and not said to be something else."""
    return _in_use(found[0], "US") is not None and not said_before(_NUMBERED, found.string, found.start())


def _dialled_numbers(text: str) -> Iterator[Place]:
    """Numbers with their country's or their area's prefix, by phonenumbers' rules."""
    for found in matches(_DIALLED, text):
        if compiled(_DATE).match(found[0]) or said_before(_NUMBERED, text, found.start()):
            continue
        ends = [one.end() for one in compiled(r"\d+").finditer(text, found.start(), found.end())]
        for end in reversed(ends):  # the text after it may begin with a number
            if not text[end : end + 1].isdigit() and _dialled(text[found.start() : end]):
                more = compiled(_EXTENSION).match(text, end)
                yield found.start(), more.end() if more else end
                break


def _dialled(number: str) -> bool:
    import phonenumbers

    number = compiled(r"\s").sub(" ", number)
    digits = "".join(filter(str.isdigit, number))
    if "+" in number:
        parsed = _parsed(number, None)
        return parsed is not None and phonenumbers.is_possible_number(parsed)
    if digits.startswith(("00", "011")):
        return _in_use("+" + digits.lstrip("0").removeprefix("11"), None) is not None
    return (
        len(digits) >= (8 if number.startswith("(") else 9)  # less may be a date and a time
        and len(digits) < len(number)
        and any(_in_use(number, region) for region in _REGIONS)
    )


def _grouped_numbers(text: str) -> Iterator[Place]:
    """Numbers without any prefix, where their groups are just those that some country writes them in."""
    for found in matches(_GROUPED, text):
        digits = "".join(filter(str.isdigit, found[0]))
        if (
            9 <= len(digits) <= 11  # shorter ones are too often something else
            and not compiled(_DATE).match(found[0])
            and not said_before(_NUMBERED, text, found.start())
            and any(_written_in(region, digits, found[0]) for region in _GROUPING_REGIONS)
        ):
            yield found.span()


def _written_in(region: str, digits: str, written: str) -> bool:
    import phonenumbers

    if (number := _in_use(digits, region)) is None:
        return False
    national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    return bool(compiled(r"\d+").findall(national.lstrip("0")) == compiled(r"\d+").findall(written))


def _in_use(number: str, region: str | None) -> PhoneNumber | None:
    import phonenumbers

    parsed = _parsed(number, region)
    return parsed if parsed is not None and phonenumbers.is_valid_number(parsed) else None


def _parsed(number: str, region: str | None) -> PhoneNumber | None:
    import phonenumbers

    try:
        return phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None


PHONE_NUMBER: tuple[Detector, ...] = (
    # North America, by the grouping alone: 555 and other numbers nobody has are written like numbers
    Pattern(rf"(?<![\w.-])(?:\+?1[\s./-]?)?(?:\(\d{{3}}\)[\s./-]?|\d{{3}}(?:\s|\s?[./{_HYPHENS}]\s?))"
            rf"\d{{3}}(?:\s|\s?[.{_HYPHENS}]\s?)\d{{4}}(?!\d|-\d)" + _EXTENSION, 0.9),
    # in one row, too, where the number is in use
    Pattern(r"(?<![\w.,#/+-])[2-9]\d{2}[2-9]\d{6}(?![\w-]|\.\d)", 0.6, _us_number),
    # any number after a word for it; the word may be some words away
    Pattern(_PHONE_WORD + rf"[^\d\n+(]{{0,25}}\K\(?\+?\(?\d(?:[ ()./{_HYPHENS}]{{0,3}}\d){{5,17}}" + _EXTENSION, 0.6),
    Finder(_dialled_numbers, 0.8),
    Finder(_grouped_numbers, 0.5),
)  # fmt: skip

# --- payment cards ----------------------------------------------------------------------------------------------------

# One or more rows of digits, three signs apart at most.
_DIGITS = rf"(?<![\p{{L}}\d]|\d\.)\d++(?:[\s.,_/{_HYPHENS}]{{1,3}}\d++)*+"
# ISO/IEC 7812: what numbers the networks give out. Visa; Mastercard; American Express; Diners; JCB; Maestro, Discover
# and UnionPay; RuPay; Mir; Troy
_NETWORK = (
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11,16}|35\d{14,17}|"
    r"(?:5[0678]\d|6\d\d)\d{9,16}|8[12]\d{14}|220[0-4]\d{12,15}|9792\d{12}"
)


def _cards(text: str) -> Iterator[Place]:
    """Card numbers: 12 to 19 digits in groups as on a card, of a known network, with the right check digit."""
    for found in matches(_DIGITS, text):
        groups = [one.span() for one in compiled(r"\d+").finditer(text, found.start(), found.end())]
        i = 0
        while i < len(groups):
            for j in range(min(i + 5, len(groups)), i, -1):
                sizes = [end - start for start, end in groups[i:j]]
                if 12 <= sum(sizes) <= 19 and (sizes[1:] in ([], [13]) or all(3 <= size <= 8 for size in sizes[:-1])):
                    digits = "".join(text[start:end] for start, end in groups[i:j])
                    whole = not text[groups[j - 1][1] : groups[j - 1][1] + 1].isalpha()
                    if whole and compiled(_NETWORK).fullmatch(digits) and luhn(digits):
                        yield groups[i][0], groups[j - 1][1]
                        i = j - 1
                        break
            i += 1


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others. ISO/IEC 7812-1, annex B."""
    return sum(sum(divmod(int(c) * (1 + i % 2), 10)) for i, c in enumerate(reversed(digits))) % 10 == 0


CREDIT_CARD: tuple[Detector, ...] = (Finder(_cards, 1.0),)

# --- bank accounts ----------------------------------------------------------------------------------------------------

# SWIFT IBAN registry
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FO GL FI FK NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_IBAN = (
    r"(?<![\p{L}\d])(?i:iban)?(?P<iban>[a-zA-Z]{2}\s?\d[\s._-]?\d"
    rf"(?:[\s._/{_HYPHENS}]{{0,3}}[a-zA-Z\d]){{11,30}}+)"
)


def _ibans(text: str) -> Iterator[Place]:
    """Account numbers of their country's length with the right check digits."""
    for found in matches(_IBAN, text):
        iban = found["iban"]
        places = [found.start("iban") + i for i, c in enumerate(iban) if c.isalnum()]
        length = _IBAN_LENGTHS.get(iban[:2].upper(), len(places) + 1)
        if length > len(places) or text[places[length - 1] + 1 : places[length - 1] + 2].isalnum():
            continue
        if mod97("".join(text[i] for i in places[:length])) == 1:
            yield found.start(), places[length - 1] + 1


def mod97(iban: str) -> int:
    """1 for an account number with the right check digits. ISO 7064, MOD 97-10."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97


IBAN_CODE: tuple[Detector, ...] = (Finder(_ibans, 1.0),)

# --- social security --------------------------------------------------------------------------------------------------

US_SSN: tuple[Detector, ...] = (
    # three, two and four digits are little else
    Pattern(rf"(?<![\w./-])(?!000|666|9\d\d)\d{{3}}(\s?[./{_HYPHENS}]\s?|\s{{1,3}})(?!00)\d{{2}}(?:\1|\s{{1,3}})"
            r"(?!0000)\d{4}(?![\w-])", 0.9),
    # after a word for it, however it is written
    Pattern(r"(?i)\b(?:ssn|ss\#|ss no|soc\.? ?sec|social(?: security)?)[^\d\n]{0,30}\K"
            rf"\d{{3}}[\s.:/_{_HYPHENS}]{{0,3}}\d{{2}}[\s.:/_{_HYPHENS}]{{0,3}}\d{{4}}(?!\d)", 0.9),
)  # fmt: skip
