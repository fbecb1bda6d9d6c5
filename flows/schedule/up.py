"""`tutelage up`: a Prefect server and a worker on this machine, for as long as it runs.

Both listen on loopback or not at all, send nothing home, and end with this process however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError, without_credentials
from tutelage.flows.tied import FOUNDER, founder, tie

HOST, PORT = "127.0.0.1", 4200


@contextlib.contextmanager
def reached(patience_s: float = 0) -> Iterator[None]:
    """Whatever is asked of Prefect meanwhile goes to the server that the settings name, else to that of `tutelage up`.

    Args:
        patience_s: How long it may take until it answers.

    Raises:
        UserError: it can't be reached.
    """
    import httpx
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = PREFECT_API_URL.value() or f"http://{HOST}:{PORT}/api"
    until = time.monotonic() + patience_s
    while True:
        try:
            httpx.get(f"{address}/health", timeout=10).raise_for_status()
            break
        except httpx.HTTPError as error:
            if time.monotonic() >= until:
                raise UserError(
                    f"no Prefect server answers there ({type(error).__name__})", file=without_credentials(address),
                    remedy="start one: tutelage up; or set PREFECT_API_URL",
                ) from None  # fmt: skip
            time.sleep(0.5)
    with temporary_settings({PREFECT_API_URL: address}):
        yield


def up(port: int, pool: str, database: str | None, say: Callable[[str], None]) -> None:
    """Start server and worker, and wait until Ctrl-C or SIGTERM.

    Args:
        port: The server's, on loopback.
        pool: The worker's work pool, made if it isn't there.
        database: Of the server, as SQLAlchemy writes it; None: the SQLite file in PREFECT_HOME.
        say: Told where everything is.

    Raises:
        UserError: one of them didn't start, or ended by itself.
    """
    api = f"http://{HOST}:{port}/api"
    settings = {
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
    }
    if database is not None:
        settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database  # by the environment: it may hold a password
    with _children(say) as children:
        children["server"] = _start(["server", "start", "--host", HOST, "--port", str(port)], settings)
        _wait_for(api, children["server"])
        say(f"Prefect: http://{HOST}:{port}")
        _with_pool(api, pool)
        children["worker"] = _start(_worker(pool), settings)
        say(f"A worker takes what the work pool {pool} is given. Ctrl-C ends both.")


def silo_up(home: Path, name: str, say: Callable[[str], None]) -> None:
    """Start a silo's worker, on the server that the settings name, and wait until Ctrl-C or SIGTERM.

    Args:
        home: The silo's folder.
        name: The silo's.
        say: Told what it takes.

    Raises:
        UserError: the server can't be reached, or the worker ended by itself.
    """
    from prefect.settings import PREFECT_API_URL

    from tutelage.flows.schedule.deploy import deploy_silo, silo_pool

    with reached(), _children(say) as children:
        deploy_silo(home, name)
        # Prefect's workers keep a folder in /tmp that belongs to whichever user was first; and none of ours lies there.
        temporary = home / "tmp"
        temporary.mkdir(mode=0o700, exist_ok=True)
        settings = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "TMPDIR": str(temporary)}
        children["worker"] = _start(_worker(silo_pool(name)), settings)
        say(f"Silo {name} takes part in what it is called for. Ctrl-C ends it.")


def _worker(pool: str) -> list[str]:
    return ["worker", "start", "--pool", pool, "--type", "process"]


@contextlib.contextmanager
def _children(say: Callable[[str], None]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes that are watched once all of them are started, and ended when we are told to, or when one ends."""
    children: dict[str, subprocess.Popen[bytes]] = {}
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield children
        while True:
            for name, child in children.items():
                if child.poll() is not None:
                    raise UserError(f"the {name} ended by itself ({child.returncode})", remedy="start it again")
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("stopping")
    finally:
        for child in reversed(children.values()):  # the worker first: it tells the server how its runs ended
            _stop(child)


def _start(command: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """A Prefect process in a session of its own, which ends with its children when we are gone."""
    child = subprocess.Popen(
        [sys.executable, "-m", "prefect", *command],
        env={**os.environ, **settings, FOUNDER: founder()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    tie(child.pid, group=True)
    return child


def _wait_for(api: str, server: subprocess.Popen[bytes]) -> None:
    import httpx

    until = time.monotonic() + 180
    while time.monotonic() < until:
        if server.poll() is not None:
            raise UserError(
                "the server did not start", key="--port", remedy="is the port free? name another with --port"
            )
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{api}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.3)
    raise UserError("the server did not start within 180 seconds", remedy="try again on a less busy machine")


def _with_pool(api: str, pool: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tutelage.flows.schedule.deploy import make_pool

    with temporary_settings({PREFECT_API_URL: api}):
        make_pool(pool)


def _stop(child: subprocess.Popen[bytes]) -> None:
    for end in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        child.send_signal(end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # whatever it has left


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
