"""Near-duplicates against a brute-force oracle, and embeddings by the real model."""

from __future__ import annotations

import random
import time
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.privacy.near_duplicates import near_duplicate_groups
from tutelage.privacy.similarity import embed, max_cosine, max_jaccard, shingles, words

TEXTS = st.lists(st.text(alphabet="ab c", max_size=24), max_size=12)


def jaccard(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right) if left | right else 0.0


def random_texts(count: int, length: int = 65, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(4000)]
    return [" ".join(rng.choices(vocabulary, k=length)) for _ in range(count)]


def with_word_replaced(text: str, position: int) -> str:
    tokens = text.split()
    tokens[position] = "zz"
    return " ".join(tokens)


def test_words_are_normalised() -> None:
    assert words("Hello, WORLD -- naïve Straße ﬁve!") == ["hello", "world", "naïve", "strasse", "five"]
    assert shingles("Two words") == {"two", "words"}
    assert shingles("a b c d") == {"a b c", "b c d"}
    assert shingles("...") == frozenset()


@given(queries=TEXTS, corpus=TEXTS)
@settings(max_examples=60, deadline=None)
def test_max_jaccard_is_exact(queries: list[str], corpus: list[str]) -> None:
    expected = [max((jaccard(query, one) for one in corpus), default=0.0) for query in queries]
    assert max_jaccard(queries, corpus) == pytest.approx(expected)


def grouped(texts: list[str], threshold: float) -> list[int]:
    """As all pairs compared with each other say."""
    group = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if shingles(texts[i]) == shingles(texts[j]) or jaccard(texts[i], texts[j]) >= threshold:
            group = [group[i] if one == group[j] else one for one in group]
    seen: dict[int, int] = {}
    return [seen.setdefault(one, len(seen)) for one in group]


@given(texts=TEXTS, threshold=st.sampled_from([0.1, 0.3, 0.5, 0.7, 2 / 3, 1.0]))
@settings(max_examples=150, deadline=None)
def test_groups_are_exact(texts: list[str], threshold: float) -> None:
    assert near_duplicate_groups(texts, threshold).tolist() == grouped(texts, threshold)


@pytest.mark.parametrize("threshold", [0.4, 0.7])
def test_groups_are_exact_where_most_texts_share_phrases(threshold: float) -> None:
    """Few words, so that what two texts share is common: what makes candidates of pairs must lose none."""
    draw = random.Random(3)
    texts = [" ".join(draw.choices("abcdef", k=draw.randint(3, 14))) for _ in range(300)]
    texts += [text + " a" for text in draw.sample(texts, 150)]
    assert near_duplicate_groups(texts, threshold).tolist() == grouped(texts, threshold)
    assert 20 < len(set(grouped(texts, threshold))) < 420


def test_near_duplicates_share_a_group_and_others_do_not() -> None:
    texts = random_texts(300)
    copies = [with_word_replaced(text, 30) for text in texts[:100]]  # Jaccard 60/66
    groups = near_duplicate_groups([*texts, *copies], 0.7).tolist()
    assert groups[:300] == list(range(300))
    assert groups[300:] == list(range(100))
    assert near_duplicate_groups([*texts, *copies], 0.95).tolist() == list(range(400))


def test_groups_go_through_chains() -> None:
    chain = random_texts(1)
    for position in (5, 20, 35, 50):
        chain.append(with_word_replaced(chain[-1], position))
    assert all(jaccard(a, b) > 0.85 for a, b in pairwise(chain))
    assert jaccard(chain[0], chain[-1]) < 0.8
    assert near_duplicate_groups(chain, 0.8).tolist() == [0] * 5


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9, 1.0])
def test_edges_of_grouping(threshold: float) -> None:
    assert near_duplicate_groups([], threshold).tolist() == []
    assert near_duplicate_groups(["one text"], threshold).tolist() == [0]
    texts = ["Same text, here", "same text here!", "quite another one"]
    assert near_duplicate_groups(texts, threshold).tolist() == [0, 0, 1]
    # two thousand copies are one shingle set, not four million pairs
    assert set(near_duplicate_groups(["the very same text"] * 2000, threshold)) == {0}


def test_grouping_is_deterministic_and_fast_enough() -> None:
    texts = random_texts(1000)
    texts += [with_word_replaced(text, 10) for text in texts[:100]]
    start = time.process_time()
    groups = near_duplicate_groups(texts, 0.7).tolist()
    assert time.process_time() - start < 15
    assert groups == near_duplicate_groups(texts, 0.7).tolist()
    assert len(set(groups)) == 1000


def test_alone_a_text_is_embedded_the_same_in_any_company() -> None:
    """To the last bit: in a proof that one record moves no other's vote nothing less will do."""
    texts = [f"mail number {i} about {'a very ' * i}long meeting" for i in range(12)]
    whole = embed(texts, alone=True)
    for at in (0, 5, 11):
        assert np.array_equal(embed([texts[at]], alone=True)[0], whole[at])
        assert np.array_equal(embed([*texts[:at], *texts[at + 1 :]], alone=True), np.delete(whole, at, axis=0))


def test_embeddings_are_unit_vectors_in_order_and_know_meaning() -> None:
    texts = [
        "The cat sleeps on the sofa.",
        "A kitten is napping on the couch.",
        "Quarterly revenue grew by twelve percent.",
        "",
        "word " * 400,
    ]
    embeddings = embed(texts)
    assert embeddings.shape == (5, 384)
    assert embeddings.dtype == np.float32
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert embed(texts[1:2])[0] == pytest.approx(embeddings[1], abs=1e-5)  # padding changes nothing
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]
    assert max_cosine(embeddings[:1], embeddings[1:3]) == pytest.approx(similarity[0, 1:2])
    assert max_cosine(embeddings, embeddings).max() <= 1.0


def test_max_cosine_without_a_corpus_or_queries() -> None:
    nothing = np.zeros((0, 384), dtype=np.float32)
    assert max_cosine(embed(["a text"]), nothing) == pytest.approx([0.0])
    assert len(max_cosine(nothing, embed(["a text"]))) == 0
