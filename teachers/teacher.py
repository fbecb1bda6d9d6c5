"""A silo's teacher as those see it who ask for drafts: one model, or several that share the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tutelage.configs.schema import Task
from tutelage.teachers.answers import Request, write_texts
from tutelage.teachers.engines.base import Engine, Generation, Sampling


class Teacher(Protocol):
    """Something that writes drafts."""

    def write(
        self,
        asked: Sequence[Request],
        n: int,
        sampling: Sampling,
        seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:
        """Write `n` drafts for every request; see `Engine.generate`.

        Returns:
            A list for every request: `n` drafts, fewer where a budget covers no more, more where several teachers
            were tried on one prompt and all their drafts may be of use.
        """
        ...

    def advise(self, system: str, user: str, n: int, sampling: Sampling, seed: int) -> list[Generation]:
        """Answer a chat prompt `n` times, or not at all where a budget does not cover it."""
        ...

    def close(self) -> None:
        """See `Engine.close`."""
        ...


class Solo:
    """A teacher of one model.

    Args:
        engine: The model's.
        task: What is written; it may say what a completion must be.
    """

    def __init__(self, engine: Engine, task: Task) -> None:
        self.engine, self.task = engine, task

    def write(
        self,
        asked: Sequence[Request],
        n: int,
        sampling: Sampling,
        seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:
        """See `Teacher.write`."""
        return write_texts(self.engine, self.task, asked, n, sampling, seed, on_progress)

    def advise(self, system: str, user: str, n: int, sampling: Sampling, seed: int) -> list[Generation]:
        """See `Teacher.advise`."""
        [texts] = self.engine.generate([self.engine.chat(system, user)], n, sampling, seed)
        return texts

    def close(self) -> None:
        """See `Teacher.close`."""
        self.engine.close()
