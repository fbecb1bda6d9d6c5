"""The command line in a process of its own, with a test double as teacher.

The processes are forked from a server that has done the heavy imports: a new interpreter would do them again for
every start, which takes longer than the small runs of the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from prefect.context import refresh_global_settings_context

from tutelage.flows.server import API, start_embedded

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["drive", "tutelage.flows.distill", "peft", "sklearn.pipeline", "warm"])


def start(teacher: str, *arguments: str, output: Path, env: dict[str, str] | None = None) -> BaseProcess:
    """Start `tutelage ARGUMENTS` with an `honest`, a `copying` or its `own` teacher; it prints into a file.

    It starts a Prefect server, unless `env` names one.
    """
    output.touch()
    process = _SERVER.Process(target=_run, args=(teacher, arguments, output, env or {}))
    process.start()
    return process


def drive(teacher: str, *arguments: str, output: Path) -> tuple[int, str]:
    """The same to its end: exit code and everything it printed. It asks the Prefect server that this process has."""
    process = start(teacher, *arguments, output=output, env=server())
    process.join(500)
    assert process.exitcode is not None, "it did not end"
    return process.exitcode, output.read_text()


def server() -> dict[str, str]:
    """The environment that names this process's Prefect server: one of its own takes longer than the smallest runs."""
    start_embedded()
    return {API: os.environ[API]}


def printed(process: BaseProcess, output: Path) -> Iterator[str]:
    """The lines a process prints, as they come, until it ends."""
    with output.open() as stream:
        line = ""
        while True:
            alive = process.is_alive()
            line += stream.readline()
            if line.endswith("\n"):
                yield line
                line = ""
            elif not alive:
                return
            else:
                process.join(0.01)


def _run(teacher: str, arguments: tuple[str, ...], output: Path, env: dict[str, str]) -> None:
    # The server that this is forked from has its own environment, and so have Prefect's settings there.
    os.environ.pop(API, None)
    os.environ.update(env)
    refresh_global_settings_context()
    from doubles import CopyingTeacher, HonestTeacher

    from tutelage.flows import cli, teaching

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are begun without it
    with output.open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if teacher != "own":
        double = HonestTeacher() if teacher == "honest" else CopyingTeacher()
        teaching.teacher_engine = lambda *_: double
    sys.argv = ["tutelage", *arguments]
    cli.main()
