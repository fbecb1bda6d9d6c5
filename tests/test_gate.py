"""The gate refuses whatever it can't see to be right."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.configs.records import Metric
from tutelage.configs.schema import GateConfig, GateRule
from tutelage.privacy.attacks.overlap_audit import combine, summarise
from tutelage.privacy.gate import decide

NAMES = ("a", "b", "c", "d")
FINITE = st.floats(-10, 10)


def metric(name: str, value: float, low: float | None = None, high: float | None = None) -> Metric:
    return Metric(
        name=name,
        value=value,
        ci_low=value - 1 if low is None else low,
        ci_high=value + 1 if high is None else high,
        n=10,
    )


METRICS = st.fixed_dictionaries({name: FINITE for name in NAMES}).map(
    lambda values: [metric(name, value) for name, value in values.items()]
)
RULES = st.lists(
    st.builds(
        GateRule,
        metric=st.sampled_from(NAMES),
        bound=st.sampled_from(["value", "ci_low", "ci_high"]),
        minus=st.sampled_from([None, *NAMES]),
        op=st.sampled_from([">=", "<="]),
        value=FINITE,
    ),
    min_size=1,
    max_size=4,
).map(tuple)


def holds(rule: GateRule, metrics: list[Metric]) -> bool:
    by_name = {m.name: m for m in metrics}
    left = {"value": 0.0, "ci_low": -1.0, "ci_high": 1.0}[rule.bound] + by_name[rule.metric].value
    right = by_name[rule.minus].value if rule.minus else 0.0
    return left - right >= rule.value if rule.op == ">=" else left - right <= rule.value


@settings(deadline=None)
@given(METRICS, RULES)
def test_passes_exactly_when_every_rule_holds(metrics, rules):
    decision = decide(metrics, GateConfig(rules=rules), lessons=5, defended=True)
    assert decision.passed == all(holds(rule, metrics) for rule in rules)
    assert [o.passed for o in decision.outcomes[-len(rules) :]] == [holds(rule, metrics) for rule in rules]


@settings(deadline=None)
@given(METRICS, RULES, st.randoms(use_true_random=False))
def test_order_is_irrelevant(metrics, rules, rng: random.Random):
    shuffled_metrics, shuffled_rules = list(metrics), list(rules)
    rng.shuffle(shuffled_metrics)
    rng.shuffle(shuffled_rules)
    first = decide(metrics, GateConfig(rules=rules), lessons=1, defended=True)
    second = decide(shuffled_metrics, GateConfig(rules=tuple(shuffled_rules)), lessons=1, defended=True)
    assert first.passed == second.passed
    assert sorted(map(repr, first.outcomes)) == sorted(map(repr, second.outcomes))


@settings(deadline=None)
@given(
    METRICS,
    RULES,
    st.sampled_from(["value", "ci_low", "ci_high", "absent", "infinite", "minus infinite", "twice"]),
    st.data(),
)
def test_a_figure_that_a_rule_needs_and_that_is_not_there_refuses(metrics, rules, fault, data):
    rule = data.draw(st.sampled_from(rules))
    name = data.draw(st.sampled_from([rule.metric] + ([rule.minus] if rule.minus else [])))
    broken = []
    for m in metrics:
        if m.name != name:
            broken.append(m)
        elif fault in ("value", "ci_low", "ci_high"):
            broken.append(m.model_copy(update={fault: math.nan}))
        elif fault in ("infinite", "minus infinite"):
            end = math.inf if fault == "infinite" else -math.inf
            broken.append(m.model_copy(update={"value": end, "ci_low": end, "ci_high": end}))
        elif fault == "twice":
            broken += [m, m]
    decision = decide(broken, GateConfig(rules=rules), lessons=5, defended=True)
    assert not decision.passed
    outcome = decision.outcomes[3 + rules.index(rule)]
    assert (outcome.passed, outcome.observed) == (False, None)
    assert name in outcome.reason


@settings(deadline=None)
@given(METRICS, RULES, st.sampled_from(NAMES), st.floats(0, 5))
def test_monotone_in_every_metric(metrics, rules, name, step):
    # raising a metric that rules only want high (and subtract nowhere) never turns a pass into a refusal
    rules = tuple(r.model_copy(update={"op": ">=", "minus": None if r.minus == name else r.minus}) for r in rules)
    raised = [metric(m.name, m.value + step) if m.name == name else m for m in metrics]
    config = GateConfig(rules=rules)
    assert (
        decide(raised, config, lessons=1, defended=True).passed
        >= decide(metrics, config, lessons=1, defended=True).passed
    )


PASSING = GateConfig(rules=(GateRule(metric="a", op=">=", value=0),))


def test_standing_conditions():
    good = [metric("a", 1)]
    assert decide(good, PASSING, lessons=1, defended=True).passed
    assert not decide(good, PASSING, lessons=0, defended=True).passed
    assert not decide(good, GateConfig.model_construct(rules=()), lessons=1, defended=True).passed
    # a name measured twice refuses even where no rule uses it
    assert not decide([*good, metric("z", 1), metric("z", 1)], PASSING, lessons=1, defended=True).passed
    assert not decide([], PASSING, lessons=1, defended=True).passed


def test_a_run_that_nothing_protected_never_passes():
    decision = decide([metric("a", 1)], PASSING, lessons=1, defended=False)
    assert not decision.passed
    (refusal,) = (one for one in decision.outcomes if not one.passed)
    assert "screen.compare" in refusal.reason


def test_only_the_compared_bound_must_be_finite():
    single = metric("a", 1, -math.inf, math.inf)
    assert decide([single], PASSING, lessons=1, defended=True).passed
    on_bound = GateConfig(rules=(GateRule(metric="a", bound="ci_high", op=">=", value=0),))
    assert not decide([single], on_bound, lessons=1, defended=True).passed


@pytest.mark.parametrize("threshold", [math.nan, -math.inf])
def test_a_threshold_that_refuses_nothing_refuses(threshold):
    config = GateConfig(
        rules=(GateRule.model_construct(metric="a", bound="value", minus=None, op=">=", value=threshold),)
    )
    assert not decide([metric("a", 1)], config, lessons=1, defended=True).passed


def test_a_difference_too_large_for_a_float_refuses():
    config = GateConfig(rules=(GateRule(metric="a", minus="b", op=">=", value=0),))
    assert not decide([metric("a", 1.7e308), metric("b", -1.7e308)], config, lessons=1, defended=True).passed


def test_a_rule_in_words():
    config = GateConfig(rules=(GateRule(metric="a", bound="ci_low", minus="b", op=">=", value=0.05),))
    outcome = decide([metric("a", 1, 0.75, 1), metric("b", 0.5)], config, lessons=1, defended=True).outcomes[-1]
    assert outcome.rule == "a (ci_low) - b >= 0.05"
    assert outcome.reason == "0.25 meets >= 0.05"
    assert (outcome.observed, outcome.threshold) == (0.25, 0.05)


def test_too_few_items_refuse():
    seen = [metric("a", 1), metric("b", 1).model_copy(update={"n": 99})]
    for least, minus, passed in ((10, None, True), (11, None, False), (10, "b", True), (11, "b", False)):
        rule = GateRule(metric="a", minus=minus, op="<=", value=5, min_n=least)
        decision = decide(seen, GateConfig(rules=(rule,)), lessons=1, defended=True)
        assert decision.passed == passed
        if not passed:
            assert decision.outcomes[-1].observed is None
            assert decision.outcomes[-1].reason == "a rests on 10 items, 11 are asked for"
            assert decision.outcomes[-1].rule.endswith("<= 5 with n >= 11")


@pytest.mark.parametrize("name", ["audit.student.epsilon_low", "audit.lessons.epsilon_low"])
def test_an_audit_above_the_certified_epsilon_refuses_whatever_the_rules_are(name: str):
    config = GateConfig(rules=(GateRule(metric="a", op="<=", value=5),))
    for measured, claimed, passed in ((3.9, 4.0, True), (4.1, 4.0, False), (math.nan, 4.0, False), (9.0, None, True)):
        seen = [metric("a", 1), metric(name, measured, measured, math.inf)]
        seen += [] if claimed is None else [metric("epsilon.claimed", claimed, claimed, claimed)]
        decision = decide(seen, config, lessons=1, defended=True)
        assert decision.passed == passed
        assert (f"{name} <= 4" in [one.rule for one in decision.outcomes]) == (claimed is not None)


def test_a_mechanism_that_does_not_clip_refuses():
    config = GateConfig(rules=(GateRule(metric="a", op="<=", value=5),))
    for ratio, passed in ((0.4, True), (1.0 + 1e-6, True), (1.01, False), (math.nan, False)):
        seen = [metric("a", 1), metric("epsilon.claimed", 4), metric("audit.mechanism.shift_ratio", ratio)]
        assert decide(seen, config, lessons=1, defended=True).passed == passed


@dataclass(frozen=True)
class Measured:
    """Has the fields of `privacy.overlap.Overlap`, whose making takes real records and a model."""

    longest_run_tokens: int
    ngram_share: float
    jaccard: float
    cosine: float | None


HARMLESS, COPY = Measured(3, 0.0, 0.1, 0.4), Measured(40, 0.9, 0.8, 0.99)
OVERLAP_RULES = GateConfig(
    rules=(
        GateRule(metric="overlap.longest_run_max", op="<=", value=12),
        GateRule(metric="overlap.near_duplicate_share", op="<=", value=0.0),
        GateRule(metric="overlap.ngram_share", op="<=", value=0.0),
        GateRule(metric="overlap.cosine_max", op="<=", value=0.92),
    )
)


def test_one_silo_with_one_copy_is_enough_to_refuse():
    clean = {"a": summarise([HARMLESS] * 5), "b": summarise([HARMLESS] * 5)}
    metrics = combine(clean)
    assert decide(metrics, OVERLAP_RULES, lessons=5, defended=True).passed
    assert all(m.internal and m.n == 5 for m in metrics)
    decision = decide(
        combine({**clean, "b": summarise([HARMLESS] * 4 + [COPY])}), OVERLAP_RULES, lessons=5, defended=True
    )
    assert not any(outcome.passed for outcome in decision.outcomes[3:])


def test_meaning_is_reported_where_it_was_asked_for():
    figures = Measured(3, 0.0, 0.1, None)
    without = combine({s: summarise([figures] * 3) for s in "ab"})
    assert {m.name for m in without} == {
        "overlap.longest_run_max", "overlap.ngram_share", "overlap.near_duplicate_share",
    }  # fmt: skip
    assert all(m.measured for m in without)
    assert not decide(without, OVERLAP_RULES, lessons=3, defended=True).passed
    for half in ({"a": summarise([HARMLESS]), "b": summarise([figures])}, {"a": summarise([HARMLESS, figures])}):
        [cosine] = [m for m in combine(half) if m.name == "overlap.cosine_max"]
        assert not cosine.measured


def test_overlap_shares_are_upper_bounds():
    values = {m.name: m.value for m in combine({"a": summarise([COPY, HARMLESS]), "b": summarise([HARMLESS, COPY])})}
    assert values["overlap.ngram_share"] == 1
    assert values["overlap.longest_run_max"] == 40
    values = {m.name: m.value for m in combine({s: summarise([COPY, COPY, HARMLESS]) for s in "abc"})}
    assert values["overlap.near_duplicate_share"] == 1  # six hits on three lessons: never above all of them


@pytest.mark.parametrize(
    "summaries",
    [
        {},
        {"a": {}},
        {"a": summarise([])},
        {"a": summarise([HARMLESS]), "b": summarise([])},
        {"a": summarise([HARMLESS]), "b": summarise([HARMLESS] * 2)},
        {"a": summarise([HARMLESS]), "b": {"n": 1}},
        {"a": summarise([Measured(3, math.nan, math.nan, math.nan)]), "b": summarise([HARMLESS])},
    ],
    ids=["no silo", "no figures", "no lessons", "one silo without", "different sets", "half a summary", "NaN"],
)
def test_overlap_that_was_not_fully_measured_refuses(summaries):
    metrics = combine(summaries)
    assert not decide(metrics, OVERLAP_RULES, lessons=1, defended=True).passed
    assert not any(m.measured for m in metrics if m.name in ("overlap.cosine_max", "overlap.near_duplicate_share"))
