"""Forms of names and of addresses of houses, for the scanner's test."""

from __future__ import annotations

from random import Random

from tutelage.privacy.pii.forms import Form, Make, Split, faker, filled

# `bare`: in the midst of a sentence, with nothing beside it to show that it is a name.
PERSON: tuple[Form, ...] = (
    Form("full", filled("{first} {last}"), "bare"),
    Form("full, again", filled("{first} {last}"), "bare"),
    Form("first", filled("{first}"), "bare"),
    Form("middle initial", filled("{first} {initial}. {last}"), "bare"),
    Form("initials", filled("{f}. {initial}. {last}"), "bare"),
    Form("one initial", filled("{f}. {last}"), "bare table"),
    Form("upper case", filled("{first} {last}", str.upper), "bare sign table"),
    Form("possessive", filled("{first} {last}"), "whose"),
    Form("title and last", filled("{last}"), "title"),
    Form("title and full", filled("{first} {last}"), "title"),
    Form("last, first", filled("{last}, {first}"), "table"),
    Form("LAST First", filled("{LAST} {first}"), "table"),
    Form("in a table", filled("{first} {last}"), "table"),
    Form("greeted", filled("{first}"), "greet"),
    Form("greeted in full", filled("{first} {last}"), "greet"),
    Form("signed", filled("{first}"), "sign"),
    Form("signed in full", filled("{first} {last}"), "sign"),
    Form("signed with initial", filled("{first} {l}."), "sign"),
    Form("in a header", filled("{first} {last}"), "header"),
    Form("in a header, lower case", filled("{first} {last}", str.lower), "header"),
    Form("quoted", filled("{first} {last}"), "quote"),
    Form("double-barrelled", filled("{first} {last}-{other}"), "bare", fresh=True),
    Form("initials, no space", filled("{f}.{initial}. {last}"), "bare", fresh=True),
    Form("nickname", filled('{first} "{other}" {last}'), "bare", fresh=True),
    Form("particle", filled("{first} {particle} {last}"), "bare", fresh=True),
    Form("junior", filled("{first} {last}"), "junior", fresh=True),
    Form("Irish or Scottish", filled("{first} {clan}{last}"), "bare", fresh=True),
    Form("signed off", filled("{first} {last}"), "signed-off", fresh=True),
    Form("small letters", filled("{first} {last}", str.lower), "bare", stratum="small_letters"),
)


def _street(locale: str, method: str = "street_address") -> Make:
    """An address as Faker writes it in a locale, on one line."""

    def make(rng: Random, _: Split) -> str:
        fake = faker(locale)
        fake.seed_instance(rng.getrandbits(32))
        return str(getattr(fake, method)()).strip().replace("\n", ", ")

    return make


STREET_ADDRESS: tuple[Form, ...] = (
    Form("American street", _street("en_US")),
    Form("American, in full", _street("en_US", "address")),
    Form("British street", _street("en_GB")),
    Form("PO box", filled("P.O. Box ####")),
    Form("Canadian street", _street("en_CA")),
    Form("Australian street", _street("en_AU")),
    Form("German street", _street("de_DE"), stratum="not_english"),
    Form("French street", _street("fr_FR"), stratum="not_english"),
    Form("Spanish street", _street("es_ES"), stratum="not_english"),
    Form("Italian street", _street("it_IT"), stratum="not_english"),
    Form("Dutch street", _street("nl_NL"), stratum="not_english"),
)
