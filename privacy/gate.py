"""The gate: a recipe's rules over a round's metrics. Closed unless every rule is shown to hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tutelage.configs.records import GateDecision, Metric, RuleOutcome
from tutelage.configs.schema import GateConfig, GateRule


def decide(metrics: Sequence[Metric], config: GateConfig, *, lessons: int, defended: bool) -> GateDecision:
    """Whether a round's student may be published.

    Refuses where a rule's figure is missing, NaN or infinite (a NaN in its interval included) or rests on fewer items
    than the rule asks for, where any name was measured twice, and where there are no lessons, no rules or nothing that
    protects the records. Where an ε is certified, refuses also if an audit shows a larger one, or tried and could not
    measure. The order of metrics and of rules makes no difference.

    Args:
        metrics: Everything the round measured.
        config: The recipe's rules.
        lessons: How many lessons were released.
        defended: Whether a screen or a formal mechanism stood between records and lessons (`Recipe.defended`).

    Returns:
        The decision, with one outcome for each standing condition and then one for each rule.
    """
    counts = Counter(metric.name for metric in metrics)
    by_name = {metric.name: metric for metric in metrics if counts[metric.name] == 1}
    twice = sum(count > 1 for count in counts.values())
    outcomes = (
        _standing("released lessons >= 1", lessons, 1, lessons >= 1),
        _standing("gate rules >= 1", len(config.rules), 1, len(config.rules) >= 1),
        _standing("metrics measured twice <= 0", twice, 0, twice == 0),
        *([] if defended else [_UNDEFENDED]),
        *_audits(by_name),
        *(_apply(rule, by_name, counts) for rule in config.rules),
    )
    return GateDecision(passed=all(outcome.passed for outcome in outcomes), outcomes=outcomes)


_UNDEFENDED = RuleOutcome(
    rule="protections between records and lessons >= 1",
    observed=0,
    threshold=1,
    passed=False,
    reason="copies of records are not dropped (screen.compare is off), and no mechanism rules them out",
)


def rule_in_words(rule: GateRule) -> str:
    """E.g. `accuracy.student (ci_low) - accuracy.zero_shot >= 0.05 with n >= 100`."""
    bound = "" if rule.bound == "value" else f" ({rule.bound})"
    minus = f" - {rule.minus}" if rule.minus is not None else ""
    least = f" with n >= {rule.min_n}" if rule.min_n > 1 else ""
    return f"{rule.metric}{bound}{minus} {rule.op} {rule.value:g}{least}"


def _standing(condition: str, observed: int, threshold: int, passed: bool) -> RuleOutcome:
    return RuleOutcome(
        rule=condition, observed=observed, threshold=threshold, passed=passed, reason=f"there are {observed}"
    )


def _audits(metrics: Mapping[str, Metric]) -> list[RuleOutcome]:
    """An audit that shows a larger ε than is certified, or a mechanism that moves more: the code is wrong."""
    claimed = metrics.get("epsilon.claimed")
    if claimed is None:
        return []
    most = {"audit.student.epsilon_low": claimed.value, "audit.lessons.epsilon_low": claimed.value}
    most["audit.mechanism.shift_ratio"] = 1 + ROUNDING
    rules = [GateRule(metric=name, op="<=", value=value) for name, value in most.items() if name in metrics]
    return [_apply(rule, metrics, {}) for rule in rules]


ROUNDING = 1e-3
"""What sums in another order may add to a shift, relative to it."""


def _apply(rule: GateRule, metrics: Mapping[str, Metric], counts: Mapping[str, int]) -> RuleOutcome:
    needed: list[tuple[str, str]] = [(rule.metric, rule.bound)]
    if rule.minus is not None:
        needed.append((rule.minus, "value"))
    obstacles = [_obstacle(name, bound, rule.min_n, metrics, counts) for name, bound in needed]
    if not math.isfinite(rule.value):
        obstacles.append("the rule's threshold is not a finite number")
    reason = next((obstacle for obstacle in obstacles if obstacle), None)
    observed, passed = None, False
    if reason is None:
        figure, *minus = (getattr(metrics[name], bound) for name, bound in needed)
        observed = float(figure - sum(minus))
        passed = observed >= rule.value if rule.op == ">=" else observed <= rule.value
        passed = passed and math.isfinite(observed)  # two finite figures may differ by more than a float holds
        reason = f"{observed:.4g} {'meets' if passed else 'does not meet'} {rule.op} {rule.value:g}"
    return RuleOutcome(rule=rule_in_words(rule), observed=observed, threshold=rule.value, passed=passed, reason=reason)


def _obstacle(
    name: str, bound: str, min_n: int, metrics: Mapping[str, Metric], counts: Mapping[str, int]
) -> str | None:
    """Why a figure can't be compared, or None."""
    metric = metrics.get(name)
    if metric is None:
        return f"{name} was measured twice" if name in counts else f"{name} is missing"
    if not metric.measured:
        return f"{name} could not be measured"
    if metric.n < min_n:
        return f"{name} rests on {metric.n} items, {min_n} are asked for"
    if not math.isfinite(getattr(metric, bound)):
        return f"{name} ({bound}) is infinite"
    return None
