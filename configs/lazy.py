"""Sequences whose items are made when they are asked for, so that there may be more of them than fit into memory."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence that knows how many items it has, and how to make one."""

    @abstractmethod
    def _one(self, at: int) -> T:
        """Item number `at`, from 0 to `len(self) - 1`."""

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        numbers = range(len(self))[at]
        return self._one(numbers) if isinstance(numbers, int) else [self._one(number) for number in numbers]


def parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time; fewer in the last part."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part
