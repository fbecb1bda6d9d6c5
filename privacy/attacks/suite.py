"""The attacks by what they are on, each group with the models it needs: groups can be run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np

from tutelage.configs.progress import Bar
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
    attacks = [attack for name, attack in _ATTACKS[surface].items() if name in config.run]
    if surface == "one_run" and "one_run" in config.run:
        attacks.append(partial(one_run.attack, delta=delta))
    if surface == "lessons":
        attacks.append(_in_lessons)
    if surface == "student" and gain is not None:
        attacks.append(partial(_ranked, gain, config.ranked_canaries))
    found = []
    with Bar(len(attacks)) as bar:
        for attack in attacks:
            found.append(attack(released, controls, settings))
            bar.update()
    return merged(*found)


def _in_lessons(released: Released, controls: Controls, settings: Settings) -> Found:
    return Found(tuple(exposure.text_exposure(controls.canaries, released.texts)))


def _ranked(
    gain: Callable[[Sequence[str]], np.ndarray],
    canaries: int,
    released: Released,
    controls: Controls,
    settings: Settings,
) -> Found:
    ranks = exposure.attack(controls.canaries[:canaries], gain, n_resamples=settings.resamples, seed=settings.seed)
    return Found(tuple(ranks.metrics))
