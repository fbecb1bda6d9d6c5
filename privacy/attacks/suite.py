"""The attacks by what they are on, each group with the models it needs: groups can be run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

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

Surface = Literal["student", "lessons", "instruction", "one_run"]
"""What is attacked; `one_run` audits student and lessons by the canaries alone."""
SURFACES: tuple[Surface, ...] = get_args(Surface)

Attack = Callable[[Released, Controls, Settings], Found]

_ATTACKS: dict[Surface, dict[AttackName, Attack]] = {
    "student": {
        "loss": loss.attack,
        "zlib_ratio": zlib_ratio.attack,
        "min_k": min_k.attack,
        "rmia": rmia.attack,
        "extraction": extraction.attack,
    },
    "lessons": {"ngram": ngram.attack, "neighbour": neighbour.attack, "auxiliary": auxiliary.attack},
    "instruction": {"instruction": instruction.attack},
    "one_run": {},
}


def run(
    surface: Surface,
    config: AttackConfig,
    released: Released,
    controls: Controls,
    settings: Settings,
    *,
    delta: float,
    gain: Callable[[Sequence[str]], np.ndarray] | None,
) -> Found:
    """The recipe's attacks on one surface, and the exposure of the canaries on student and lessons.

    Args:
        surface: Which; what is not of it need not be in `released`.
        config: Which attacks, and how many canaries are ranked.
        released: What the attacker has.
        controls: What is told apart.
        settings: Bootstrap and seed.
        delta: Of the guarantee in question, for the one-run audit.
        gain: How much likelier the student finds each plain text than its base does; None without a student.
    """
    found = [attack(released, controls, settings) for name, attack in _ATTACKS[surface].items() if name in config.run]
    if surface == "one_run" and "one_run" in config.run:
        found.append(one_run.attack(released, controls, settings, delta=delta))
    if surface == "lessons":
        found.append(Found(tuple(exposure.text_exposure(controls.canaries, released.texts))))
    if surface == "student" and gain is not None:
        ranked = controls.canaries[: config.ranked_canaries]
        ranks = exposure.attack(ranked, gain, n_resamples=settings.resamples, seed=settings.seed)
        found.append(Found(tuple(ranks.metrics)))
    return merged(*found)
