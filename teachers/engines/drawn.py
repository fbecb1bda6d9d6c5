"""A text of tokens that a mechanism draws one after the other, and where it ends.

It needs nothing but the standard library: vLLM's own Python has it too.
"""

from __future__ import annotations

from typing import Any


class Drawn:
    """A text being written."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.finished = False

    def add(self, token: int, ends: set[int], stop: str, tokenizer: Any) -> None:
        """Take a drawn token, unless the text is finished already.

        Args:
            token: Its id.
            ends: Ids that end a text.
            stop: What ends it too, and is no part of it.
            tokenizer: Of the model.
        """
        if self.finished:
            return
        if token in ends:
            self.finished = True
            return
        self.tokens.append(token)
        window = len(stop.encode())  # a token is at least one byte of the stop string
        self.finished = stop in tokenizer.decode(self.tokens[-window:])

    def text(self, stop: str, tokenizer: Any) -> tuple[str, bool]:
        """The text, and whether it is finished."""
        text, found, _ = tokenizer.decode(self.tokens, skip_special_tokens=True).partition(stop)
        return text, self.finished or bool(found)
