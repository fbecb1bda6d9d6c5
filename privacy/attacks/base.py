"""The attacks' one contract: what was released and held-out controls in, metrics with intervals out.

An attack is a function `attack(released, controls, settings) -> Found` in a file of its own. It never sees how the
lessons were made, and it reads private texts only as members to tell from non-members; what it finds about real members
is an unprotected function of private records, and its metrics are marked internal. Canaries are nobody's record, so
figures about them may leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.configs.records import Curve, Example, Metric
from tutelage.privacy.canaries import Canary

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TokenScores:
    """How a model sees one example, token by token: the prompt's text (not what the chat template puts before it) and
    then the completion."""

    logprobs: Floats
    """(T,) natural log-probability of each token given those before it."""
    mean: Floats
    """(T,) mean of log p over the vocabulary, weighted by p itself, at each position."""
    std: Floats
    """(T,) standard deviation of the same."""
    greedy: NDArray[np.bool_]
    """(T,) whether the token is the likeliest one there. A model's greedy continuation of a text's first k tokens is
    the text's own exactly where all tokens behind them are, so extraction needs no generation."""
    completion: int
    """Position of the completion's first token in these arrays."""


class Scorer(Protocol):
    """A model to be asked, in one batched path, whatever it runs on."""

    def score(self, examples: Sequence[Example]) -> list[TokenScores]:
        """One for each example, in the same order. Prompt and completion are seen as in training."""
        ...

    def completion_logprobs(self, examples: Sequence[Example]) -> list[Floats]:
        """Log-probability of each of the completion's tokens alone, as in `score` and for less."""
        ...


@dataclass(frozen=True)
class Released:
    """What an attacker has."""

    texts: tuple[str, ...]
    """The lessons' texts."""
    instruction: str
    student: Scorer | None
    """None where there was nothing to train one on."""
    base: Scorer
    """The public model that the student was tuned from."""
    references: tuple[Scorer, ...] = ()
    """Models of the same kind that saw none of the controls, the base among them."""
    auxiliary: Scorer | None = None
    """A model tuned by the attacker on `texts`, as answers to nothing."""
    bare: Scorer | None = None
    """The public model without the instruction; None: `base` was given none either."""


@dataclass(frozen=True)
class Controls:
    """What is told apart. Members and non-members are drawn alike, with as many of each label."""

    members: tuple[Example, ...] = field(repr=False)
    nonmembers: tuple[Example, ...] = field(repr=False)
    canaries: tuple[Canary, ...] = field(repr=False)


@dataclass(frozen=True)
class Settings:
    """What all attacks share."""

    resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 0
    embed: Callable[[Sequence[str]], np.ndarray] | None = None
    """Sentence embeddings, where they have been computed before; None: `similarity.embed`."""


@dataclass(frozen=True)
class Found:
    """What an attack found."""

    metrics: tuple[Metric, ...]
    curves: tuple[Curve, ...] = ()
