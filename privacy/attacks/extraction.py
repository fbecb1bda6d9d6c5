"""Extraction: given the beginning of a private text, does the student go on with it word for word?

Source: Carlini et al., Quantifying Memorization Across Neural Language Models (ICLR 2023): greedy decoding, 50 tokens,
by the length of the prefix. What is reproduced of texts that no teacher saw is boilerplate, or was in the base model's
own training: it stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.configs.records import Metric
from tutelage.privacy.attacks.base import Controls, Found, Released, Settings, TokenScores
from tutelage.privacy.stats import missing_metric, share_metric

PREFIXES = (16, 32, 64)
LENGTH = 50


def attack(
    released: Released,
    controls: Controls,
    settings: Settings,
    *,
    prefixes: Sequence[int] = PREFIXES,
    length: int = LENGTH,
) -> Found:
    """How many texts can be had from the student by their beginning.

    Args:
        released: Its student is asked.
        controls: Members and non-members: prompt, and behind it the completion.
        settings: Not used: nothing here is drawn.
        prefixes: Tokens shown, one pair of metrics each.
        length: Tokens that all must be the text's own.

    Returns:
        For each k of `prefixes` `extraction.prefix_K`, the share of members whose continuation is exact, and
        `extraction.prefix_K_out`, the same of the non-members. n leaves out texts too short to have k and `length`
        tokens. Missing without a text left, without a student, or where a token's score is NaN.
    """
    examples = [*controls.members, *controls.nonmembers]
    scores = released.student.score(examples) if released.student is not None and examples else []
    inside, outside = scores[: len(controls.members)], scores[len(controls.members) :]
    return Found(
        tuple(
            _share(f"extraction.prefix_{prefix}{side}", some, prefix, length)
            for prefix in prefixes
            for side, some in (("", inside), ("_out", outside))
        )
    )


def _share(name: str, scores: Sequence[TokenScores], prefix: int, length: int) -> Metric:
    end = prefix + length
    long = [one for one in scores if len(one.greedy) >= end]
    # a model that says NaN has no likeliest token: its text must not count as safe
    if any(np.isnan(one.logprobs[prefix:end]).any() for one in long):
        return missing_metric(name, n=len(long), internal=True)
    exact = sum(bool(one.greedy[prefix:end].all()) for one in long)
    return share_metric(name, exact, len(long), internal=True, exact=True, note=f"the next {length} tokens, greedily")
