"""An attacker's own model, tuned on the released texts: what it gained on a control, the lessons taught it.

It needs no student, only what is released in any case, and an attacker trains it on whole texts where the student
learned labels. The score is that of `mia.gain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import Controls, Found, Released, Scorer, Settings, TokenScores
from tutelage.privacy.attacks.membership import judge_texts, mean_gain, whole_text


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by `synthetic.auxiliary`: the auxiliary model less the base, nats per token of the whole text.

    Missing without an auxiliary model, or where a text has no token to score.
    """
    auxiliary, base = released.auxiliary, _Told(released.bare or released.base)
    gain = None if auxiliary is None else partial(mean_gain, _Told(auxiliary), base)
    return judge_texts("synthetic.auxiliary", controls, gain, settings)


class _Told:
    """A scorer of whole texts as answers to nothing, which is how the attacker's model was tuned."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def score(self, examples: Sequence[Example]) -> list[TokenScores]:
        told = [one.model_copy(update={"prompt": "", "completion": whole_text(one)}) for one in examples]
        return self.scorer.score(told)
