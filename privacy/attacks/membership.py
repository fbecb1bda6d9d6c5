"""Membership inference: from one score per text to an AUC, the share found at few false alarms, and a ROC curve.

Every attack that tells members from non-members comes down to a score, higher for what looks like a member; it is
judged here, the same way for all. What is shared by the scores themselves stands here too.

Source of the measures: Carlini et al., Membership Inference Attacks From First Principles (S&P 2022), who ask for the
members found at few false alarms: an average over all texts hides the few that are surely told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from tutelage.configs.records import Curve, Example, Metric
from tutelage.privacy.attacks.base import Controls, Floats, Found, Scorer, Settings, TokenScores
from tutelage.privacy.canaries import Canary
from tutelage.privacy.stats import auc_metric, missing_metric, share_metric

FALSE_ALARMS = {"tpr_at_1pct": 0.01, "tpr_at_01pct": 0.001}
"""Metric -> the share of non-members that may be flagged."""
OTHERS = 4
"""How many other candidates a canary's true one is compared with: they cost a model call each."""
_CURVE_POINTS = 200
_RESAMPLE_CELLS = 1_000_000
"""Counts held at a time by the bootstrap: 8 MB per copy."""


def judge(name: str, members: ArrayLike, nonmembers: ArrayLike, settings: Settings, *, internal: bool) -> Found:
    """How well scores tell members from non-members.

    Args:
        name: The attack's, e.g. `mia.loss`; the metrics' first part.
        members: `(m,)`, higher = more like a member. Infinite is allowed, it is only compared.
        nonmembers: `(n,)`.
        settings: For the bootstrap. The order of the scores changes nothing.
        internal: Whether the scores are of real private records.

    Returns:
        `NAME.auc`, ties at one half. Its interval is at each end the wider of a stratified percentile bootstrap's and
        Newcombe's; Newcombe's alone where all resamples agree, as under perfect separation. Alone the bootstrap is far
        too short where few texts are almost separated: of 20 and 20 normal scores 2.5 apart, 13% of its lower ends lay
        above the true area, and none of Newcombe's.
        `NAME.tpr_at_1pct` and `NAME.tpr_at_01pct`: the largest share of members above one threshold that flags at
        most that share of the non-members at hand; equal scores are flagged together or not at all. Clopper and
        Pearson's interval takes that threshold as given. With fewer than 100 or 1,000 non-members it is missing:
        "no false alarm" would then be all that could be asked for.
        The curve. All missing, and no curve, where a side is empty or a score is NaN.
    """
    inside = np.sort(np.asarray(members, dtype=np.float64))
    outside = np.sort(np.asarray(nonmembers, dtype=np.float64))
    if min(inside.size, outside.size) == 0 or np.isnan(inside).any() or np.isnan(outside).any():
        metrics = [missing_metric(f"{name}.auc", n=inside.size + outside.size, internal=internal)]
        metrics += [missing_metric(f"{name}.{one}", n=inside.size, internal=internal) for one in FALSE_ALARMS]
        return Found(tuple(metrics))
    shares = (_share(f"{name}.{one}", inside, outside, rate, internal) for one, rate in FALSE_ALARMS.items())
    curve = roc(name, inside, outside, internal=internal)
    return Found((_area(f"{name}.auc", inside, outside, settings, internal), *shares), (curve,))


def judge_texts(
    name: str,
    controls: Controls,
    score: Callable[[Sequence[Example]], ArrayLike] | None,
    settings: Settings,
) -> Found:
    """Judge an attack on members and non-members; internal, since they are real records.

    Args:
        name: The attack's.
        controls: Their members and non-members are scored, in one call.
        score: One number for each example, higher = more like a member. None where the model it needs is missing:
            then so are all metrics.
        settings: For the bootstrap.
    """
    if score is None or not (controls.members and controls.nonmembers):
        return judge(name, (), (), settings, internal=True)
    scores = np.asarray(score([*controls.members, *controls.nonmembers]), dtype=np.float64)
    if scores.shape != (len(controls.members) + len(controls.nonmembers),):
        raise ValueError(f"{name}: as many scores as controls are needed, not {scores.shape}")
    split = len(controls.members)
    return judge(name, scores[:split], scores[split:], settings, internal=True)


def roc(name: str, members: ArrayLike, nonmembers: ArrayLike, *, internal: bool) -> Curve:
    """The ROC curve, from no false alarm to all.

    It is a step function: for each share of false alarms the most members a threshold finds, and between two points
    the left one's holds. Of more than 200 points the first 100 are kept, so all at few false alarms, and of the rest
    ever fewer towards the right, with the last.

    Args:
        name: The attack's.
        members: `(m,)` scores without NaN, m > 0.
        nonmembers: `(n,)`, n > 0.
        internal: As a metric's.
    """
    inside, outside = np.sort(np.asarray(members, dtype=np.float64)), np.sort(np.asarray(nonmembers, dtype=np.float64))
    # flagged is what scores above a non-member's score; and at last everything
    levels = np.unique(outside)[::-1]
    alarms = np.append(outside.size - np.searchsorted(outside, levels, side="right"), outside.size)
    found = np.append(inside.size - np.searchsorted(inside, levels, side="right"), inside.size)
    kept = np.arange(alarms.size)
    if kept.size > _CURVE_POINTS:
        half = _CURVE_POINTS // 2
        kept = np.unique(np.concatenate([kept[:half], np.geomspace(half, kept[-1], half).round().astype(int)]))
    return Curve(
        name=name,
        fpr=tuple((alarms[kept] / outside.size).tolist()),
        tpr=tuple((found[kept] / inside.size).tolist()),
        members=inside.size,
        nonmembers=outside.size,
        internal=internal,
    )


def merged(*found: Found) -> Found:
    """What several attacks found, as one."""
    return Found(
        tuple(metric for one in found for metric in one.metrics),
        tuple(curve for one in found for curve in one.curves),
    )


def whole_text(example: Example) -> str:
    """Prompt and completion, a line end between."""
    return f"{example.prompt}\n{example.completion}"


def mean_logprob(scores: TokenScores, *, completion: bool = False) -> float:
    """Mean log-probability in nats per token, of all tokens or of the completion's; NaN without any."""
    return mean_of(scores.logprobs[max(0, scores.completion) :] if completion else scores.logprobs)


def mean_of(logprobs: Floats) -> float:
    """Their mean; NaN without any."""
    return float(np.mean(logprobs)) if len(logprobs) else math.nan


def mean_gain(model: Scorer, base: Scorer, examples: Sequence[Example]) -> Floats:
    """How much likelier a model finds each example than its base does: `(n,)`, nats per token."""
    after, before = (np.array([mean_logprob(one) for one in each.score(examples)]) for each in (model, base))
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and NaN is missing
        return after - before


def contrasts(
    canaries: Sequence[Canary],
    example: Callable[[Canary, int], Example],
    gain: Callable[[Sequence[Example]], ArrayLike],
) -> Floats:
    """How much more the true candidate of each canary gains than the mean of a few others.

    What carrier and form gain cancels. The others are those next to the true one in the candidates' order, `OTHERS` of
    them where there are so many. The score looks at no coin, so without a leak members and non-members get it from
    one distribution. Of a canary with one candidate it is that one's gain.

    Args:
        canaries: Any number of them.
        example: A canary's example with the candidate of that index.
        gain: One number for each example; called once.

    Returns:
        `(canaries,)`, in the gain's unit.
    """
    chosen = [
        [(canary.index + step) % len(canary.candidates) for step in range(min(OTHERS + 1, len(canary.candidates)))]
        for canary in canaries
    ]
    examples = [example(canary, i) for canary, own in zip(canaries, chosen, strict=True) for i in own]
    gains = np.asarray(gain(examples) if examples else [], dtype=np.float64)
    if gains.shape != (len(examples),):
        raise ValueError(f"{len(examples)} examples need as many scores, not {gains.shape}")
    groups = np.split(gains, np.cumsum([len(own) for own in chosen])[:-1]) if chosen else []
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and NaN is missing
        return np.array([own[0] - (own[1:].mean() if len(own) > 1 else 0.0) for own in groups])


def _area(name: str, inside: Floats, outside: Floats, settings: Settings, internal: bool) -> Metric:
    metric = auc_metric(name, inside.tolist(), outside.tolist(), internal=internal)
    areas = _resampled_areas(inside, outside, settings)
    if areas.size == 0 or np.ptp(areas) == 0:
        return metric
    low, high = np.quantile(areas, [0.025, 0.975])
    return metric.model_copy(
        update={
            "ci_low": min(metric.ci_low, float(low)),
            "ci_high": max(metric.ci_high, float(high)),
            "interval": f"95% bootstrap ({settings.resamples}) or Newcombe, the wider at each end",
        }
    )


def _resampled_areas(inside: Floats, outside: Floats, settings: Settings) -> Floats:
    """`(resamples,)` areas under the curve; members and non-members, both sorted, are each drawn anew."""
    rng = np.random.default_rng(settings.seed)
    below = np.searchsorted(outside, inside, side="left")
    not_above = np.searchsorted(outside, inside, side="right")
    rows = max(1, _RESAMPLE_CELLS // (inside.size + outside.size))
    areas = [np.zeros(0)]
    for start in range(0, settings.resamples, rows):
        count = min(rows, settings.resamples - start)
        drawn = rng.multinomial(inside.size, np.full(inside.size, 1 / inside.size), count)  # (count, m)
        against = rng.multinomial(outside.size, np.full(outside.size, 1 / outside.size), count)  # (count, n)
        up_to = np.concatenate([np.zeros((count, 1)), against.cumsum(axis=1)], axis=1)  # (count, n + 1)
        wins = (up_to[:, below] + up_to[:, not_above]) / 2
        areas.append((drawn * wins).sum(axis=1) / (inside.size * outside.size))
    return np.concatenate(areas)


def _share(name: str, inside: Floats, outside: Floats, rate: float, internal: bool) -> Metric:
    needed = round(1 / rate)
    if outside.size < needed:
        missing = missing_metric(name, n=inside.size, internal=internal)
        return missing.model_copy(update={"interval": f"none: needs {needed} non-members, there are {outside.size}"})
    allowed = int(rate * outside.size + 1e-9)  # rounding must not take one from a whole number
    # every threshold at or below this score flags one non-member too many
    threshold = outside[outside.size - 1 - allowed]
    return share_metric(
        name,
        int((inside > threshold).sum()),
        inside.size,
        internal=internal,
        exact=True,
        # of exchangeable scores without ties, each is above that threshold with this probability
        note=f"at the threshold found; {(allowed + 1) / (outside.size + 1):.4f} with no leak",
    )
