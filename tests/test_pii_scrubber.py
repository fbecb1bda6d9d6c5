"""Recall and precision of the real detectors on hand-written lines, and what scrubbing must never do."""

from __future__ import annotations

import logging
import socket
import time
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.schema import ScreenConfig
from tutelage.privacy.pii import ENTITIES, PLACEHOLDER, Scrubber, Span, pattern
from tutelage.privacy.pii.scrubber import DETECTORS

# (text, the private parts of it that must be gone, the entity that must be among those found)
RECALL = [
    ("Mail me at joe.bloggs@example.com today.", ["joe.bloggs@example.com"], "EMAIL_ADDRESS"),
    ("Write to <quinlan+list@pathname.example> please", ["quinlan+list@pathname.example"], "EMAIL_ADDRESS"),
    ("joe at example dot com", ["joe", "example"], "EMAIL_ADDRESS"),
    ("reach joe (at) example (dot) com", ["joe", "example"], "EMAIL_ADDRESS"),
    ("it is joe [at] example.com", ["joe", "example.com"], "EMAIL_ADDRESS"),
    ("sent by root@localhost last night", ["root@localhost"], "EMAIL_ADDRESS"),
    ("my phone is (415) 555-2671", ["415", "555-2671"], "PHONE_NUMBER"),
    ("415-555-2671 is the number", ["415-555-2671"], "PHONE_NUMBER"),
    ("fax 415.555.2671", ["415.555.2671"], "PHONE_NUMBER"),
    ("+1 415 555 2671", ["415", "2671"], "PHONE_NUMBER"),
    ("Call +44 20 7946 0958 now", ["+44", "0958"], "PHONE_NUMBER"),
    ("Ring 020 7946 0958 after six", ["020", "0958"], "PHONE_NUMBER"),
    ("tel: 555-2671", ["555-2671"], "PHONE_NUMBER"),
    ("My number is 123-45-6789.", ["123-45-6789"], "US_SSN"),
    ("078 05 1120 or so", ["078", "1120"], "US_SSN"),
    ("SSN: 123456789", ["123456789"], "US_SSN"),
    ("see http://www.foo.com/a/b?c=d. Then go", ["foo.com", "c=d"], "URL"),
    ("https://user:pw@intranet.corp:8080/x", ["intranet", "8080"], "URL"),
    ("look at www.x.com soon", ["x.com"], "URL"),
    ("Read x.com/path today", ["x.com", "path"], "URL"),
    ("everything at example.co.uk, as ever", ["example.co.uk"], "URL"),
    ("192.168.1.17 is down", ["192.168"], "IP_ADDRESS"),
    ("ping 2001:db8:85a3::8a2e:370:7334 fails", ["2001", "7334"], "IP_ADDRESS"),
    ("card 4111 1111 1111 1111 exp 12/25", ["4111", "1111"], "CREDIT_CARD"),
    ("5500-0000-0000-0004", ["5500"], "CREDIT_CARD"),
    ("amex 3782-822463-10005", ["822463"], "CREDIT_CARD"),
    ("2223003122003222", ["2223003122003222"], "CREDIT_CARD"),
    ("GB82 WEST 1234 5698 7654 32", ["WEST", "7654"], "IBAN_CODE"),
    ("pay into DE89370400440532013000", ["DE8937"], "IBAN_CODE"),
    ("I met John Smith yesterday", ["John", "Smith"], "PERSON"),
    ("Regards, Justin Mason", ["Justin", "Mason"], "PERSON"),
    ("See you there.\nCheers,\nSkip", ["Skip"], "PERSON"),
    ("Sincerely yours,\nBartholomew Quux", ["Bartholomew", "Quux"], "PERSON"),
    ("From: x", ["x"], "PERSON"),
    ("From: Justin Mason <jm@jmason.example>", ["Justin", "Mason", "jmason"], "PERSON"),
    ("To: craig hughes <craig@hughes.example>", ["craig", "hughes"], "PERSON"),
    ("Dear Mrs. Robinson, hello", ["Robinson"], "PERSON"),
    ("Hi Theo, how are you", ["Theo"], "PERSON"),
    ("On Tuesday, Xavier Dupont wrote:", ["Xavier", "Dupont"], "PERSON"),
    ("My name is Zaphod Beeblebrox", ["Zaphod", "Beeblebrox"], "PERSON"),
    ("I asked MICHAEL about it", ["MICHAEL"], "PERSON"),
    ("He lives at 221B Baker Street, London NW1 6XE.", ["221B", "Baker", "NW1"], "STREET_ADDRESS"),
    ("1600 Pennsylvania Avenue NW, Washington, DC 20500", ["1600", "Pennsylvania", "20500"], "STREET_ADDRESS"),
    ("P.O. Box 1234, Springfield, IL 62701", ["1234", "Springfield", "62701"], "STREET_ADDRESS"),
    ("send it to PO Box 99", ["99"], "STREET_ADDRESS"),
    ("Flat 2, 14 Acacia Road", ["14", "Acacia"], "STREET_ADDRESS"),
    ("we moved to 12 main street", ["12 main"], "STREET_ADDRESS"),
    ('joe.bloggs@[192.0.2.7] or "joe b"@example.com', ["joe", "192.0", "example.com"], "EMAIL_ADDRESS"),
    ("joe(dot)b@example(dot)com", ["joe", "example", "com"], "EMAIL_ADDRESS"),
    ("3,+49 (0) 30 2345678,open", ["+49", "2345678"], "PHONE_NUMBER"),
    ("01.42.68.53.00 2 rooms", ["01.42", "53.00"], "PHONE_NUMBER"),
    ("0171\n2345678 is the mobile", ["0171", "2345678"], "PHONE_NUMBER"),
    ("sftp://files.example/x", ["files", "sftp"], "URL"),
    ("see café-münchen.de", ["café", "de"], "URL"),
    ("card 4111 1111 1111 1111 2nd try", ["4111", "1111"], "CREDIT_CARD"),
    ("3,6221262345678901230,open", ["6221", "1230"], "CREDIT_CARD"),
    ("4111, 1111, 1111, 1111", ["4111", "1111"], "CREDIT_CARD"),
    ("gb82 west 1234 5698 7654 32 and more text", ["west", "7654"], "IBAN_CODE"),
    ("PK36SCBL0000001123456702", ["PK36"], "IBAN_CODE"),
    ("SSN 123.45.6789", ["123", "6789"], "US_SSN"),
    ("[IPv6:2001:db8::8a2e:7334]", ["2001", "7334"], "IP_ADDRESS"),
    ("the server fe80::1: down", ["fe80"], "IP_ADDRESS"),
    ("I talked to BABATUNJI KOWALCZYK", ["BABATUNJI", "KOWALCZYK"], "PERSON"),
    ("| Kowalczyk, Babatunji | blue |", ["Kowalczyk", "Babatunji"], "PERSON"),
    ("Nobody told F.M. Kowalczyk about it", ["Kowalczyk", "F.M"], "PERSON"),
    ("Dear Ms. de la Cruz,", ["la", "Cruz"], "PERSON"),
    ("I met Paula\nKowalczyk there", ["Paula", "Kowalczyk"], "PERSON"),
    ("hi maria, all is well", ["maria"], "PERSON"),
    ("The new one is 91 523 16 10.", ["91 523", "10"], "PHONE_NUMBER"),
    ("(11) 96639-2332 in the evening", ["11", "2332"], "PHONE_NUMBER"),
    ("713 - 961 - 0368", ["713", "0368"], "PHONE_NUMBER"),
    ("look at example[.]com/path", ["example", "path"], "URL"),
    ("on localhost:8080/admin", ["localhost", "admin"], "URL"),
    ("66.35.120.144/heron/x", ["66.35", "heron"], "URL"),
    ("IBANDE89370400440532013000", ["DE89"], "IBAN_CODE"),
    ("DE8 937 040 044 053 201 300 0", ["DE8", "300 0"], "IBAN_CODE"),
    ("237\u221254\u22128611", ["237", "8611"], "US_SSN"),
    ("734  23  5896", ["734", "5896"], "US_SSN"),
    ("I met Jason A. Hepburn there", ["Jason", "Hepburn"], "PERSON"),
    ("1. Stubbs, Noah\n2. nobody", ["Stubbs", "Noah"], "PERSON"),
    ("PSC 6557, Box 2197, APO AP 53677", ["6557", "2197", "53677"], "STREET_ADDRESS"),
    ("959 Bethany Courts Apt. 615, North Susan, MP 96950", ["959", "615", "96950"], "STREET_ADDRESS"),
    ("Contrada Milena, 343 Appartamento 8", ["Milena", "343"], "STREET_ADDRESS"),
    ("rue de Pruvost", ["Pruvost"], "STREET_ADDRESS"),
    ("3, rue de la Paix", ["3", "Paix"], "STREET_ADDRESS"),
    ("Hauptstraße 7", ["Hauptstra", "7"], "STREET_ADDRESS"),
]

PRECISION = [
    "Then we go to the shop and buy five things.",
    "The meeting starts at 10:30 and ends before noon.",
    "Please find the report attached and send comments by Friday.",
    "I paid $1,299.99 for it in 2002, or 15% less than before.",
    "That is the end.So we start again.",
    "Version 2.4.18 of the kernel fixes the bug in line 1042.",
    "Hello everyone, thanks for all the help with the mailing list.",
    "Dear customer, your order has been shipped.",
    "Thanks, that works now.",
    "Is there any way to do it in one pass, e.g. with a hash table?",
    "You will receive 3 free issues and a gift within 6 weeks.",
    "The score was 3-2 after 90 minutes.",
    "We meet at the station, then walk to the lake.",
    "Act now and save up to 70 percent on printer ink!",
    "On 12/08/2002 the build failed with error code 139.",
    "We are looking at a dot on the map.",
    "Mark the date; bill them and sue them.",
    "Jack up the car before you change the wheel.",
    "The offices are in San Francisco and in St. Petersburg.",
    "Content-Type: text/plain; charset=iso-8859-1",
    "We offer 3 products now. Offering 3 more.",
    "Change foo.bar() in main.rs and Client.pm, see section 4.3.2.1.",
    "It is dead::beef in std::ranges, and the window is 12::30.",
    "The value is 0.9203956058, the order number 2125550123.",
    "Between 05.12.2001 and 07.12.2001 the ratio was 10:20:30.",
    "The book has the ISBN 978-0-032-38282-4, pages 12 34 56 78.",
    "We sold 1,634 567 890 of them; section (2) 3456-7.",
    "Mr. As I said, F10 and Enter do it in SourceForge.",
]


@pytest.fixture(scope="session")
def scrubber() -> Scrubber:
    return Scrubber(ScreenConfig().entities, ScreenConfig().pii_score)


@pytest.mark.parametrize(("text", "private", "entity"), RECALL, ids=[row[0][:40] for row in RECALL])
def test_recall(scrubber: Scrubber, text: str, private: list[str], entity: str) -> None:
    scrubbed = scrubber.scrub(text)
    rest = PLACEHOLDER.sub("", scrubbed.text)
    assert [part for part in private if part in rest] == []
    assert f"<{entity}>" in scrubbed.text
    assert scrubbed.replaced[entity] >= 1


def test_precision(scrubber: Scrubber) -> None:
    changed = {text: one.replaced for text, one in zip(PRECISION, scrubber.scrub_many(PRECISION), strict=True)}
    assert {text: counts for text, counts in changed.items() if counts} == {}


def test_clean_parts_of_a_text_stay_as_they_are(scrubber: Scrubber) -> None:
    scrubbed = scrubber.scrub("Mail joe@example.com, or ring (415) 555-2671;\n\n  then wait.")
    assert scrubbed.text == "Mail <EMAIL_ADDRESS>, or ring <PHONE_NUMBER>;\n\n  then wait."
    assert scrubbed.replaced == {"EMAIL_ADDRESS": 1, "PHONE_NUMBER": 1}


def test_invalid_numbers_are_left(scrubber: Scrubber) -> None:
    for text in ("order 4111 1111 1111 1112", "000-45-6789", "code 666-12-3456", "the host 300.1.2.3"):
        assert not {"CREDIT_CARD", "US_SSN", "IP_ADDRESS"} & scrubber.scrub(text).replaced.keys(), text


def test_one_by_one_or_together_is_the_same(scrubber: Scrubber) -> None:
    texts = [row[0] for row in RECALL[::4]] + PRECISION[::4]
    assert scrubber.scrub_many(texts) == [scrubber.scrub(text) for text in texts]
    assert scrubber.scrub_many([]) == []
    assert scrubber.scrub("").text == ""


PIECES = st.sampled_from([part for text, _, _ in RECALL for part in text.split(" ")] + [f"<{e}>" for e in ENTITIES])


@given(pieces=st.lists(PIECES | st.text(max_size=6), max_size=14), glue=st.sampled_from([" ", "", "\n"]))
@example(pieces=["<PERSON>", "<PERSON>"], glue="")
@example(pieces=["John", "<PERSON>", "Smith,", "joe@<URL>"], glue=" ")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scrubbing_twice_changes_nothing(scrubber: Scrubber, pieces: list[str], glue: str) -> None:
    once = scrubber.scrub(glue.join(pieces))
    assert rebuilt(glue.join(pieces), once.spans) == once.text
    assert sum(once.replaced.values()) == len(once.spans)
    twice = scrubber.scrub(once.text)
    assert twice.text == once.text
    assert twice.replaced == {}


def test_the_spans_say_what_was_replaced_where(scrubber: Scrubber) -> None:
    text = "Mail joe@example.com, or ring (415) 555-2671; then ask for\nMaria Lopez, or\n> Dr. Smith."
    scrubbed = scrubber.scrub(text)
    assert [(text[one.start : one.end], one.entity) for one in scrubbed.spans] == [
        ("joe@example.com", "EMAIL_ADDRESS"), ("(415) 555-2671", "PHONE_NUMBER"), ("Maria Lopez", "PERSON"),
        ("Smith", "PERSON"),
    ]  # fmt: skip


def rebuilt(text: str, spans: tuple[Span, ...]) -> str:
    for one in reversed(spans):
        text = f"{text[: one.start]}<{one.entity}>{text[one.end :]}"
    return text


def test_only_the_asked_for_entities_are_replaced() -> None:
    text = "John Smith, joe@example.com"
    assert Scrubber(["EMAIL_ADDRESS"], 0.4).scrub(text).text == "John Smith, <EMAIL_ADDRESS>"
    assert Scrubber([], 0.4).scrub(text).text == text


def test_an_unknown_entity_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(UserError, match="IBAN_CODE") as caught:
        Scrubber(["PERSON", "PHONE_NUMER"], 0.4)
    assert caught.value.key == "screen.entities"
    assert "PHONE_NUMBER" in str(caught.value.remedy)


def test_every_entity_of_the_recipe_is_known() -> None:
    assert set(ScreenConfig().entities) == set(ENTITIES)


def test_an_entity_that_no_detector_is_sure_enough_of_is_an_error() -> None:
    with pytest.raises(UserError, match="EMAIL_ADDRESS") as caught:
        Scrubber(["CREDIT_CARD", "EMAIL_ADDRESS"], 0.99)
    assert caught.value.key == "screen.pii_score"
    assert Scrubber(["CREDIT_CARD"], 0.99).scrub("4111 1111 1111 1111").replaced == {"CREDIT_CARD": 1}


@pytest.mark.parametrize("entity", ENTITIES)
def test_an_entity_without_a_detector_is_an_error(entity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, entity, ())
    with pytest.raises(RuntimeError, match=entity):
        Scrubber([entity], 0.4)


def test_a_pattern_that_takes_too_long_is_an_error_without_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def finditer(self, *_: object, **__: object) -> NoReturn:
            raise TimeoutError("qwertz@example.com")

    monkeypatch.setattr(pattern, "compiled", lambda _: Endless())
    with pytest.raises(PrivacyError) as caught:
        Scrubber(["EMAIL_ADDRESS"], 0.4).scrub("qwertz@example.com")
    assert "qwertz" not in str(caught.value)


HOSTILE = [
    "A. ",
    "A.B.",
    "Aa-",
    "O'",
    "[.]",
    "%",
    "'s",
    "a.b",
    "a@",
    "1 ",
    "(1",
    "0(",
    "::1",
    ">\n",
    "Hi Anna, ",
    "http://!",
    "601 565 ",
    "12-34 ",
    "(11) 9",
    "rue Marion ",
    "PSC 1, Box 2, ",
    "a[.]b",
    "a(dot)b@",
    "localhost:1/",
    "C. de la Anna ",
    "IBAN",
    "DE12 ",
    "1 A ",
    "12 main ",
    "From: ",
    "joe at x ",
    "1.1.1.1",
    "Anna\n",
    "ANNA ",
    "anna ",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_takes_the_square_of_its_length(scrubber: Scrubber, piece: str) -> None:
    text = (piece * 4000)[:4000]
    start = time.process_time()
    scrubber.scrub(text)
    assert time.process_time() - start < 2.5  # about half a second; squares took 3 to 10


def test_no_network_and_no_private_log(
    scrubber: Scrubber, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with caplog.at_level(logging.DEBUG):
        scrubber.scrub("qwertz@unheardof.example, qwertz.unheardof.example, GB00 QWER TZQW 1234 5678 90")
    assert "qwertz" not in caplog.text.lower()
    assert "qwertz" not in repr(scrubber.scrub("a qwertz"))
