"""Detections become disjoint spans, and spans of a scrubbed text find back to the text as it came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tutelage.privacy.pii import ENTITIES, PLACEHOLDER, Span
from tutelage.privacy.pii.spans import moved_back, replace, resolve

SPANS = st.builds(
    lambda start, length, entity, score: Span(start, min(start + length, 40), entity, score),
    st.integers(0, 39), st.integers(1, 20), st.sampled_from(ENTITIES), st.floats(0.4, 1.0),
)  # fmt: skip


@given(spans=st.lists(SPANS, max_size=8))
def test_resolved_spans_are_disjoint_and_cover_every_detection(spans: list[Span]) -> None:
    text = "abcdefghij" * 4
    resolved = resolve(text, spans)
    positions = [i for span in resolved for i in range(span.start, span.end)]
    assert len(positions) == len(set(positions))
    assert set(positions) == {i for span in spans for i in range(span.start, span.end)}


def test_the_longest_detection_names_the_union() -> None:
    spans = [Span(0, 4, "PERSON", 0.9), Span(3, 20, "EMAIL_ADDRESS", 0.5), Span(10, 20, "URL", 0.6)]
    assert resolve("a" * 30, spans) == [Span(0, 20, "EMAIL_ADDRESS", 0.5)]


def test_a_placeholder_is_never_partly_replaced() -> None:
    text = "ask <PERSON> or <URL>, please"
    whole = resolve(text, [Span(0, len(text), "PERSON", 0.9)])
    assert [text[one.start : one.end] for one in whole] == ["ask", "or", ", please"]
    assert resolve(text, [Span(5, 9, "URL", 0.9)]) == []
    assert PLACEHOLDER.findall(replace(text, whole)) == ["<PERSON>", "<PERSON>", "<PERSON>", "<URL>", "<PERSON>"]


@given(cuts=st.lists(st.integers(0, 40), min_size=4, max_size=4, unique=True).map(sorted))
def test_a_span_of_the_rest_is_found_in_the_text_as_it_came(cuts: list[int]) -> None:
    text = "abcdefghijklmnopqrstuvwxyz0123456789!$%&"
    first, second = Span(cuts[0], cuts[1], "URL", 1.0), Span(cuts[2], cuts[3], "PERSON", 1.0)
    for done, other in ((first, second), (second, first)):
        left = replace(text, [done])
        start = left.index(text[other.start : other.end])
        found = other._replace(start=start, end=start + other.end - other.start)
        assert moved_back([found], [done]) == [other]
        assert replace(left, [found]) == replace(text, [first, second])
