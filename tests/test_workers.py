"""Stages in processes of their own: what they raise, and that none outlives the one that asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tutelage.configs.errors import UserError
from tutelage.flows import workers

ASKS = """
import signal, sys, time
from tutelage.flows.workers import working, active
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are begun without it
if __name__ == "__main__":
    with working(2):
        print(active().run(__import__("os").getpid), flush=True)
        active().run(time.sleep, 600)
"""


def killed() -> None:
    os.kill(os.getpid(), 9)


def refuses(value: str) -> None:
    raise UserError("it is wrong", key=value, remedy="mend it")


def test_what_a_function_gives_and_what_it_raises() -> None:
    with workers.working(2):
        pool = workers.active()
        assert pool is not None
        assert pool.run(os.getpid) != os.getpid()
        with pytest.raises(UserError, match="it is wrong") as caught:
            pool.run(refuses, "data.silos")
        assert (caught.value.key, caught.value.remedy) == ("data.silos", "mend it")
        with pytest.raises(UserError, match="it is wrong"):
            pool.run(os.getpid)  # what was at work is ended, and this says why
    assert workers.active() is None


def noted(path: Path, word: str) -> None:
    """Say that it begins, and end when it may."""
    with path.open("a") as stream:
        stream.write(f"{word}\n")
    while not path.with_name(word).exists():
        time.sleep(0.01)


def test_of_those_that_wait_the_first_in_order_is_next(tmp_path: Path) -> None:
    path = tmp_path / "begun"
    with workers.working(2), ThreadPoolExecutor(6) as threads:
        pool = workers.active()
        assert pool is not None
        for word in ("a", "b"):
            threads.submit(pool.run, noted, path, word)
        while not path.exists() or len(path.read_text().split()) < 2:
            time.sleep(0.01)
        for order in (5, 3, 4, 1):
            threads.submit(pool.run, noted, path, str(order), order=order)
        while len(pool._waiting) < 4:
            time.sleep(0.01)
        for at, word in enumerate(("a", "1", "b", "3", "4", "5"), 3):
            (tmp_path / word).touch()  # it ends, and the next may begin
            while len(path.read_text().split()) < min(at, 6):
                time.sleep(0.01)
    assert path.read_text().split()[2:] == ["1", "3", "4", "5"]


def test_a_worker_that_was_killed_is_the_users_to_know() -> None:
    with workers.working(2):
        pool = workers.active()
        assert pool is not None
        with pytest.raises(UserError, match="want of memory") as caught:
            pool.run(killed)
        assert "fewer" in (caught.value.remedy or "")


def test_one_job_is_no_process() -> None:
    with workers.working(1):
        assert workers.active() is None


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_no_worker_outlives_its_parent(how: str, tmp_path: Path) -> None:
    script = tmp_path / "asks.py"
    script.write_text(ASKS)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        time.sleep(0.5)  # it sleeps in a worker now
        others = psutil.Process(parent.pid).children(recursive=True)
        assert others
        parent.send_signal(9 if how == "kill" else 2)
        parent.wait(20)
    assert not psutil.wait_procs(others, timeout=20)[1]
