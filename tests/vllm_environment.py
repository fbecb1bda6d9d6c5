"""vLLM for the tests: the environment that `make vllm` builds, and vLLM's own server on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tutelage.configs.errors import UserError
from tutelage.configs.schema import VllmConfig
from tutelage.teachers.engines import vllm_process
from tutelage.teachers.engines.vllm import VllmEngine, vllm_python


def _built() -> bool:
    try:
        return bool(vllm_python())
    except UserError:
        return False


needs_vllm = [pytest.mark.slow, pytest.mark.skipif(not _built(), reason="needs `make vllm`")]
"""Marks: vLLM takes most of a minute to start on two cores."""

KEY = "sk-of-the-tests-alone"


_FAKE = """
import json, os, signal, struct, subprocess, sys, time
def receive():
    size, = struct.unpack(">I", sys.stdin.buffer.read(4))
    return json.loads(sys.stdin.buffer.read(size))
def send(message):
    data = json.dumps(message).encode()
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
    sys.stdout.buffer.flush()
receive()
"""


@contextlib.contextmanager
def played_by(program: str, model: Path, folder: Path, **settings: Any) -> Iterator[VllmEngine]:
    """An engine whose process runs a small program."""
    path = folder / "fake.py"
    path.write_text(_FAKE + textwrap.dedent(program))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_VLLM", sys.executable)
        patch.setattr(vllm_process, "WORKER", path)
        with contextlib.closing(VllmEngine(model, VllmConfig(kind="vllm", **settings))) as engine:
            yield engine


@contextlib.contextmanager
def vllm_server(model: Path, name: str) -> Iterator[str]:
    """vLLM's OpenAI-compatible server with one model, which wants `KEY`; gives its base address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = subprocess.Popen(
        [
            str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
            "--max-model-len", "2048", "--enforce-eager", "--generation-config", "vllm", "--no-enable-prefix-caching",
            "--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}',
            "--no-enable-chunked-prefill",  # on a processor a seeded prompt that is read in parts ends the server
        ],
        env={
            **os.environ, "VLLM_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 400
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health", trust_env=False).status_code == 200:
                    break
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server was not ready in time"
            time.sleep(0.5)
        yield f"{address}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
