"""What decoding under private prediction is asked for: many texts at once, each behind the mean of private prompts.

A batch is a fixed number of places for records and a fixed number of texts (one per label, say); a record stands
behind one of the texts. All texts of a batch advance together, a token a step; every place's row is fed the token of
its text. Several batches are decoded side by side, and a batch that is done makes room for the next.

What a record may move is what `privacy/mechanism.py` says and nothing else: the number of rows is fixed by settings,
an empty place is computed like any other (behind the public prompt) and then left out, and when rows come and go
depends on texts alone, which are the mechanism's output. So one record's presence cannot change another's scores, not
even by the rounding of a differently shaped product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tutelage.privacy.ledger import Allowance
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines.base import Engine, Generation


@dataclass(frozen=True)
class Public:
    """One of the texts that every batch writes: its prompt without any record."""

    head: str
    """What the prompts of all its members begin with, too."""
    tail: str
    """The rest of the public prompt."""
    divisor: float
    """B: what the mean of clipped differences divides by, however many members there are."""

    def __post_init__(self) -> None:
        if not 0 < self.divisor < math.inf or not self.tail:
            raise ValueError("a text needs a positive divisor, and a prompt that ends after its head")


@dataclass(frozen=True)
class Member:
    """A record's place in a batch."""

    text: int
    """Which of the texts it stands behind."""
    tail: str = field(repr=False)
    """What follows the text's head in the record's prompt."""


@dataclass(frozen=True)
class Batch:
    """What some texts are written from: a part of a silo that no other batch has a unit of."""

    part: int
    """Its number, as the allowance counts parts."""
    members: tuple[Member | None, ...]
    """As many places in every batch; None: no record."""


class PrivateDecoder(Protocol):
    """Writes texts over batches of records with a local model."""

    def write(
        self,
        publics: Sequence[Public],
        batches: Sequence[Batch],
        mechanism: PrivatePrediction,
        allowance: Allowance,
        *,
        stop: str,
        ends: set[int] | None = None,
        on_written: Callable[[int, list[Generation]], object] | None = None,
    ) -> list[list[Generation]]:
        """Write every text once for every batch.

        Args:
            publics: The texts.
            batches: All with as many places.
            mechanism: How a token is drawn.
            allowance: What it costs; a batch's part is claimed before its prompts are read.
            stop: The text is cut where this first appears, and counts as finished.
            ends: Ids that end a text; None: the model's own.
            on_written: Called with a batch's part and its texts as soon as they are done.

        Returns:
            A list of texts for every batch, in order.

        Raises:
            PrivacyError: a part has been claimed before, or the allowance does not cover one text for each unit.
            UserError: texts may become longer than what the model attends to, or it can't be done on this machine.
        """
        ...

    def shift(self, publics: Sequence[Public], batch: Batch, mechanism: PrivatePrediction) -> float:
        """How far one record moves what the mechanism draws from: the guarantee's own claim, put to the test.

        The texts are written with all records and, beside that, without each of them, with the same tokens drawn.

        Args:
            publics: The texts.
            batch: Records that are nobody's secret: the figure is a function of them that nothing protects.
            mechanism: As in `write`.

        Returns:
            The largest difference of any candidate's score at any step by any record, in logits: at most C/B, but for
            rounding. NaN without a record, or where a score is NaN.
        """
        ...


class PrivateEngine(Engine, Protocol):
    """An engine that can write under private prediction: it gives the scores of every next token."""

    tokenizer: Any

    def decoder(self, tail_tokens: int) -> PrivateDecoder:
        """What writes.

        Args:
            tail_tokens: Most tokens of what follows the head in every prompt. Longer tails keep their end: it asks for
                the text.

        Raises:
            UserError: the model's rows are not computed apart.
        """
        ...
