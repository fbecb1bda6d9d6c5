"""The copying measures against brute force, and copies with the names replaced."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.privacy.overlap import Corpus, indexed_texts
from tutelage.privacy.pii import ENTITIES, Scrubber
from tutelage.privacy.similarity import embed, words
from tutelage.privacy.vault import PrivateRecord, read_records, write_records

TEXT = st.lists(st.sampled_from(["a", "b", "c"]), max_size=14).map(" ".join)


@pytest.fixture(scope="session")
def scrubber() -> Scrubber:
    return Scrubber(ENTITIES, 0.4)


def records(*texts: str, completion: str = "ham") -> list[PrivateRecord]:
    return [PrivateRecord(str(i), text, completion) for i, text in enumerate(texts)]


def occurs(run: list[str], corpus: list[list[str]]) -> bool:
    return any(run == one[i : i + len(run)] for one in corpus for i in range(len(one) - len(run) + 1))


def brute_force(text: str, corpus: list[str], n: int) -> tuple[int, float]:
    draft, known = words(text), [words(one) for one in corpus]
    ends = range(len(draft) + 1)
    longest = max((j - i for i in ends for j in ends if i < j and occurs(draft[i:j], known)), default=0)
    n = min(n, len(draft))
    grams = [draft[i : i + n] for i in range(len(draft) - n + 1)] if n else []
    return longest, sum(occurs(gram, known) for gram in grams) / len(grams) if grams else 0.0


@given(texts=st.lists(TEXT, max_size=4), corpus=st.lists(TEXT, max_size=4), n=st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_run_and_share_agree_with_brute_force(texts: list[str], corpus: list[str], n: int) -> None:
    index = Corpus(records(*corpus), ngram=n, public_completions=frozenset({"ham"}))
    for text, (run, share, _) in zip(texts, index.copying(texts), strict=True):
        assert (run, share) == brute_force(text, corpus, n)


def test_case_and_punctuation_do_not_hide_a_copy() -> None:
    index = Corpus(records("We will meet, at noon, by the OLD bridge!"), ngram=4)
    ((run, share, jaccard),) = index.copying(["we WILL meet at noon -- by the old bridge"])
    assert (run, share, jaccard) == (9, 1.0, 1.0)


def test_no_run_crosses_from_one_record_into_the_next() -> None:
    index = Corpus(records("one two three", "four five six"), ngram=4)
    assert index.copying(["one two three four five six"])[0][:2] == (3, 0.0)


def test_private_completions_are_indexed_and_public_ones_are_not() -> None:
    private = records("which way", completion="turn left behind the red barn")
    assert Corpus(private).copying(["turn left behind the red barn"])[0][0] == 6
    public = frozenset({"turn left behind the red barn"})
    assert Corpus(private, public_completions=public).copying(["turn left behind the red barn"])[0][0] == 0


def test_measure_on_the_real_model() -> None:
    record = "The server in the basement broke down again last night and nobody could log in."
    index = Corpus(records(record, "Lunch is at noon on the terrace, bring your own cup."))
    copied, reworded, other = index.measure(
        [
            record,
            "Again the server in the basement broke down last night, so nobody could log in.",
            "Our garden needs a little rain before the tomatoes can grow.",
        ]
    )
    assert (copied.longest_run_tokens, copied.ngram_share, copied.jaccard) == (15, 1.0, 1.0)
    assert copied.cosine == pytest.approx(1.0, abs=1e-4)
    assert reworded.longest_run_tokens < 12
    assert reworded.cosine > 0.92
    assert other.cosine < 0.4
    assert "basement" not in repr(index)
    [copied] = Corpus(records(record)).measure([record], meaning=False)
    assert (copied.longest_run_tokens, copied.cosine) == (15, None)


RECORD = (
    "Hello, this is John Smith calling about the broken heater; please ring me at (415) 555-2671 or write to "
    "john.smith@example.com before the plumber comes."
)
SWAPPED = (
    "Hello, this is Mary Jones calling about the broken heater; please ring me at (212) 555-0199 or write to "
    "mjones@example.org before the plumber comes."
)


def test_a_copy_with_the_names_replaced_is_still_a_copy(scrubber: Scrubber) -> None:
    plain = Corpus(records(RECORD))
    assert plain.copying([SWAPPED])[0][0] < 12  # the raw forms alone do not show it
    index = Corpus(records(RECORD), scrubber=scrubber)
    for draft in (SWAPPED, scrubber.scrub(SWAPPED).text, scrubber.scrub(RECORD).text, RECORD):
        run, share, jaccard = index.copying([draft])[0]
        assert run >= 19
        assert share == 1.0
        assert jaccard == 1.0


def test_placeholders_are_no_copied_words(scrubber: Scrubber) -> None:
    index = Corpus(records("joe@example.com john@example.com (415) 555-2671 192.168.1.1"), scrubber=scrubber)
    assert index.copying(["<EMAIL_ADDRESS> <EMAIL_ADDRESS> <PHONE_NUMBER> <IP_ADDRESS>"])[0][0] == 0


def test_the_worse_form_counts(scrubber: Scrubber) -> None:
    # raw the address is seven common words; scrubbed there is nothing left to compare
    index = Corpus(records("221B Baker Street, London NW1 6XE"), scrubber=scrubber)
    assert index.copying(["221B Baker Street, London NW1 6XE"])[0][0] == 6


def test_embeddings_can_be_given() -> None:
    known = [*records("rain and sun", completion="a dry answer"), *records("wind")]
    texts = list(indexed_texts(known, frozenset({"ham"})))
    assert texts == ["rain and sun", "wind", "a dry answer"]
    draft = ["The wind and the rain."]
    settings = {"public_completions": frozenset({"ham"})}
    given_ones = Corpus(known, embeddings=embed(texts), **settings).measure(draft)
    assert given_ones == Corpus(known, **settings).measure(draft)
    with pytest.raises(ValueError, match="2 embeddings"):
        Corpus(known, embeddings=embed(texts[:2]), **settings)


def test_no_records() -> None:
    (overlap,) = Corpus([]).measure(["any text at all"])
    assert (overlap.longest_run_tokens, overlap.ngram_share, overlap.jaccard, overlap.cosine) == (0, 0.0, 0.0, 0.0)
    assert Corpus(records("a b c")).measure([]) == []


def test_records_go_past_and_are_not_held(tmp_path: Path) -> None:
    draw, vocabulary = random.Random(0), [f"word{i}" for i in range(2000)]

    def peak(count: int) -> tuple[int, int]:
        """Bytes of the file, and the most that was held of it."""
        made = (PrivateRecord(f"r{i}", " ".join(draw.choices(vocabulary, k=30)), "ham") for i in range(count))
        held = read_records(write_records(tmp_path / "vault" / f"{count}.jsonl", made))
        tracemalloc.start()
        try:
            [found] = Corpus(held, public_completions=frozenset({"ham"})).copying([held[count - 1].text])
            return (tmp_path / "vault" / f"{count}.jsonl").stat().st_size, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert found == (30, 1.0, 1.0)

    peak(1)  # imports
    (few, held_of_few), (many, held_of_many) = peak(600), peak(3000)
    assert held_of_many - held_of_few < (many - few) / 10


def test_copying_is_fast() -> None:
    rng = random.Random(0)
    vocabulary = [str(i) for i in range(1500)]
    texts = [" ".join(rng.choices(vocabulary, k=70)) for _ in range(600)]
    start = time.process_time()
    Corpus(records(*texts[:400])).copying(texts[400:])
    assert time.process_time() - start < 2
