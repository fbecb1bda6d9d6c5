"""What an ε buys before it is spent: clip, batch, tokens and texts, and which setting is the bottleneck."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tutelage.configs.schema import (
    ClassificationTask,
    PrivateEvolutionPrivacy,
    PrivatePredictionPrivacy,
    Recipe,
)
from tutelage.privacy import accounting
from tutelage.privacy.allocation import Allocation
from tutelage.privacy.histogram import noise_of
from tutelage.teachers import private

ENOUGH_CLIP = 1.0
"""Logits by which a private prompt may at least differ from the public one for its content to show (InvisibleInk's
experiments have C around 1 and above)."""


@dataclass(frozen=True)
class Bargain:
    """For the smallest silo. Labels are taken to be equally frequent: how often each occurs is the silo's secret."""

    mechanism: str
    unit: str
    units: int
    epsilon: float
    delta: float
    adjacency: str
    rho: float
    """zCDP of the whole run."""
    texts: int
    """Lessons of a silo and round, at most."""
    tokens: int
    """T, of one text."""
    batch: float
    """B: units behind one text. 0 for votes."""
    clip: float
    """C, in logits. 0 for votes."""
    sigma: float
    """Noise of a vote's counts, in units. 0 where nobody votes."""
    label_counts_sigma: float
    units_used: int
    """Of a silo, in a round."""
    bottleneck: str


def bargain(recipe: Recipe, units: int) -> Bargain | None:
    """What the recipe's ε buys a silo of that many units; None where lessons are screened only.

    Raises:
        UserError: the silo has too few units, or δ is too large for it.
    """
    privacy = recipe.formal
    if privacy is None:
        return None
    allocation = Allocation.of(recipe, units)
    labels = len(recipe.task.labels) if isinstance(recipe.task, ClassificationTask) else 1
    common: dict[str, Any] = {
        "mechanism": privacy.mechanism,
        "unit": privacy.unit,
        "units": units,
        "epsilon": privacy.epsilon,
        "delta": allocation.delta,
        "adjacency": accounting.ADJACENCY,
        "rho": allocation.label_counts + recipe.rounds * (allocation.vote + allocation.teach),
        "texts": labels * recipe.teach.prompts_per_label,
        "tokens": recipe.teach.max_new_tokens,
        "label_counts_sigma": noise_of(allocation.label_counts),
    }
    if isinstance(privacy, PrivateEvolutionPrivacy):
        sigma = noise_of(allocation.teach / privacy.iterations)
        said = _votes_bottleneck(privacy, units / (labels * privacy.candidates_per_label), sigma)
        return Bargain(**common, batch=0, clip=0, sigma=sigma, units_used=units, bottleneck=said)
    _, examples = private.mechanisms(allocation.teach, recipe.teach)
    [batch, *_] = private.divisors(recipe.task, {}, privacy.batch_units)
    used = private.units_used(units, recipe.teach.prompts_per_label, privacy)
    return Bargain(
        **common,
        batch=batch,
        clip=examples.clip(batch),
        sigma=noise_of(allocation.vote),
        units_used=used,
        bottleneck=_clip_bottleneck(recipe, privacy, units, labels, examples.sensitivity),
    )


def _clip_bottleneck(
    recipe: Recipe, privacy: PrivatePredictionPrivacy, units: int, labels: int, sensitivity: float
) -> str:
    if sensitivity == 0:
        return "privacy.epsilon: at 0 no private record has a part in a lesson"
    if sensitivity * privacy.batch_units / labels >= ENOUGH_CLIP:
        return f"none: the clip is {ENOUGH_CLIP:g} logit or more"
    wanted = math.ceil(labels * ENOUGH_CLIP / sensitivity)
    if recipe.teach.prompts_per_label * wanted + privacy.instruction_units <= units:
        return f"privacy.batch_units: {wanted} would give a clip of {ENOUGH_CLIP:g} logit, and the silo has units left"
    batches = (units - privacy.instruction_units) // wanted
    if batches:
        return (
            f"teach.prompts_per_label: {batches}, with privacy.batch_units {wanted}, would give {ENOUGH_CLIP:g} logit"
        )
    return (
        "the silo's size: even all its units behind one batch give less; raise privacy.epsilon, or lower "
        "teach.max_new_tokens"
    )


def _votes_bottleneck(privacy: PrivateEvolutionPrivacy, votes: float, sigma: float) -> str:
    """A vote tells candidates apart where their counts differ by more than the noise."""
    if sigma == 0:
        return "privacy.epsilon: at 0 nobody votes"
    if votes >= sigma:
        return f"none: a candidate gets {votes:.1f} votes on average, the noise is {sigma:.1f}"
    if privacy.iterations > 1:
        return (
            f"privacy.iterations: a candidate gets {votes:.1f} votes on average and the noise is {sigma:.1f}; "
            f"one vote would have {sigma / math.sqrt(privacy.iterations):.1f}"
        )
    return f"privacy.candidates_per_label: a candidate gets {votes:.1f} votes on average, the noise is {sigma:.1f}"
