"""The one-run audit: its bound is the published formula's, is seldom too high, and says how high it could have been."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.configs.records import Metric
from tutelage.configs.schema import GateConfig, GateRule
from tutelage.privacy.attacks.one_run import (
    _p_value,
    audit,
    ceiling,
    guess_counts,
    longest_runs,
    lower_bound,
    right_guesses,
)
from tutelage.privacy.gate import decide

DELTA = 1e-5


def value(metrics: tuple[Metric, ...]) -> float:
    return metrics[0].value


def coins(rng: np.random.Generator, m: int) -> np.ndarray:
    return rng.random(m) < 0.5


def by_the_formula(m: int, r: int, v: int, delta: float, epsilon: float) -> float:
    """The p-value term by term."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))

    def at_least(k: int) -> float:
        return sum(math.comb(r, j) * q**j * (1 - q) ** (r - j) for j in range(max(k, 0), r + 1))

    beta = at_least(v)
    most = max([(at_least(v - i) - beta) / i for i in range(1, v + 1)], default=0.0)
    return min(1.0, beta + 2 * m * delta * most)


@st.composite
def audits(draw):
    m = draw(st.integers(1, 40))
    r = draw(st.integers(0, m))
    return m, r, draw(st.integers(0, r)), draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.05]))


@given(audits(), st.floats(0, 6))
def test_the_p_value_is_the_formula(audit, epsilon):
    assert _p_value(*audit, epsilon) == pytest.approx(by_the_formula(*audit, epsilon), rel=1e-7, abs=1e-12)


@given(audits())
def test_the_p_value_rises_with_epsilon(audit):
    found = [_p_value(*audit, epsilon) for epsilon in np.linspace(0, 8, 60)]
    assert all(low <= high + 1e-9 for low, high in itertools.pairwise(found))


@given(audits(), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_bound_is_where_the_p_value_crosses(audit, confidence):
    bound = lower_bound(*audit, confidence)
    assert by_the_formula(*audit, bound + 1e-6) > 1 - confidence
    if bound > 0:
        assert by_the_formula(*audit, bound - 1e-6) <= 1 - confidence


@given(audits())
def test_the_bound_follows_what_was_found(audit):
    m, r, v, delta = audit
    bound = lower_bound(m, r, v, delta)
    assert lower_bound(m, r, max(v - 1, 0), delta) <= bound <= lower_bound(m, r, min(v + 1, r), delta)
    assert lower_bound(m, r, v, 2 * delta) <= bound
    assert lower_bound(m + 10, r, v, delta) <= bound
    assert lower_bound(m, r, v, delta, 0.99) <= bound <= ceiling(m, delta)


def test_without_delta_the_bound_is_one_of_a_share():
    """All r right: q^r = 0.05, and ε is the log-odds of q."""
    q = 0.05 ** (1 / 40)
    assert lower_bound(100, 40, 40, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-9)
    assert lower_bound(100, 40, 20, 0.0) == lower_bound(100, 0, 0, 0.0) == 0


@pytest.mark.parametrize(("m", "expected"), [(100, 3.5), (500, 5.1), (1000, 5.8), (3000, 6.8)])
def test_the_ceiling(m, expected):
    assert ceiling(m, DELTA) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    "wrong", [(5, 6, 1, 0.0), (5, 3, 4, 0.0), (5, 3, -1, 0.0), (5, 3, 2, 1.0), (5, 3, 2, math.nan)]
)
def test_impossible_audits_are_errors(wrong):
    with pytest.raises(ValueError, match="no audit has"):
        lower_bound(*wrong)
    with pytest.raises(ValueError, match="no audit has"):
        lower_bound(5, 3, 2, 0.0, 1.0)


@settings(max_examples=30)
@given(st.integers(1, 5000))
def test_guesses_are_few_sets_settled_by_the_number_of_canaries(m):
    counts = guess_counts(m)
    assert 1 <= len(counts) <= 5
    assert len(set(counts)) == len(counts)
    assert all(0 <= k + j <= m for k, j in counts)
    if m >= 9:
        # each of them can show something
        assert all(lower_bound(m, k + j, k + j, 0.0, 1 - 0.05 / len(counts)) > 0 for k, j in counts)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=7), st.data())
def test_ties_are_broken_against_the_attacker(rows, data):
    scores, member = np.array([float(s) for s, _ in rows]), np.array([m for _, m in rows])
    highest = data.draw(st.integers(0, len(rows)))
    lowest = data.draw(st.integers(0, len(rows) - highest))
    found = right_guesses(scores, member, highest, lowest)
    every = set()
    for order in itertools.permutations(range(len(rows))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            top, bottom = order[:highest], order[len(order) - lowest :]
            every.add(sum(member[i] for i in top) + sum(not member[i] for i in bottom))
    assert found <= min(every)
    if len(set(scores)) == len(scores):
        assert {found} == every


@pytest.mark.parametrize("m", [8, 32, 100, 500])
def test_of_coins_that_leave_no_trace_the_bound_is_seldom_above_zero(m):
    rng = np.random.default_rng(m)
    tries = 1500
    found = [value(audit("a", rng.normal(size=m), coins(rng, m), DELTA)) for _ in range(tries)]
    assert np.mean([bound > 0 for bound in found if not math.isnan(bound)]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / tries)


@pytest.mark.parametrize(("m", "epsilon", "least"), [(100, 2.0, 1.0), (500, 2.0, 1.45), (500, 0.5, 0.1)])
def test_of_randomised_response_the_bound_is_seldom_too_high_and_not_idle(m, epsilon, least):
    """Each coin is told truly with odds e^ε, which is ε-DP exactly; sizes of the scores are noise."""
    rng = np.random.default_rng(m)
    found = []
    for _ in range(800):
        member = coins(rng, m)
        told = member ^ (rng.random(m) < 1 / (1 + math.exp(epsilon)))
        found.append(value(audit("a", np.where(told, 1, -1) * rng.random(m), member, DELTA)))
    assert np.mean(np.array(found) > epsilon) <= 0.05
    assert np.mean(found) >= least


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_a_leak_of_some_or_of_all_is_found(share):
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        member = coins(rng, 400)
        found.append(value(audit("a", rng.normal(size=400) + 8 * (member & (rng.random(400) < share)), member, DELTA)))
    assert np.mean(found) > {0.1: 0.5, 0.3: 2.0, 1.0: 4.0}[share]


def test_canaries_sorted_by_their_coins_and_scored_alike_show_nothing():
    member = np.arange(200) < 100
    for mask in (member, ~member):
        assert value(audit("a", np.zeros(200), mask, DELTA)) == 0


@given(st.permutations(range(40)), st.integers(0, 2**32))
def test_order_and_monotone_transforms_change_nothing(order, seed):
    rng = np.random.default_rng(seed)
    scores, member = rng.integers(-5, 6, 40).astype(float) + rng.integers(0, 2, 40), coins(rng, 40)
    found = repr(audit("a", scores, member, DELTA))
    assert repr(audit("a", scores[list(order)], member[list(order)], DELTA)) == found
    assert repr(audit("a", np.exp(scores), member, DELTA)) == found
    assert repr(audit("a", np.where(scores == scores.min(), -math.inf, scores), member, DELTA)) == found


def test_what_the_metrics_say():
    member = np.arange(100) % 2 == 0
    low, top = audit("audit.student", member + np.linspace(0, 0.1, 100), member, DELTA)
    assert (low.name, top.name) == ("audit.student.epsilon_low", "audit.student.epsilon_ceiling")
    assert low.value == low.ci_low == top.value
    assert low.ci_high == math.inf
    assert low.n == top.n == 100
    assert low.measured
    assert top.value < ceiling(100, DELTA)
    assert not low.internal
    assert all(metric.internal for metric in audit("a", member, member, DELTA, internal=True))
    for bound, passes in (("value", True), ("ci_high", False)):
        rule = GateRule(metric="audit.student.epsilon_low", bound=bound, op="<=", value=100)
        assert decide([low, top], GateConfig(rules=(rule,)), lessons=1, defended=True).passed is passes


@pytest.mark.parametrize("what", ["a NaN", "no member", "no non-member", "no canary"])
def test_nothing_to_measure_is_missing(what):
    scores, member = np.arange(20.0), np.arange(20) % 2 == 0
    if what == "a NaN":
        scores[3] = math.nan
    elif what == "no canary":
        scores, member = scores[:0], member[:0]
    else:
        member[:] = what == "no non-member"
    assert not any(metric.measured for metric in audit("a", scores, member, DELTA))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one length"):
        audit("a", [1.0, 2.0], [True], DELTA)


LETTERS = st.sampled_from("abc")


@given(st.lists(LETTERS, max_size=8), st.lists(st.lists(LETTERS, max_size=12), max_size=3))
def test_longest_runs_against_trying_all(sentence, texts):
    runs = [
        end - start
        for start in range(len(sentence))
        for end in range(start + 1, len(sentence) + 1)
        for text in texts
        for at in range(len(text))
        if text[at : at + end - start] == sentence[start:end]
    ]
    found = longest_runs([" ".join(sentence)], [", ".join(text) for text in texts])
    assert found == [max(runs, default=0)]
