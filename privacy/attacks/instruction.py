"""The released instruction: does it make the planted secrets likelier, or hold them outright?

The figures are about canaries, which are nobody's record, so they are not internal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import Controls, Floats, Found, Released, Scorer, Settings
from tutelage.privacy.attacks.membership import contrasts
from tutelage.privacy.attacks.one_run import longest_runs
from tutelage.privacy.canaries import Canary
from tutelage.privacy.similarity import words
from tutelage.privacy.stats import auc_metric, missing_metric, point_metric

_NAMES = ("instruction.canary_auc", "instruction.canary_verbatim", "instruction.canary_run_max")


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell planted canaries from the others by the instruction alone.

    The score of a canary is how much the instruction as a prompt raises the base model's log-likelihood of its true
    secret, less the same of other secrets it might have had: the sentence alone, since no more of the carrier than of
    the secret should have come into an instruction, and it would cost ten times as much.

    Args:
        released: Its instruction and its bare base are used: in one that has the instruction as its system prompt
            already it would stand on both sides of the difference.
        controls: Its canaries.
        settings: Not used: nothing here is drawn.

    Returns:
        `instruction.canary_auc`; `instruction.canary_verbatim`, how many planted secrets stand in the instruction word
        for word (any case, any white space and punctuation); `instruction.canary_run_max`, the longest run of words
        that one shares with it, the canaries' that were not planted beside it. Missing without an instruction or
        without a member; the AUC also without a non-member or with a NaN score.
    """
    members = [canary for canary in controls.canaries if canary.member]
    outside = [canary for canary in controls.canaries if not canary.member]
    if not released.instruction.strip() or not members:
        return Found(tuple(missing_metric(name, n=len(controls.canaries)) for name in _NAMES))
    scores = _scores(released.bare or released.base, released.instruction, [*members, *outside])
    runs, runs_out = (
        longest_runs([canary.secret for canary in some], [released.instruction]) for some in (members, outside)
    )
    verbatim = sum(run == len(words(canary.secret)) for run, canary in zip(runs, members, strict=True))
    beside = f"a maximum; {max(runs_out)} words of a canary that was not planted" if runs_out else "a maximum"
    return Found(
        (
            auc_metric(_NAMES[0], scores[: len(members)].tolist(), scores[len(members) :].tolist()),
            point_metric(_NAMES[1], verbatim, len(members), "a count"),
            point_metric(_NAMES[2], max(runs), len(members), beside),
        )
    )


def _scores(base: Scorer, instruction: str, canaries: Sequence[Canary]) -> Floats:
    def gain(examples: Sequence[Example]) -> Floats:
        bare = [one.model_copy(update={"prompt": ""}) for one in examples]
        given, alone = (
            np.array([logprobs.sum() for logprobs in base.completion_logprobs(each)]) for each in (examples, bare)
        )
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and NaN is missing
            return given - alone

    return contrasts(
        canaries,
        lambda canary, i: Example(id=canary.id, prompt=instruction, completion=f"{canary.candidates[i]}."),
        gain,
    )
