"""Prefect's embedded server, tied to the life of this process."""

from __future__ import annotations

import functools
import subprocess

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

_STOP_AT_END_OF_INPUT = 'cat; kill "$0" 2>/dev/null'


@functools.cache
def start_embedded() -> None:
    """Start the embedded server, unless the settings name one to be used instead.

    Prefect stops it when Python exits in good order. After SIGKILL it would go on for ever, 200 MB and 2% of a core
    each time, so a shell waits for its input to end, which it does however this process ends, and stops the server.
    """
    if PREFECT_API_URL.value():
        return
    server = SubprocessASGIServer()
    server.start()
    assert server.server_process is not None
    # In a session of its own: Ctrl-C is for the run, and Prefect stops the server then.
    _watchers.append(
        subprocess.Popen(
            ["/bin/sh", "-c", _STOP_AT_END_OF_INPUT, str(server.server_process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )


_watchers: list[subprocess.Popen[bytes]] = []
"""Kept, for a process object that is collected closes its pipe."""
