"""Numbers with check digits: the right ones are found in whatever groups, and one wrong digit makes them others."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tutelage.privacy.pii import Scrubber
from tutelage.privacy.pii.forms import Form, in_fours, with_check_digit
from tutelage.privacy.pii.forms_numbers import CREDIT_CARD, IBAN_CODE, PHONE_NUMBER, US_SSN
from tutelage.privacy.pii.numbers import luhn, mod97

SEEDS = st.integers(0, 2**32 - 1)
SEPARATORS = st.sampled_from(["", " ", "-", ".", "  ", "\n"])
AROUND = st.sampled_from([("", ""), ("(", ")"), ("no: ", ", thanks"), ("> ", "\n> 12"), ("card ", "."), ("|", "|")])


@given(body=st.text("0123456789", min_size=11, max_size=18), at=st.integers(0, 18), more=st.integers(1, 9))
def test_one_wrong_digit_fails_the_check(body: str, at: int, more: int) -> None:
    number = with_check_digit(body)
    assert luhn(number)
    at %= len(number)
    assert not luhn(number[:at] + str((int(number[at]) + more) % 10) + number[at + 1 :])


@given(body=st.text("0123456789", min_size=15, max_size=15), separator=SEPARATORS, around=AROUND)
def test_a_card_is_found_in_whatever_groups(body: str, separator: str, around: tuple[str, str]) -> None:
    number = in_fours(with_check_digit("4" + body[1:]), separator)
    scrubbed = Scrubber(["CREDIT_CARD"], 0.4).scrub(number.join(around))
    assert scrubbed.text.startswith(f"{around[0]}<CREDIT_CARD>")
    assert not set(scrubbed.text) & set("0123456789") - set(around[1])


@given(seed=SEEDS, separator=SEPARATORS, around=AROUND, more=st.integers(1, 9))
def test_an_account_is_found_in_whatever_groups(seed: int, separator: str, around: tuple[str, str], more: int) -> None:
    plain = next(form for form in IBAN_CODE if form.name == "plain").make(Random(seed), "development")
    assert mod97(plain) == 1
    scrubber = Scrubber(["IBAN_CODE"], 0.4)
    assert scrubber.scrub(in_fours(plain, separator).join(around)).text == "<IBAN_CODE>".join(around)
    wrong = plain[:2] + f"{(int(plain[2:4]) + more) % 97:02}" + plain[4:]
    assert mod97(wrong) != 1
    assert scrubber.scrub(wrong).text == wrong


NUMBERS = ["CREDIT_CARD", "IBAN_CODE", "PHONE_NUMBER", "US_SSN"]


@given(text=st.text("0123456789 -./+()", max_size=40))
@example(text="00 1100 110000")  # phonenumbers: an IDD, and too little after it
@settings(max_examples=400)
def test_any_digits_are_read_without_an_error(text: str) -> None:
    once = Scrubber(NUMBERS, 0.4).scrub(text)
    assert Scrubber(NUMBERS, 0.4).scrub(once.text).text == once.text


@pytest.mark.parametrize("forms", [CREDIT_CARD, IBAN_CODE, PHONE_NUMBER, US_SSN])
@given(seed=SEEDS, text=st.text("0123456789 -./+()xabDE\n", max_size=60))
def test_any_text_around_them_is_read_without_an_error(forms: tuple[Form, ...], seed: int, text: str) -> None:
    rng = Random(seed)
    value = rng.choice(forms).make(rng, "development")
    scrubber = Scrubber(NUMBERS, 0.4)
    once = scrubber.scrub(f"{text} {value} {text}")
    assert scrubber.scrub(once.text).text == once.text
