"""Small batches of mails for a private decoder, and a way to write texts from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tutelage.privacy.ledger import Internal
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines.base import Generation
from tutelage.teachers.engines.private import Batch, Member, Public
from tutelage.teachers.engines.transformers_private import TransformersDecoder

MAILS = [
    "the meeting is moved to friday",
    "you have won a free prize",
    "where does the train stop",
    "click now to claim your money",
    "the report will follow by then and nobody knows when",
    "x",
]
STOP = "\n###"
DIVISORS = (2.0, 5.0, 3.0)
"""B of the first, second and third text of a batch, whatever stands behind it."""


def mechanism(**changes: Any) -> PrivatePrediction:
    return PrivatePrediction(**({"sensitivity": 0.5, "temperature": 1.0, "top_k": 6, "max_tokens": 9} | changes))


def publics(texts: int = 2) -> list[Public]:
    heads = ("A mail.\n### ham e-mail", "### spam e-mail", "### news")[:texts]
    return [Public(head, "\n", divisor) for head, divisor in zip(heads, DIVISORS, strict=False)]


def batches(count: int, places: int = 3, texts: int = 2) -> list[Batch]:
    return [
        Batch(
            b,
            tuple(
                None if (b + m) % 4 == 3 else Member((b + m) % texts, f"\n{MAILS[(b * 3 + m) % 6]}\n### e-mail\n")
                for m in range(places)
            ),
        )
        for b in range(count)
    ]


def write(
    loaded: tuple[Any, Any],
    work: Sequence[Batch],
    one: PrivatePrediction,
    batch_rows: int = 64,
    *,
    texts: int | Sequence[Public] = 2,
    tail_tokens: int = 70,
    **changes: Any,
) -> list[list[Generation]]:
    options: dict[str, Any] = {"allowance": Internal(), "stop": STOP, "ends": set()} | changes
    asked = publics(texts) if isinstance(texts, int) else texts
    return TransformersDecoder(*loaded, batch_rows, tail_tokens).write(asked, work, one, **options)


def shown(found: list[list[Generation]]) -> list[list[tuple[str, bool]]]:
    return [[(text.text, text.finished) for text in row] for row in found]


def greedy(self: PrivatePrediction, scores: torch.Tensor, allowed: torch.Tensor) -> list[int]:
    best: list[int] = scores.masked_fill(~allowed, -math.inf).argmax(-1).tolist()
    return best
