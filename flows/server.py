"""Prefect's embedded server: a process of its own, tied to the life of this one.

It imports what this one imports and as much again, and takes longer to answer than a run's commands take to be ready.
So it is begun before they import Prefect, and waited for after; and none of it is imported here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from tutelage.flows.process import importing
from tutelage.flows.tied import tie

_HOST = "127.0.0.1"
API = "PREFECT_API_URL"


@dataclass(frozen=True)
class _Server:
    process: subprocess.Popen[bytes]
    port: int

    def wait(self, patience_s: float) -> None:
        """Return as soon as it answers: until then what is asked waits at its port, which is open since it began."""
        asked = http.client.HTTPConnection(_HOST, self.port, timeout=patience_s)
        with contextlib.closing(asked), contextlib.suppress(OSError, http.client.HTTPException):
            asked.request("GET", "/api/health")
            if asked.getresponse().status == 200:
                return
        raise RuntimeError(f"Prefect's embedded server did not start (exit code {self.process.poll()})")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@functools.cache
def begin() -> _Server | None:
    """Begin to start the embedded server, unless the environment names one to be used instead.

    It is stopped when Python exits in good order. After SIGKILL it would go on for ever, 200 MB and 2% of a core
    each time, but for its tie.
    """
    if os.environ.get(API):
        return None
    with socket.create_server((_HOST, 0)) as port:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(port.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[port.fileno()],
            start_new_session=True,  # Ctrl-C is not for it: it is still told how the run ended
        )
        tie(process.pid)
        server = _Server(process, port.getsockname()[1])
    atexit.register(server.stop)
    return server


@functools.cache
def start_embedded() -> None:
    """Have whatever this process asks of Prefect answered by the embedded server, unless the settings name another.

    Raises:
        RuntimeError: it did not start.
    """
    server = begin()
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

    if server is None:
        return
    if PREFECT_API_URL.value():  # in a profile or a file, which only Prefect knows to read
        server.stop()
        return
    server.wait(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    os.environ[API] = f"http://{_HOST}:{server.port}/api"
    refresh_global_settings_context()


def _serve(port: int) -> None:
    """Be the server, at a port that is open already."""
    with importing():
        import uvicorn
        from prefect.server.api.server import create_app
        from prefect.settings import PREFECT_API_URL

        if PREFECT_API_URL.value():
            return
        app = create_app(ephemeral=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run(sockets=[socket.socket(fileno=port)])


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
