"""A real MLflow tracking server on loopback, for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx


@contextlib.contextmanager
def mlflow_serving(folder: Path) -> Iterator[str]:
    """Its address. It has an environment of its own: the whole of mlflow wants an older pyarrow than datasets does."""
    python = folder / "venv" / "bin" / "python"
    venv.create(folder / "venv")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv is not None
    subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), "mlflow"], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
                "--artifacts-destination", str(folder / "artifacts"),
            ],
            stdout=log, stderr=log, start_new_session=True, cwd=folder,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
    try:
        until = time.monotonic() + 240
        while not _answers(f"{address}/health"):
            assert server.poll() is None and time.monotonic() < until, (folder / "log").read_text()[-3000:]  # noqa: PT018
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(address, timeout=2).status_code == 200
    return False
