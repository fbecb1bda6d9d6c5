"""An attacker's own model, tuned on the released texts: what it gained on a control, the lessons taught it.

It needs no student, only what is released in any case, and an attacker trains it on whole texts where the student
learned labels. The score is that of `mia.gain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import Controls, Floats, Found, Released, Scorer, Settings
from tutelage.privacy.attacks.membership import judge_texts, mean_gain, whole_text


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by `synthetic.auxiliary`: the auxiliary model less the base, nats per token of the whole text.

    Missing without an auxiliary model, or where a text has no token to score.
    """
    gain = None if released.auxiliary is None else partial(_gain, released.auxiliary, released.bare or released.base)
    return judge_texts("synthetic.auxiliary", controls, gain, settings)


def _gain(auxiliary: Scorer, base: Scorer, examples: Sequence[Example]) -> Floats:
    # as it was tuned: whole texts, as answers to nothing
    told = [one.model_copy(update={"prompt": "", "completion": whole_text(one)}) for one in examples]
    return mean_gain(auxiliary, base, told)
