"""The process with vLLM and the two pipes to it.

Private prompts cross the pipes and nothing else: no argument, no environment variable, no file, no log. What the
process prints is thrown away, since vLLM quotes requests when it fails; `TUTELAGE_SHOW_MESSAGES=1` shows it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError

WORKER = Path(__file__).with_name("vllm_worker.py")
_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 16
_LOOK_S = 1.0
"""Between two looks at whether the process is there."""


class VllmProcess:
    """A process of vLLM's own Python, from its first message until it is closed. What is said is in vllm_worker.py.

    Args:
        python: That Python.
        environment: Its environment variables.
    """

    def __init__(self, python: Path, environment: Mapping[str, str]) -> None:
        self._worker = subprocess.Popen(
            # -I: else the folder of the program comes first, where `vllm` is a module of ours
            [str(python), "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("TUTELAGE_SHOW_MESSAGES") else subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # one group to end, and Ctrl-C is not for it
        )

    @property
    def pid(self) -> int:
        """Its number, and its group's."""
        return self._worker.pid

    def send(self, message: dict[str, Any]) -> None:
        """Say something to it.

        Raises:
            UserError: the process has ended.
        """
        assert self._worker.stdin is not None
        data = json.dumps(message).encode()
        try:
            self._worker.stdin.write(_LENGTH.pack(len(data)) + data)
            self._worker.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def receive(self, limit_s: float, late: str, key: str) -> dict[str, Any]:
        """The next message, within a time.

        Args:
            limit_s: Seconds to wait.
            late: What is said where it takes longer.
            key: The setting of the engine that would allow it.

        Raises:
            UserError: the process has ended, or it took too long.
        """
        assert self._worker.stdout is not None
        until = time.monotonic() + limit_s
        pipe, data, wanted = self._worker.stdout.fileno(), bytearray(), _LENGTH.size
        while len(data) < wanted:
            ready, _, _ = select.select([pipe], [], [], _LOOK_S)
            if not ready and self._has_ended():  # and something that it began holds the pipe open
                raise self._died()
            if not ready and time.monotonic() < until:
                continue
            if not ready:
                raise UserError(
                    late, key="teach.engine",
                    remedy=f"raise teach.engine.{key}; TUTELAGE_SHOW_MESSAGES=1 shows what it does",
                )  # fmt: skip
            part = os.read(pipe, min(_READ_BYTES, wanted - len(data)))
            if not part:
                raise self._died()
            data += part
            if len(data) == _LENGTH.size == wanted:
                wanted += _LENGTH.unpack(data)[0]
        message: dict[str, Any] = json.loads(data[_LENGTH.size :])
        return message

    def end(self) -> None:
        """End it while another thread waits for it, which then hears so and closes."""
        if self._worker.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it and all that it began."""
        if self._worker.returncode is not None:
            return
        # Before its leader is waited for, no other process group can have the number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._worker.pid, signal.SIGKILL)
        self._worker.wait()
        for stream in (self._worker.stdin, self._worker.stdout):
            with contextlib.suppress(OSError):
                stream and stream.close()

    def _has_ended(self) -> bool:
        """Whether it has, without waiting for it: until then its group keeps its number."""
        return os.waitid(os.P_PID, self._worker.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _died(self) -> UserError:
        if self._worker.returncode is None:  # close() must not be what ends it: it is asked how it did
            os.waitid(os.P_PID, self._worker.pid, os.WEXITED | os.WNOWAIT)
        self.close()
        code = self._worker.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return UserError(
            f"the process with vLLM ended ({how})", key="teach.engine",
            remedy="if it was out of memory, lower teach.engine.kv_cache_gib, gpu_memory_utilization or max_model_len",
        )  # fmt: skip
