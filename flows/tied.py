"""Processes that end with the one that began them, however that ends: SIGKILL leaves nobody who could tell them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from multiprocessing.connection import Connection

_ONE = 'cat; kill "$0" 2>/dev/null'
_GROUP = 'cat; kill -s TERM -- "-$0" 2>/dev/null; sleep 5; kill -s KILL -- "-$0" 2>/dev/null'


def tie(child: int, *, group: bool = False) -> None:
    """Let a shell end a process once this one is gone: it waits for its input to end.

    Args:
        child: Its id.
        group: Whether its whole process group is ended, by force if it takes more than five seconds.
    """
    _watchers.append(
        subprocess.Popen(
            ["/bin/sh", "-c", _GROUP if group else _ONE, str(child)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
    )


_watchers: list[subprocess.Popen[bytes]] = []
"""Kept, for a process object that is collected closes its pipe."""


def end_with(alive: Connection) -> None:
    """End this process when nobody holds the other end any more, so also if its parent was killed."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


FOUNDER = "TUTELAGE_UP"
"""Names, to whatever is begun below it, the process of `tutelage up`: its id and when it was made."""


def founder() -> str:
    """This process, as `FOUNDER` names it."""
    import psutil

    return f"{os.getpid()} {psutil.Process().create_time()}"


def end_with_parent() -> None:
    """End this process soon after the one that started it is gone, or `tutelage up` above it, however those ended.

    For flow runs under a worker: that one may be gone before this is reached, and its child has another parent by then.
    """
    threading.Thread(target=_watch_parent, args=(os.getppid(), os.environ.get(FOUNDER)), daemon=True).start()


def _watch_parent(parent: int, above: str | None) -> None:
    import psutil

    def there() -> bool:
        if os.getppid() != parent:
            return False
        if above is None:
            return True
        pid, made = above.split()
        with contextlib.suppress(psutil.NoSuchProcess):
            return abs(psutil.Process(int(pid)).create_time() - float(made)) < 1
        return False

    while there():
        time.sleep(1)
    os._exit(1)
