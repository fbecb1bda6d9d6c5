"""What a teacher's engine must do: continue prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.schema import Structure


@dataclass(frozen=True)
class Sampling:
    """How to sample. Top-k is applied first, then top-p among what is left."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: str
    """The text is cut where this first appears, and counts as finished."""
    structure: Structure | None = None
    """What the text must be: no token is drawn that cannot lead there. One that is not finished may not fit yet."""


@dataclass(frozen=True)
class Generation:
    """One sampled continuation. Its text is as private as the prompt: it never leaves the vault unscreened."""

    text: str
    finished: bool
    """False where the length ran out first."""
    read: int | None = field(default=None, compare=False)
    """Tokens of its prompt, borne by the first of a prompt's texts; None: the engine doesn't know."""
    drawn: int | None = field(default=None, compare=False)
    """Tokens drawn for it, the end or the stop string included; None: the engine doesn't know."""

    def __repr__(self) -> str:
        return f"<Generation {len(self.text)} chars, redacted>"

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("a generation must not be pickled: make drafts of it and write them below the vault")


class Engine(Protocol):
    """Something that continues text: a model in this process, vLLM in another, a server."""

    def generate(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:
        """Sample `n` continuations of every prompt.

        Args:
            prompts: Plain text, the special tokens of a chat template included where wanted.
            n: Continuations per prompt.
            sampling: How.
            seed: The same seed, prompts and settings give the same texts.
            on_progress: Called with the number of texts just finished.

        Returns:
            `len(prompts)` lists of `n` generations.
        """
        ...

    def chat(self, system: str, user: str) -> str:
        """A chat prompt as this engine's model wants it, ready to be continued."""
        ...

    def most_read(self, prompt: str, n: int) -> int:
        """Most tokens that may be read of a prompt for `n` of its texts."""
        ...

    def close(self) -> None:
        """Give back what the engine holds of the machine, once a silo's teacher is done. It may be used again."""
        ...


def too_long(tokens: int, limit: int) -> UserError:
    """What is said of texts that with their prompts become longer than what a model attends to."""
    return UserError(
        f"a prompt and its draft take {tokens} tokens; the model attends to {limit}",
        key="teach",
        remedy="lower teach.references_per_prompt, teach.max_new_tokens or data.max_chars",
    )


def chat_prompt(tokenizer: Any, system: str, user: str) -> str:
    """Two turns by a tokenizer's own chat template, as `Engine.chat` gives them."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
