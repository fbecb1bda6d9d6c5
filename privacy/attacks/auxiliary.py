"""An attacker's own model, tuned on the released texts: what it gained on a control, the lessons taught it.

It needs no student, only what is released in any case, and an attacker trains it on whole texts where the student
learned labels. The score is that of `mia.gain`.
"""

from __future__ import annotations

from functools import partial

from tutelage.privacy.attacks.base import Controls, Found, Released, Settings
from tutelage.privacy.attacks.membership import judge_texts, mean_gain


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by `synthetic.auxiliary`: the auxiliary model less the base, nats per token of the whole text.

    Missing without an auxiliary model, or where a text has no token to score.
    """
    auxiliary = released.auxiliary
    gain = None if auxiliary is None else partial(mean_gain, auxiliary, released.base)
    return judge_texts("synthetic.auxiliary", controls, gain, settings)
