"""Prefect's embedded server, tied to the life of this process."""

from __future__ import annotations

import functools

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

from tutelage.flows.tied import tie


@functools.cache
def start_embedded() -> None:
    """Start the embedded server, unless the settings name one to be used instead.

    Prefect stops it when Python exits in good order. After SIGKILL it would go on for ever, 200 MB and 2% of a core
    each time.
    """
    if PREFECT_API_URL.value():
        return
    server = SubprocessASGIServer()
    server.start()
    assert server.server_process is not None
    tie(server.server_process.pid)
