"""The student's log-likelihood for each byte a compressor needs: what is likely because it is plain counts less.

Source: Carlini et al., Extracting Training Data from Large Language Models (USENIX Security 2021). Here the total
log-likelihood is divided, not the mean: both it and the compressed size grow with the text.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import partial

from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import Controls, Found, Released, Scorer, Settings, TokenScores
from tutelage.privacy.attacks.membership import judge_texts, whole_text


def attack(released: Released, controls: Controls, settings: Settings) -> Found:
    """Tell members by `mia.zlib`: nats per compressed byte of prompt and completion.

    Missing without a student, or where a text has no token to score.
    """
    student = released.student
    return judge_texts("mia.zlib", controls, None if student is None else partial(_ratios, student), settings)


def _ratios(student: Scorer, examples: Sequence[Example]) -> list[float]:
    return [_ratio(*one) for one in zip(student.score(examples), examples, strict=True)]


def _ratio(scores: TokenScores, example: Example) -> float:
    if not len(scores.logprobs):
        return math.nan
    return float(scores.logprobs.sum()) / len(zlib.compress(whole_text(example).encode(errors="replace")))
