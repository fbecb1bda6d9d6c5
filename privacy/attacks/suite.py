"""All attacks by name, and all of a round's at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tutelage.configs.schema import AttackConfig, AttackName
from tutelage.privacy.attacks import (
    auxiliary,
    exposure,
    extraction,
    instruction,
    loss,
    min_k,
    neighbour,
    ngram,
    one_run,
    rmia,
    zlib_ratio,
)
from tutelage.privacy.attacks.base import Controls, Found, Released, Settings
from tutelage.privacy.attacks.membership import merged

Attack = Callable[[Released, Controls, Settings], Found]

_ATTACKS: dict[AttackName, Attack] = {
    "loss": loss.attack,
    "zlib_ratio": zlib_ratio.attack,
    "min_k": min_k.attack,
    "rmia": rmia.attack,
    "extraction": extraction.attack,
    "ngram": ngram.attack,
    "neighbour": neighbour.attack,
    "auxiliary": auxiliary.attack,
    "instruction": instruction.attack,
}


def run(name: AttackName, released: Released, controls: Controls, settings: Settings, *, delta: float) -> Found:
    """Run one attack.

    Args:
        name: Which.
        released: What the attacker has.
        controls: What is told apart.
        settings: Bootstrap and seed.
        delta: Of the guarantee in question, for the one-run audit.
    """
    if name == "one_run":
        return one_run.attack(released, controls, settings, delta=delta)
    return _ATTACKS[name](released, controls, settings)


def run_all(
    config: AttackConfig,
    released: Released,
    controls: Controls,
    settings: Settings,
    *,
    delta: float,
    gain: Callable[[Sequence[str]], np.ndarray] | None,
) -> Found:
    """Everything an attacker may try: the recipe's attacks, and the exposure of the canaries.

    Args:
        config: Which attacks, and how many canaries are ranked.
        released: What the attacker has.
        controls: What is told apart.
        settings: Bootstrap and seed.
        delta: As in `run`.
        gain: How much likelier the student finds each plain text than its base does; None without a student.
    """
    found = merged(*(run(name, released, controls, settings, delta=delta) for name in config.run))
    metrics = [*found.metrics, *exposure.text_exposure(controls.canaries, released.texts)]
    if gain is not None:
        ranked = controls.canaries[: config.ranked_canaries]
        metrics += exposure.attack(ranked, gain, n_resamples=settings.resamples, seed=settings.seed).metrics
    return Found(tuple(metrics), found.curves)
