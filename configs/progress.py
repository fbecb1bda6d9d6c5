"""How far long work is: a bar on the terminal, and one number for whoever runs the work.

    with Bar(len(texts), "answers", "text") as bar:
        for batch in batches:
            ...
            bar.update(len(batch))

Bars nest: one that opens while another is at a unit fills that unit. So work of several parts is a bar of so many units
around it, without a name and not drawn. What `heard` is told is a share of the whole, and no word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Self

Listener = Callable[[float], object]
"""Is told the share of the work that is done, in [0, 1]; often, and by the work itself, so it must be quick."""

_listener: ContextVar[Listener] = ContextVar("listener", default=lambda share: None)


@contextlib.contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Let a listener hear how far the bars are that are opened meanwhile, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Bar:
    """Work that is counted, and drawn if it has a name and standard error is a terminal.

    Args:
        total: Units in all.
        name: What stands before the bar; None: it is not drawn.
        unit: What is counted.
        done: Units that were done before.
        leave: Whether a finished bar stays on the terminal.
    """

    def __init__(
        self, total: int, name: str | None = None, unit: str = "it", *, done: int = 0, leave: bool = True
    ) -> None:
        from tqdm import tqdm  # noqa: TID251

        self._total, self._done = total, done
        self._within = 0.0  # of the unit at work, by bars in it
        self._drawn = tqdm(
            total=total, desc=name, unit=unit, initial=done, leave=leave, disable=True if name is None else None
        )

    def __enter__(self) -> Self:
        self._outer = _listener.get()
        self._token = _listener.set(self._hear)
        self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        _listener.reset(self._token)
        self._drawn.close()

    def update(self, units: int = 1) -> None:
        """So many more units are done."""
        self._done += units
        self._within = 0.0
        self._drawn.update(units)
        self._tell()

    def grow(self, units: int) -> None:
        """There are so many more units than was thought; fewer, if it is negative."""
        self._total += units
        self._drawn.total = self._total
        self._tell()

    def note(self, **figures: object) -> None:
        """Show figures behind the bar. On the terminal alone."""
        self._drawn.set_postfix(dict(sorted(figures.items())))

    def _hear(self, share: float) -> None:
        self._within = max(self._within, share)  # a unit may hold several bars, one after the other
        self._tell()

    def _tell(self) -> None:
        if self._total > 0:
            self._outer(min(1.0, (self._done + self._within) / self._total))
