"""Several stages at once, each in a process of its own: `tutelage run --jobs N`.

Silos are apart from each other, and so are most of what is measured of a student; on a few cores two processes of one
thread each do more than one of two. What a worker is given is a stage's name, a run folder and digests; what it gives
back is the stage's manifest, and meanwhile one number: how far it is. It lives no longer than this process, however
that ends.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import io
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tutelage.configs.errors import UserError
from tutelage.configs.progress import Listener, heard
from tutelage.flows import tied
from tutelage.flows.process import importing, leave_at_once

Result = TypeVar("Result")

_LOOK_S = 1.0
"""Between two looks at how far a worker is."""


class Workers:
    """A few processes that run functions for this one.

    Args:
        jobs: How many. The processor's threads are dealt out among them.
    """

    def __init__(self, jobs: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        alive, self._life = spawn.Pipe(duplex=False)
        shares = spawn.RawArray("d", jobs)
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self._pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin, initargs=(alive, threads, shares))
        # Memory that all share, a place for each that works: to write there takes no time, whether it is read or not.
        self._shares, self._free = shares, list(range(jobs))
        self._waiting, self._changed = list[int](), threading.Condition()
        self._stopped = False
        self.failure: Exception | None = None
        """What the first function ended with that raised. What waits for it ends with an error of Prefect's own."""

    def run(
        self, function: Callable[..., Result], *arguments: Any, order: int = 0, listener: Listener | None = None
    ) -> Result:
        """Run a module's function in the next process that is free, and wait for it. If it raises, nothing goes on.

        Args:
            function: What to run.
            arguments: Of the function.
            order: Of those that wait, the lowest is next.
            listener: Is told, about every second and in this thread, how far the function's bars are.

        Raises:
            UserError: the process was killed, by the system for want of memory, most likely.
            Exception: what the function raised.
        """
        with self._turn(order) as place:
            if self.failure:
                raise self.failure
            if self._stopped:
                raise CancelledError
            try:
                self._shares[place] = math.nan  # nothing is counted yet
                future = self._pool.submit(_counted, place, function, *arguments)
                while listener and wait([future], timeout=_LOOK_S).not_done:
                    if not math.isnan(share := self._shares[place]):
                        listener(share)
                return future.result()
            except BrokenProcessPool:
                self.failure = self.failure or UserError(
                    "a worker process was killed, most likely for want of memory",
                    key="--jobs",
                    remedy="`tutelage resume RUN` with fewer; what is finished stays",
                )
                raise self.failure from None
            except Exception as error:
                self.failure = self.failure or error
                self._life.close()
                raise

    @contextlib.contextmanager
    def _turn(self, order: int) -> Iterator[int]:
        """One of the processes, for as long: a place that is nobody else's."""
        with self._changed:
            heapq.heappush(self._waiting, order)
            self._changed.wait_for(lambda: bool(self._free) and self._waiting[0] == order)
            heapq.heappop(self._waiting)
            place = self._free.pop()
            self._changed.notify_all()
        try:
            yield place
        finally:
            with self._changed:
                self._free.append(place)
                self._changed.notify_all()

    def stop(self) -> None:
        """End the processes at once, whatever they are at: a stage is made to be killed anywhere."""
        self._stopped = True
        self._life.close()
        self._pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Wait for what is running, then end the processes."""
        self._pool.shutdown()
        self._life.close()


_active: Workers | None = None


def active() -> Workers | None:
    """The workers that stages go to; None: they run in this process, one after the other."""
    return _active


@contextlib.contextmanager
def working(jobs: int) -> Iterator[None]:
    """Send stages to so many processes meanwhile; one means none beside this."""
    global _active
    if jobs == 1:
        yield
        return
    _active = Workers(jobs)
    try:
        yield
    except BaseException:
        _active.stop()
        raise
    else:
        _active.close()
    finally:
        _active = None


_shares: Any = None
"""Of a worker: where it writes how far it is."""


def _counted(place: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in a worker, and write down how far it is."""
    with heard(functools.partial(_shares.__setitem__, place)):
        return function(*arguments)


def _begin(alive: Connection, threads: int, shares: Any) -> None:
    """Set up a worker."""
    global _shares
    _shares = shares
    leave_at_once(lambda: 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the first one decides
    threading.Thread(target=tied.end_with, args=(alive,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is imported later
    # Bars of several processes would write over each other.
    sys.stderr = _NoTerminal(os.fdopen(os.dup(2), "wb"), errors="replace", line_buffering=True)
    with importing():
        import torch

        import tutelage.flows.distill  # noqa: F401

    torch.set_num_threads(threads)


class _NoTerminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False
