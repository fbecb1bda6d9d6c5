"""The canary attack: exact where nothing leaks, loud where something does, closed where it can't tell."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skewnorm

from tutelage.configs.schema import AttackConfig, ClassificationTask, GateConfig, GateRule
from tutelage.privacy.attacks.exposure import (
    attack,
    expected_exposure,
    exposure,
    skew_normal_exposure,
    text_exposure,
    true_ranks,
)
from tutelage.privacy.canaries import Canary, plant
from tutelage.privacy.gate import decide
from tutelage.privacy.vault import PrivateRecord

MAIL = ClassificationTask(description="sort mail", labels={"spam": "unwanted", "ham": "wanted"})
GATE = GateConfig(rules=(GateRule(metric="canary.rank0_share", op="<=", value=0.25),))
ATTACK_METRICS = [
    "canary.exposure_mean",
    "canary.exposure_max",
    "canary.exposure_skew_normal_mean",
    "canary.rank0_share",
    "canary.rank1pct_share",
    "canary.exposure_out_mean",
    "canary.auc",
    "canary.p_value",
]


def make(seed: int, *, canaries: int = 8, candidates: int = 64) -> list[Canary]:
    records = {
        silo: [PrivateRecord(f"{silo}{i}", f"Dear list. Message {i} of {silo} follows. Bye", "ham") for i in range(5)]
        for silo in "ab"
    }
    config = AttackConfig(canaries=canaries, canary_candidates=candidates)
    return plant(records, records["a"] + records["b"], config, MAIL, random.Random(seed), max_chars=400)[1]


def with_both_sides(canaries: list[Canary]) -> list[Canary]:
    """The same canaries with fixed coins, for tests of what isn't the coins."""
    for i, canary in enumerate(canaries):
        canary.member = i % 2 == 0
    return canaries


def memoriser(canaries: Sequence[Canary], strength: float = 100.0, seed: int = 0) -> Callable[..., np.ndarray]:
    """Scores of a model that saw the members' texts, over noise."""
    rng = np.random.default_rng(seed)
    seen = {canary.texts()[canary.index] for canary in canaries if canary.member}
    return lambda texts: rng.normal(size=len(texts)) + [strength * (text in seen) for text in texts]


def independent(seed: int) -> Callable[[Sequence[str]], np.ndarray]:
    rng = np.random.default_rng(seed)
    return lambda texts: rng.normal(size=len(texts))


def test_candidates_of_a_canary_are_scored_together():
    """They share their beginning: a scorer runs it once."""
    canaries, asked = make(0, candidates=3), []
    attack(canaries, lambda texts: asked.append(list(texts)) or np.zeros(len(texts)), n_resamples=10)
    assert asked == [canary.texts() for canary in canaries]


def values(metrics) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics}


@pytest.mark.parametrize("size", [2, 10, 64, 1000])
def test_expected_exposure_is_the_mean_over_uniform_ranks(size):
    assert exposure(np.arange(1, size + 1), size).mean() == pytest.approx(expected_exposure(size))
    simulated = exposure(np.random.default_rng(0).integers(1, size + 1, 20_000), size)
    assert simulated.mean() == pytest.approx(expected_exposure(size), abs=0.05)


def test_exposure_at_the_ends():
    assert exposure([1, 1024], 1024).tolist() == [10, 0]
    assert expected_exposure(10**6) == pytest.approx(1 / math.log(2), abs=1e-4)
    assert math.isnan(exposure([math.nan], 8)[0])


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=6), st.data())
def test_ranks_against_sorting(rows, data):
    index = [data.draw(st.integers(0, 4)) for _ in rows]
    average, late = true_ranks(rows, index)
    for row, i, mid, last in zip(rows, index, average, late, strict=True):
        places = [place for place, value in enumerate(sorted(row, reverse=True), 1) if value == row[i]]
        assert mid == mean(places)
        assert last == places[-1]
    # whatever the scores, a secret drawn uniformly has an average rank of the middle
    every = [true_ranks([rows[0]], [i])[0][0] for i in range(5)]
    assert mean(every) == 3


@pytest.mark.parametrize("shape", [-5.0, -1.0, 0.0, 2.0])
def test_the_fitted_exposure_is_that_of_the_distribution(shape):
    """With many candidates it is what the distribution they come from says, also past log2 of their number."""
    rng = np.random.default_rng(0)
    row = skewnorm.rvs(shape, size=20_000, random_state=rng)
    for share in (0.5, 0.01, 1e-5):
        row[7] = skewnorm.isf(share, shape)
        assert skew_normal_exposure([row], [7])[0] == pytest.approx(-math.log2(share), rel=0.25)


def test_the_fitted_exposure_ends_where_the_secret_does():
    row = np.random.default_rng(0).normal(size=64)
    row[3] = 1e6
    assert skew_normal_exposure([row], [3])[0] == pytest.approx(math.log2(24 * 32 * 24 * 16 * 32))
    row[3] = -1e6
    assert skew_normal_exposure([row], [3])[0] == 0


@given(st.integers(0, 2**32), st.floats(0.01, 100), st.floats(-100, 100))
def test_the_fitted_exposure_has_no_unit(seed, scale, shift):
    rows, index = np.random.default_rng(seed).normal(size=(3, 40)), [0, 5, 39]
    found = skew_normal_exposure(rows, index)
    assert (found >= 0).all()
    np.testing.assert_allclose(skew_normal_exposure(scale * rows + shift, index), found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("candidates", "mean_bits"), [(16, 1.64), (64, 1.48), (1000, 1.45)])
def test_the_fitted_exposure_where_nothing_leaks(candidates, mean_bits):
    rows = np.random.default_rng(0).normal(size=(2000, candidates))
    assert skew_normal_exposure(rows, [0] * 2000).mean() == pytest.approx(mean_bits, abs=0.12)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([0.0] * 32, "no spread"),
        ([1.0] + [0.1 + 0.2] * 31, "no spread but in the true one"),
        ([*range(31), math.nan], "NaN"),
        ([math.inf, *range(31)], "infinite"),
        (list(range(15)), "too few"),
    ],
)
def test_no_distribution_can_be_fitted(row, why):
    good = list(np.random.default_rng(0).normal(size=len(row)))
    bits = skew_normal_exposure([row, good], [0, 0])
    assert math.isnan(bits[0]), why
    assert math.isnan(bits[1]) is (why == "too few")


def test_a_leak_beyond_the_candidates_shows_in_the_fit_only():
    canaries = with_both_sides(make(0, candidates=32))
    # what grows is the leak, not the rank
    found = [values(attack(canaries, memoriser(canaries, strength), n_resamples=10).metrics) for strength in (5, 7)]
    assert found[0]["canary.exposure_mean"] == found[1]["canary.exposure_mean"] == 5
    assert 6 < found[0]["canary.exposure_skew_normal_mean"] < found[1]["canary.exposure_skew_normal_mean"]


def test_one_canary_that_cannot_be_fitted_leaves_the_mean_missing():
    canaries = with_both_sides(make(0))
    metrics = {one.name: one for one in attack(canaries, lambda texts: np.arange(len(texts)) // 64).metrics}
    assert not metrics["canary.exposure_skew_normal_mean"].measured
    assert metrics["canary.exposure_mean"].measured


def test_a_memorised_set_is_flagged():
    canaries = with_both_sides(make(0))
    result = attack(canaries, memoriser(canaries), n_resamples=200)
    found = values(result.metrics)
    assert list(found) == ATTACK_METRICS
    assert found["canary.rank0_share"] == found["canary.rank1pct_share"] == 1
    assert found["canary.exposure_mean"] == found["canary.exposure_max"] == 6
    assert found["canary.exposure_skew_normal_mean"] > 20
    assert found["canary.p_value"] == pytest.approx((6 / 64) ** 4)
    assert found["canary.auc"] > 0.9
    assert found["canary.exposure_out_mean"] < 4
    assert result.member_ranks == (1, 1, 1, 1)
    assert len(result.out_ranks) == 4
    assert not any(metric.internal for metric in result.metrics)
    assert not decide(result.metrics, GATE, lessons=1, defended=True).passed


@pytest.mark.parametrize("strength", [1.5, 3.0])
def test_power_grows_with_the_leak(strength):
    flagged = 0
    for seed in range(40):
        canaries = with_both_sides(make(seed, canaries=32))
        result = attack(canaries, memoriser(canaries, strength, seed), n_resamples=10)
        flagged += values(result.metrics)["canary.p_value"] < 0.05
    assert flagged >= (26 if strength == 1.5 else 40)


def test_false_alarms_of_the_test_and_of_the_gate():
    alarms = refused = 0
    ranks: list[float] = []
    for seed in range(500):
        result = attack(make(seed, candidates=40), independent(seed), n_resamples=10)
        alarms += values(result.metrics)["canary.p_value"] < 0.05
        refused += not decide(result.metrics, GATE, lessons=1, defended=True).passed
        ranks += result.member_ranks
    assert alarms / 500 <= 0.06
    assert refused / 500 <= 0.06
    assert mean(ranks) == pytest.approx(20.5, abs=4 * 40 / math.sqrt(12 * len(ranks)))


def eleven_tied_first(texts: Sequence[str]) -> np.ndarray:
    # of each 64: their average rank is 6, just within the first tenth, though they fill more than a sixth
    return np.array([float(i % 64 < 11) for i in range(len(texts))])


@pytest.mark.parametrize("score", [lambda texts: np.zeros(len(texts)), eleven_tied_first], ids=["all", "eleven"])
def test_ties_raise_no_alarm(score):
    p = [values(attack(make(seed), score, n_resamples=10).metrics)["canary.p_value"] for seed in range(150)]
    assert np.mean(np.array(p) < 0.05) <= 0.06


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_nan_score_is_never_a_pass(place):
    canaries = with_both_sides(make(0))

    def score(texts: Sequence[str]) -> np.ndarray:
        scores = np.zeros(len(texts))
        scores[0 if place == "first" else -1] = math.nan
        return scores

    result = attack(canaries, score)
    assert [metric.name for metric in result.metrics] == ATTACK_METRICS
    assert not any(metric.measured for metric in result.metrics)


@pytest.mark.parametrize("member", [True, False])
def test_one_side_only_leaves_nan(member):
    canaries = make(0)
    for canary in canaries:
        canary.member = member
    result = attack(canaries, independent(0), n_resamples=10)
    found = {metric.name: metric.measured for metric in result.metrics}
    assert list(found) == ATTACK_METRICS
    missing = {"canary.auc", "canary.exposure_out_mean"}
    assert {name for name, measured in found.items() if not measured} == (
        missing if member else set(ATTACK_METRICS) - {"canary.exposure_out_mean"}
    )
    assert decide(result.metrics, GATE, lessons=1, defended=True).passed <= member


def test_no_canaries_at_all():
    result = attack([], independent(0))
    assert [metric.name for metric in result.metrics] == ATTACK_METRICS
    assert not any(metric.measured for metric in result.metrics)


def test_wrong_shapes_are_errors():
    canaries = make(0)
    with pytest.raises(ValueError, match="64 texts"):
        attack(canaries, lambda texts: np.zeros(3))
    with pytest.raises(ValueError, match="different numbers"):
        attack([*canaries, *make(1, candidates=3)], independent(0))


HARMLESS = ["Please find the report of the last meeting", "The build is green again, thanks to everybody"] * 20


def test_copied_lessons_are_found_in_the_text_alone():
    canaries = with_both_sides(make(0))
    copied = [canary.record("x").text.upper().replace(" ", " \n ") for canary in canaries if canary.member]
    outside = [canary.record("x").text for canary in canaries if not canary.member]
    found = values(text_exposure(canaries, HARMLESS + copied))
    assert found == {"lessons.canary_verbatim": 4, "lessons.canary_rank0_share": 1}
    found = values(text_exposure(canaries, HARMLESS + outside))
    assert found["lessons.canary_verbatim"] == 0
    assert found["lessons.canary_rank0_share"] <= 0.25


def test_a_reworded_secret_is_ranked_first_though_not_verbatim():
    canaries = with_both_sides(make(2))
    # the middle of each sentence, without its ends: no verbatim hit
    reworded = [" ".join(canary.secret.split()[1:-1]) for canary in canaries if canary.member]
    found = values(text_exposure(canaries, HARMLESS + reworded))
    assert found["lessons.canary_verbatim"] == 0
    assert found["lessons.canary_rank0_share"] >= 0.75


def test_lessons_without_a_leak_rank_nobody_first():
    first = total = 0
    for seed in range(60):
        share = text_exposure(make(seed), HARMLESS)[1]
        if share.measured:
            first += round(share.value * share.n)
            total += share.n
    assert first <= total * 4 / 64


def test_no_lessons_or_no_member_is_nan():
    canaries = with_both_sides(make(0))
    outs = [canary for canary in canaries if not canary.member]
    for metrics in (text_exposure(canaries, []), text_exposure(outs, HARMLESS), text_exposure([], HARMLESS)):
        assert not any(metric.measured for metric in metrics)


def test_the_demos_rule_refuses_few_runs_without_a_leak():
    """Sixteen fair coins, ranks uniform among 32: refused with probability 0.35%, as docs/privacy.md says."""
    from scipy.stats import binom

    from tutelage.privacy.attacks.exposure import _p_value

    refused = 0.0
    for members in range(17):
        for first in range(members + 1):  # so many in the first tenth, 3 of 32
            ranks = np.array([1.0] * first + [32.0] * (members - first))
            holds = _p_value(ranks, 32) >= 0.01
            refused += (not holds) * binom.pmf(members, 16, 0.5) * binom.pmf(first, members, 3 / 32)
    assert refused == pytest.approx(0.00346, abs=1e-5)
