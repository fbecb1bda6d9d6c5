"""All attacks by name."""

from __future__ import annotations

from collections.abc import Callable

from tutelage.configs.schema import AttackName
from tutelage.privacy.attacks import (
    auxiliary,
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
