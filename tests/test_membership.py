"""From scores to metrics: the ROC against brute force, honest intervals, and the scores' own formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm

from tutelage.configs.records import Example, Metric
from tutelage.privacy.attacks import min_k, ngram, rmia
from tutelage.privacy.attacks.base import Controls, Found, Settings, TokenScores
from tutelage.privacy.attacks.membership import OTHERS, contrasts, judge, judge_texts, mean_logprob, roc
from tutelage.privacy.canaries import Canary
from tutelage.privacy.stats import auc

QUICK = Settings(resamples=200)
SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)
EXTREME = st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.5, math.inf]), min_size=1, max_size=12)


def found(members: Sequence[float], nonmembers: Sequence[float], config: Settings = QUICK) -> dict[str, Metric]:
    return {metric.name: metric for metric in judge("a", members, nonmembers, config, internal=True).metrics}


def tpr_by_trying_all(members: Sequence[float], nonmembers: Sequence[float], rate: float) -> float:
    best = 0.0
    for threshold in [*members, *nonmembers, math.nan]:  # nothing is at least NaN: nothing is flagged
        alarms = np.mean([score >= threshold for score in nonmembers])
        if alarms <= rate:
            best = max(best, float(np.mean([score >= threshold for score in members])))
    return best


# ---- measures ----------------------------------------------------------------------------------------------------


@given(SCORES, SCORES)
def test_the_area_counts_pairs(members, nonmembers):
    pairs = [(m > n) + (m == n) / 2 for m in members for n in nonmembers]
    area = found(members, nonmembers)["a.auc"]
    assert area.value == pytest.approx(np.mean(pairs))
    assert area.ci_low <= area.value <= area.ci_high
    assert area.n == len(members) + len(nonmembers)


@settings(max_examples=40)
@given(SCORES, st.lists(st.integers(-40, 4).map(float), min_size=100, max_size=230))
def test_found_at_one_per_cent_of_false_alarms_against_all_thresholds(members, nonmembers):
    share = found(members, nonmembers)["a.tpr_at_1pct"]
    assert share.value == pytest.approx(tpr_by_trying_all(members, nonmembers, 0.01))
    curve = roc("a", members, nonmembers, internal=True)
    assert share.value == max(t for f, t in zip(curve.fpr, curve.tpr, strict=True) if f <= 0.01)


def test_shares_are_exact_and_say_what_chance_gives():
    share = found(list(range(1001, 1041)), list(range(1002)))["a.tpr_at_01pct"]
    assert share.value == 1
    assert share.ci_low == pytest.approx(0.025 ** (1 / 40))
    assert share.interval == "95% Clopper-Pearson; at the threshold found; 0.0020 with no leak"


def test_chance_at_the_threshold_found():
    rng = np.random.default_rng(0)
    shares = [found(rng.normal(size=50), rng.normal(size=150), Settings(0))["a.tpr_at_1pct"].value for _ in range(600)]
    assert np.mean(shares) == pytest.approx(2 / 151, abs=0.003)


def test_too_few_nonmembers_for_a_small_share():
    metrics = found([1.0] * 7, [0.0] * 100)
    assert metrics["a.tpr_at_1pct"].value == 1
    missing = metrics["a.tpr_at_01pct"]
    assert not missing.measured
    assert missing.n == 7
    assert missing.interval == "none: needs 1000 non-members, there are 100"
    assert not found([1.0] * 7, [0.0] * 99)["a.tpr_at_1pct"].measured


@given(EXTREME | SCORES, EXTREME | SCORES)
def test_the_curve_is_every_threshold(members, nonmembers):
    curve = roc("a", members, nonmembers, internal=False)
    assert (curve.fpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 1, 1)
    assert all(low < high for low, high in zip(curve.fpr, curve.fpr[1:], strict=False))
    assert all(low <= high for low, high in zip(curve.tpr, curve.tpr[1:], strict=False))
    assert list(curve.tpr) == [tpr_by_trying_all(members, nonmembers, rate) for rate in curve.fpr]
    assert (curve.members, curve.nonmembers, curve.internal) == (len(members), len(nonmembers), False)


def test_a_long_curve_is_thinned_to_the_right_only():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(1, 1, 3000), rng.normal(size=5000)
    curve = roc("a", members, nonmembers, internal=True)
    assert 150 < len(curve.fpr) <= 200
    assert [f for f in curve.fpr if f <= 0.0198] == [i / 5000 for i in range(100)]
    assert (curve.fpr[-1], curve.tpr[-1]) == (1, 1)
    for rate in (0.0, 0.001, 0.01):
        assert curve.tpr[curve.fpr.index(rate)] == pytest.approx(
            np.mean(members > np.sort(nonmembers)[-1 - int(5000 * rate)])
        )


@given(SCORES, SCORES, st.randoms(use_true_random=False))
def test_order_and_monotone_transforms_change_nothing(members, nonmembers, random):
    before = repr(judge("a", members, nonmembers, QUICK, internal=True))
    assert repr(judge("a", np.exp(members), np.exp(nonmembers), QUICK, internal=True)) == before
    random.shuffle(members)
    random.shuffle(nonmembers)
    assert repr(judge("a", members, nonmembers, QUICK, internal=True)) == before


@pytest.mark.parametrize(
    ("members", "nonmembers"),
    [([], [1.0]), ([1.0], []), ([], []), ([1.0, math.nan], [0.0]), ([1.0], [math.nan, 0.0])],
)
def test_nothing_to_judge_is_missing(members, nonmembers):
    result = judge("a", members, nonmembers, QUICK, internal=True)
    assert [metric.name for metric in result.metrics] == ["a.auc", "a.tpr_at_1pct", "a.tpr_at_01pct"]
    assert not any(metric.measured for metric in result.metrics)
    assert all(metric.internal for metric in result.metrics)
    assert result.curves == ()


# ---- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 30])
def test_perfect_separation_is_left_to_newcombe(size):
    members, nonmembers = [1.0 + i for i in range(size)], [-1.0 - i for i in range(size)]
    area = found(members, nonmembers)["a.auc"]
    assert area.interval == "95% Newcombe"
    assert (area.value, area.ci_low, area.ci_high) == auc(members, nonmembers)
    assert area.ci_low < 1


def test_the_bootstrap_is_the_stratified_one():
    rng = np.random.default_rng(0)
    # a few members leak wholly: the bootstrap sees a spread that Newcombe's formula doesn't know of
    members, nonmembers = np.concatenate([rng.normal(-0.5, 0.2, 60), np.full(60, 9.0)]), rng.normal(0, 1, 120)
    area = found(members, nonmembers, Settings(resamples=4000))["a.auc"]
    assert area.interval == "95% bootstrap (4000) or Newcombe, the wider at each end"

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return auc(a.tolist(), b.tolist())[0]

    other = bootstrap(
        (members, nonmembers), statistic, n_resamples=1500, method="percentile", vectorized=False, rng=rng
    )
    low, high = other.confidence_interval
    assert area.ci_low == pytest.approx(min(low, auc(members.tolist(), nonmembers.tolist())[1]), abs=0.01)
    assert area.ci_high == pytest.approx(max(high, auc(members.tolist(), nonmembers.tolist())[2]), abs=0.01)


@pytest.mark.parametrize(("shift", "size"), [(0.0, 8), (0.0, 40), (1.0, 20), (2.5, 20), (2.5, 60)])
def test_the_interval_covers(shift, size):
    """Each end misses the true area in 2.5% of all cases at most, but for chance and a percent."""
    rng = np.random.default_rng(int(10 * shift) + size)
    area, tries = norm.cdf(shift / math.sqrt(2)), 500
    metrics = [found(rng.normal(shift, 1, size), rng.normal(size=size))["a.auc"] for _ in range(tries)]
    for missed in ([one.ci_low > area for one in metrics], [one.ci_high < area for one in metrics]):
        assert np.mean(missed) <= 0.035 + 2 * math.sqrt(0.025 * 0.975 / tries)


# ---- what the attacks share --------------------------------------------------------------------------------------


def example(id: str = "x") -> Example:
    return Example(id=id, prompt="a", completion="b")


def test_a_wrong_number_of_scores_is_an_error():
    controls = Controls((example("m"),), (example("n"),), ())
    with pytest.raises(ValueError, match="as many scores as controls"):
        judge_texts("a", controls, lambda _: [1.0], QUICK)
    assert judge_texts("a", controls, lambda _: [1.0, 0.0], QUICK).metrics[0].value == 1


def scores(logprobs: Sequence[float], mean: float = -2.0, std: float = 1.0, completion: int = 0) -> TokenScores:
    own = np.array(logprobs, dtype=np.float64)
    return TokenScores(own, np.full(len(own), mean), np.full(len(own), std), np.zeros(len(own), dtype=bool), completion)


def test_means_of_tokens():
    one = scores([-1.0, -2.0, -6.0], completion=1)
    assert mean_logprob(one) == -3
    assert mean_logprob(one, completion=True) == -4
    assert math.isnan(mean_logprob(scores([])))
    assert math.isnan(mean_logprob(scores([-1.0], completion=1), completion=True))
    assert mean_logprob(scores([-1.0, -3.0], completion=-1), completion=True) == -2


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_contrasts_are_to_the_next_candidates(count):
    canaries = [
        Canary(f"c{i}", "s", True, "classification", "", "", "ham", [f"{i} {j}" for j in range(count)], i % count)
        for i in range(4)
    ]
    asked: list[str] = []

    def gain(examples: Sequence[Example]) -> list[float]:
        asked.extend(one.completion for one in examples)
        return [float(one.completion.split()[1]) ** 2 for one in examples]

    def alone(canary: Canary, i: int) -> Example:
        return Example(id=canary.id, prompt="", completion=canary.candidates[i])

    result = contrasts(canaries, alone, gain)
    others = min(OTHERS, count - 1)
    assert len(asked) == 4 * (1 + others)
    for i, one in enumerate(result):
        beside = [((i % count + step) % count) ** 2 for step in range(1, others + 1)]
        assert one == pytest.approx((i % count) ** 2 - (np.mean(beside) if beside else 0))
    assert contrasts([], alone, gain).shape == (0,)
    with pytest.raises(ValueError, match="need as many scores"):
        contrasts(canaries, alone, lambda _: [1.0])


# ---- Min-K%++, RMIA, bigrams -------------------------------------------------------------------------------------


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=40))
def test_min_k_is_the_mean_of_the_lowest_fifth(logprobs):
    z = sorted((p + 2) / 3 for p in logprobs)
    assert min_k.min_k(scores(logprobs, std=3)) == pytest.approx(np.mean(z[: max(1, len(z) // 5)]))


def test_min_k_without_spread():
    assert min_k.min_k(scores([0.0, 0.0], mean=0.0, std=0.0)) == 0
    unlikely = min_k.min_k(scores([0.0, -80.0], mean=0.0, std=0.0))
    assert math.isfinite(unlikely)
    assert unlikely < -1e6
    assert math.isnan(min_k.min_k(scores([])))
    assert math.isnan(min_k.min_k(scores([-1.0] * 9 + [math.nan])))


PROBABILITIES = st.lists(st.floats(1e-6, 1), min_size=3, max_size=3)


@given(PROBABILITIES, st.lists(PROBABILITIES, min_size=1, max_size=4))
def test_the_ratio_is_the_papers(student, references):
    out = np.mean(references, axis=0)
    expected = np.array(student) / (0.5 * ((1 + 0.3) * out + (1 - 0.3)))
    np.testing.assert_allclose(np.exp(rmia.log_ratios(np.log(student), np.log(references))), expected)


def test_a_tiny_likelihood_does_not_underflow():
    ratios = rmia.log_ratios(np.array([-2000.0, -1990.0]), np.array([[-2000.0, -2000.0]]))
    assert ratios[1] - ratios[0] == pytest.approx(10)
    assert np.isfinite(ratios).all()


@given(SCORES, SCORES)
def test_dominance_counts_the_others_reached(own, others):
    expected = [np.mean([score >= other for other in others]) for score in own]
    np.testing.assert_allclose(rmia.dominance(np.array(own), np.array(others)), expected)


def test_dominance_keeps_nan():
    assert np.isnan(rmia.dominance(np.array([math.nan, 1.0]), np.array([0.0]))).tolist() == [True, False]
    assert np.isnan(rmia.dominance(np.array([1.0]), np.array([0.0, math.nan]))).all()


@given(st.lists(st.text("abc ", max_size=12), min_size=1, max_size=6), st.sampled_from(["", "a", "b", "ab", "unseen"]))
def test_a_bigram_model_gives_probabilities(texts, before):
    model = ngram.BigramModel(texts)
    seen = {word for text in texts for word in text.split()} | {""}
    total = sum(math.exp(model.logprob(before, word)) for word in [*seen, "never seen"])
    assert total == pytest.approx(1)
    assert all(model.logprob(before, word) < 0 or len(seen) == 1 for word in seen)


def test_a_bigram_model_likes_what_it_saw():
    model = ngram.BigramModel(["the red hat is lost", "the blue hat is found"])
    likely = [model.mean_logprob(text) for text in ("The red hat is found!", "hat the is red found", "x y z", "")]
    assert likely[0] > likely[1] > likely[2]
    assert all(math.isfinite(one) for one in likely)


def test_found_is_what_the_contract_says():
    assert isinstance(judge("a", [1.0], [0.0], QUICK, internal=True), Found)
