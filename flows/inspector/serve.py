"""Serve the pages of a run to this machine's browser until Ctrl-C."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from tutelage.configs.errors import UserError
from tutelage.flows.inspector.app import Inspector, make_app
from tutelage.flows.inspector.measures import Computing
from tutelage.flows.inspector.released import read_released
from tutelage.privacy.review import FILE

_LOOPBACK = "127.0.0.1"


def serve(root: Path, by: str, port: int, *, browser: bool, say: Callable[[str], None]) -> None:
    """Show what a run released, and take decisions about it.

    Args:
        root: The run's folder, or one that holds its release/.
        by: Who decides.
        port: 0: any that is free.
        browser: Whether to open one.
        say: Told the address.

    Raises:
        UserError: nothing is released there, or the port is taken.
        PrivacyError: a lesson's signature doesn't hold.
    """
    say(f"reading what {root} released, and checking its signatures ...")
    inspector = Inspector(read_released(root), root / FILE, by)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((_LOOPBACK, port))
            listening.listen()  # whoever is quicker than the server waits
        except OSError as error:
            raise UserError(
                f"this port can't be used ({error.strerror})", key="--port", remedy="name another, or 0 for any"
            ) from None
        port = listening.getsockname()[1]
        app = make_app(inspector, [_LOOPBACK, "localhost"])
        address = f"http://{_LOOPBACK}:{port}/{inspector.token}/"
        count = len(inspector.released.lessons)
        say(f"{count:,} released texts of {inspector.released.name}, until Ctrl-C:\n  {address}")
        computing = Computing(inspector.measures, inspector.measured)
        if browser:
            webbrowser.open(address)
        try:
            # no access log: it would hold the secret
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
            server.run(sockets=[listening])
        finally:
            computing.stop()
