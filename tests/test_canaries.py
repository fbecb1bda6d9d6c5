"""Canaries: like the silo's own texts, planted by independent coins, hard to let slip."""

from __future__ import annotations

import copy
import pickle
import random
import string
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.schema import AttackConfig, ClassificationTask, GenerationTask, ScreenConfig
from tutelage.privacy import canaries as module
from tutelage.privacy.canaries import Canary, plant, read_canaries, write_canaries
from tutelage.privacy.pii import Scrubber
from tutelage.privacy.vault import PrivateRecord

MAIL = ClassificationTask(description="sort mail", labels={"spam": "unwanted", "ham": "wanted"})
QUESTIONS = GenerationTask(description="answer")
TEXT = "Hello all. The build broke again last night!\nCan somebody look at the log? It's on the usual server. Thanks"


def silos(per_silo: int = 6, names: str = "abc", text: str = TEXT) -> dict[str, list[PrivateRecord]]:
    return {
        name: [PrivateRecord(f"{name}{i}", f"{text} {name}{i}", "spam" if i % 2 else "ham") for i in range(per_silo)]
        for name in names
    }


def carriers(text: str = TEXT, count: int = 40) -> list[PrivateRecord]:
    """Records that no silo holds."""
    return [PrivateRecord(f"n{i}", f"{text} apart {i}", "spam" if i % 2 else "ham") for i in range(count)]


def content(records: list[PrivateRecord]) -> Counter[tuple[str, str]]:
    return Counter((record.text, record.completion) for record in records)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 9),
    copies=st.integers(1, 3),
    candidates=st.integers(2, 12),
    max_chars=st.integers(100, 400),
    task=st.sampled_from([MAIL, QUESTIONS]),
    text=st.text(max_size=300),
)
def test_planting(seed, count, copies, candidates, max_chars, task, text):
    before = silos(3, text=text)
    config = AttackConfig(canaries=count, canary_copies=copies, canary_candidates=candidates)
    after, canaries = plant(before, carriers(text), config, task, random.Random(seed), max_chars=max_chars)

    assert len(canaries) == count
    assert {name: len(records) for name, records in before.items()} == {"a": 3, "b": 3, "c": 3}
    ids = [record.id for records in after.values() for record in records]
    assert len(ids) == len(set(ids))
    for name, records in after.items():
        planted = content([c.record("x") for c in canaries if c.member and c.silo == name for _ in range(copies)])
        assert content(records) == content(before[name]) + planted
        kept = {record.id for record in before[name]}
        assert [r.id for r in records if r.id in kept] == [r.id for r in before[name]]
    for canary in canaries:
        texts = canary.texts()
        assert len(set(texts)) == len(set(canary.candidates)) == candidates
        assert len({len(candidate.split()) for candidate in canary.candidates}) == 1
        openings = [t.removeprefix(f"{canary._other}\n\n") if task is QUESTIONS else t for t in texts]
        assert all(one.endswith(f"{candidate}.") for one, candidate in zip(openings, canary.candidates, strict=True))
        record = canary.record("x")
        carrying = record.completion if task is QUESTIONS else record.text
        assert carrying.startswith(openings[canary.index])
        assert len(carrying) <= max_chars


def test_a_carrier_is_a_text_of_no_silo_around_the_secret():
    _, canaries = plant(silos(), carriers(), AttackConfig(canaries=30), MAIL, random.Random(3), max_chars=1000)
    places = set()
    for canary in canaries:
        text = canary.record("x").text
        rest = text.replace(f"{canary.secret}.", "")
        assert any(rest.split() == record.text.split() for record in carriers())
        assert canary.label in MAIL.labels
        places.add(text.index(canary.secret))
    assert len(places) >= 4  # not always at the end


def test_a_long_carrier_is_cut_at_a_word():
    words = {"abcdefghij", "klm"}
    long = [PrivateRecord(f"n{i}", "abcdefghij klm " * 100, "ham") for i in range(30)]
    _, canaries = plant(silos(), long, AttackConfig(canaries=20), MAIL, random.Random(1), max_chars=200)
    for canary in canaries:
        rest = canary.record("x").text.replace(f"{canary.secret}.", "")
        assert set(rest.split()) <= words
        assert len(rest) > 80


def test_coins_are_fair_and_independent_and_the_truth_uniform():
    rng = random.Random(11)
    config = AttackConfig(canaries=8, canary_candidates=8)
    members: list[bool] = []
    places: Counter[int] = Counter()
    none = 0
    for _ in range(600):
        _, canaries = plant(silos(4), carriers(), config, MAIL, rng, max_chars=400)
        members += [canary.member for canary in canaries]
        none += not any(canary.member for canary in canaries)
        places.update(canary.index for canary in canaries)
    assert chisquare([sum(members), len(members) - sum(members)]).pvalue > 1e-3
    same = sum(x == y for x, y in pairwise(members))
    assert chisquare([same, len(members) - 1 - same]).pvalue > 1e-3
    assert chisquare([places[i] for i in range(8)]).pvalue > 1e-3
    assert none <= 10  # 600 / 256 expected: none at all is possible and left so


def test_every_word_of_a_slot_is_equally_likely():
    rng = random.Random(2)
    drawn = Counter(
        word
        for n in rng.choices(range(module.SPACE), k=20_000)
        for word in module._secret("{colour} {number}", n).split()
    )
    for slot in ("colour", "number"):
        assert chisquare([drawn[word] for word in module._SLOTS[slot]]).pvalue > 1e-3


def test_the_default_randomness_is_not_repeatable():
    random.seed(0)
    _, first = plant(silos(), carriers(), AttackConfig(), MAIL, max_chars=400)
    random.seed(0)
    _, second = plant(silos(), carriers(), AttackConfig(), MAIL, max_chars=400)
    assert [c.secret for c in first] != [c.secret for c in second]


def test_no_name_or_number_for_screening_to_find():
    for words in module._SLOTS.values():
        assert len(set(words)) == len(words)
        assert all(set(word) <= set(string.ascii_lowercase) for word in words)


@pytest.mark.slow
def test_screening_leaves_secrets_alone():
    screen = ScreenConfig()
    rng = random.Random(0)
    texts = [module._secret(rng.choice(module._FORMS), rng.randrange(module.SPACE)) + "." for _ in range(100)]
    scrubbed = Scrubber(screen.entities, screen.pii_score).scrub_many(texts)
    assert sum(before != after.text for before, after in zip(texts, scrubbed, strict=True)) <= 2


@pytest.fixture
def canary() -> Canary:
    return plant(silos(), carriers(), AttackConfig(), MAIL, random.Random(0), max_chars=400)[1][0]


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy, lambda c: pickle.dumps([c], protocol=0)])
def test_a_canary_is_not_pickled(canary, leak):
    with pytest.raises(PrivacyError) as caught:
        leak(canary)
    assert canary.secret not in str(caught.value)


def test_a_canary_shows_nothing(canary):
    shown = f"{canary!r} {canary} {[canary]} {(canary,)!r}"
    assert not any(part in shown for part in (canary.secret, canary._before or "?", canary.label))


@pytest.mark.parametrize("task", [MAIL, QUESTIONS], ids=["classification", "generation"])
def test_kept_in_the_vault_only(tmp_path, task):
    _, canaries = plant(silos(), carriers(), AttackConfig(), task, random.Random(4), max_chars=400)
    path = write_canaries(tmp_path / "vault" / "canaries.jsonl", canaries)
    back = read_canaries(path)
    assert [c._row() for c in back] == [c._row() for c in canaries]
    assert [c.texts() for c in back] == [c.texts() for c in canaries]
    outside = tmp_path / "release" / "canaries.jsonl"
    with pytest.raises(PrivacyError):
        write_canaries(outside, canaries)
    assert not outside.exists()
    with pytest.raises(PrivacyError):
        read_canaries(outside)


def test_without_records_of_no_silo_there_are_no_canaries():
    with pytest.raises(UserError) as caught:
        plant(silos(), [], AttackConfig(), MAIL, max_chars=400)
    assert caught.value.key == "data.nonmember_records"


def test_no_silos_record_stands_in_it_once_more():
    """Or an epsilon per record would be one per text for those that carry a secret."""
    after, canaries = plant(silos(), carriers(), AttackConfig(canaries=20, canary_copies=4), MAIL, max_chars=400)
    for name, records in silos().items():
        for record in records:
            assert sum(record.text[:60] in one.text and f" {record.id}" in one.text for one in after[name]) == 1
    assert any(canary.member for canary in canaries)


def test_more_canaries_than_carriers():
    _, canaries = plant(
        silos(2, "a"), carriers(count=3), AttackConfig(canaries=9), MAIL, random.Random(0), max_chars=400
    )
    assert len({canary.secret for canary in canaries}) == 9


@pytest.mark.parametrize(
    ("records", "config", "max_chars", "key"),
    [
        ({}, AttackConfig(), 400, "data.silos"),
        (silos(), AttackConfig(), 40, "data.max_chars"),
        (silos(), AttackConfig(canary_candidates=10**9), 400, "attack.canary_candidates"),
    ],
)
def test_bad_input_names_key_and_remedy(records, config, max_chars, key):
    with pytest.raises(UserError) as caught:
        plant(records, carriers(), config, MAIL, random.Random(0), max_chars=max_chars)
    assert caught.value.key == key
    assert caught.value.remedy
