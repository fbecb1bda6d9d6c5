"""The student's loss: what a model was trained on, it finds likely.

`mia.loss` is the training objective itself, the mean loss of the completion's tokens (Yeom et al., Privacy Risk in
Machine Learning, CSF 2018). `mia.gain` is what the student gained over its base on the whole text, which
takes out how likely the text is anyway (Watson et al., On the Importance of Difficulty Calibration in Membership
Inference Attacks, ICLR 2022); where the completion is a label, only this sees the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import Controls, Found, Released, Scorer, Settings
from tutelage.privacy.attacks.membership import judge_texts, mean_gain, mean_logprob, merged


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by the student's loss.

    Returns:
        `mia.loss.*`: minus the mean loss in nats per completion token. `mia.gain.*`: student less base, in nats per
        token of the whole text. Missing without a student, or where a text has no token to score.
    """
    student = released.student
    loss = None if student is None else partial(_likelihoods, student)
    gain = None if student is None else partial(mean_gain, student, released.base)
    return merged(judge_texts("mia.loss", controls, loss, settings), judge_texts("mia.gain", controls, gain, settings))


def _likelihoods(student: Scorer, examples: Sequence[Example]) -> list[float]:
    return [mean_logprob(scores, completion=True) for scores in student.score(examples)]
