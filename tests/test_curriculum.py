"""The next round's topics: a share per class, more for those the student gets wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.teachers.curriculum import next_topics

counts = st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
recalls = st.dictionaries(st.text(min_size=1, max_size=5), counts, min_size=1, max_size=12)


@given(recalls)
def test_shares_sum_to_one_and_keep_the_floor(recall: dict[str, tuple[int, int]]) -> None:
    topics = next_topics(recall)
    assert topics.keys() == recall.keys()
    assert sum(topics.values()) == pytest.approx(1)
    assert min(topics.values()) >= 0.5 / len(recall)


@given(recalls, st.data())
def test_more_errors_mean_a_larger_share(recall: dict[str, tuple[int, int]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(recall)))
    right, n = recall[name]
    worse = {**recall, name: (data.draw(st.integers(0, right)), n)}
    before, after = next_topics(recall), next_topics(worse)
    assert after[name] >= before[name] - 1e-12
    assert all(after[other] <= before[other] + 1e-12 for other in recall if other != name)
    if worse != recall and len(recall) > 1:
        assert after[name] > before[name]


@given(st.lists(st.integers(0, 40), min_size=2, max_size=6))
def test_classes_are_ranked_by_their_errors(right: list[int]) -> None:
    topics = next_topics({str(i): (value, 40) for i, value in enumerate(right)})
    for i, a in enumerate(right):
        for j, b in enumerate(right):
            if a < b:
                assert topics[str(i)] > topics[str(j)]


def test_little_evidence_moves_little() -> None:
    weak = next_topics({"ham": (0, 1), "spam": (1, 1)})
    strong = next_topics({"ham": (0, 50), "spam": (50, 50)})
    assert 0.5 < weak["ham"] < strong["ham"] < 0.75
    assert next_topics({"ham": (0, 0), "spam": (0, 0)}) == {"ham": 0.5, "spam": 0.5}


def test_nothing_measured_asks_for_nothing() -> None:
    assert next_topics({}) == {}
