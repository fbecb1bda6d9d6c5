"""Which tokens may come next in texts that must fit a structure, for an engine that draws them itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.configs.schema import Structure

if TYPE_CHECKING:
    import torch


class Structured:
    """How far each of some texts has come in its structure.

    Args:
        structure: What every text must fit.
        tokenizer: llguidance's, of as many tokens as there are logits.
        texts: How many.
    """

    def __init__(self, structure: Structure, tokenizer: Any, texts: int) -> None:
        from llguidance import LLMatcher

        # it would quote texts in warnings
        first = LLMatcher(tokenizer, structure.grammar, log_level=0)
        self._matchers = [first.deep_copy() for _ in range(texts)]

    def masked(self, logits: torch.Tensor, texts: Sequence[int | None]) -> torch.Tensor:
        """Logits (R, V) with minus infinity where a token doesn't fit; `texts`: each row's; None: left as it is."""
        import torch

        allowed = np.ones(tuple(logits.shape), dtype=np.uint8)
        for row, text in enumerate(texts):
            if text is not None:
                bits = np.frombuffer(self._matchers[text].compute_bitmask(), dtype=np.uint8)
                allowed[row] = np.unpackbits(bits, count=logits.shape[1], bitorder="little")
        return logits.masked_fill(torch.from_numpy(allowed).to(logits.device) == 0, -torch.inf)

    def take(self, text: int, token: int) -> bool:
        """Tell of a text's next token; whether nothing can follow it."""
        matcher = self._matchers[text]
        matcher.consume_token(token)
        return bool(matcher.is_stopped())
