"""The life of the process with vLLM: how it begins, fails, is told of and ends. What it writes is in test_engines.py.

Failures that vLLM cannot be made to show at will are shown by small programs in its place.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_model import make_tiny_model
from vllm_environment import needs_vllm, played_by

from tutelage.configs.errors import UserError
from tutelage.configs.schema import VllmConfig
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.engines.vllm import VllmEngine, vllm_python

SECRET = "zebra-quokka-17"
SAMPLING = Sampling(max_new_tokens=8, temperature=1.0, top_p=1.0, top_k=0, stop="\n###")

_READY = 'send({"ready": {"max_model_len": 9}})\n'
_ANSWER = (
    'request = receive()\nsend({"texts": [[["so", True, 2]] * request["sampling"]["n"] for _ in request["prompts"]]})\n'
)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """Stands in the environment of every process that is begun."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("TUTELAGE_TEST_MARK", mark)
    return mark


def left(mark: str) -> list[psutil.Process]:
    """The processes that were begun with a mark, and are not just waiting to be counted as dead."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            marked = process.environ().get("TUTELAGE_TEST_MARK") == mark and process.pid != os.getpid()
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def none_is_left(mark: str, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while left(mark):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def failure(engine: VllmEngine) -> UserError:
    with pytest.raises(UserError) as caught:
        engine.generate([f"my {SECRET}"], 2, SAMPLING, 0)
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + str(caught.value.remedy)
    return caught.value


# ---- without vLLM ---------------------------------------------------------------------------------------------------


def test_without_an_environment_it_says_how_to_make_one(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_VLLM", "/nowhere/bin/python")
    with pytest.raises(UserError) as caught:
        VllmEngine(tiny_model, VllmConfig(kind="vllm"))
    assert "make vllm" in (caught.value.remedy or "")
    monkeypatch.setenv("TUTELAGE_VLLM", "/tmp")
    with pytest.raises(UserError):
        vllm_python()


def test_a_python_without_vllm(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setenv("TUTELAGE_VLLM", sys.executable)
    engine = VllmEngine(tiny_model, VllmConfig(kind="vllm"))
    assert "No module named 'vllm'" in failure(engine).problem
    assert none_is_left(mark)


def test_no_prompts_begin_nothing(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    with played_by("raise SystemExit", tiny_model, tmp_path) as engine:
        assert engine.generate([], 3, SAMPLING, 0) == []
        assert left(mark) == []


def test_it_may_be_used_again_after_it_was_closed(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    with played_by(_READY + "while True:\n" + textwrap.indent(_ANSWER, "    "), tiny_model, tmp_path) as engine:
        for _ in range(2):
            assert [[one.text for one in row] for row in engine.generate(["a", "b"], 2, SAMPLING, 0)] == [
                ["so"] * 2
            ] * 2
            [process] = left(mark)
            engine.generate(["a"], 1, SAMPLING, 0)
            assert left(mark) == [process]
            engine.close()
            engine.close()
            assert left(mark) == []


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ('send({"failed": "OSError", "why": "no such\\n model"})', r"OSError: no such model"),
        ("sys.exit(3)", r"ended \(exit code 3\)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"ended \(signal 9\)"),
        ("sys.stdin.close()\nos.close(0)\ntime.sleep(0.5)\nsys.exit(4)", r"ended \(exit code 4\)"),
        ("time.sleep(60)", r"not ready after 1 s"),
        (_READY + "print(receive(), file=sys.stderr)\nsys.exit(5)", r"ended \(exit code 5\)"),
        (_READY + "receive()\nos.kill(os.getpid(), signal.SIGSEGV)", r"ended \(signal 11\)"),
        (_READY + "send({'failed': 'ValueError', 'why': receive()['prompts']})", r"failed with ValueError"),
        (_READY + "receive()\nsend({'alive': True})\ntime.sleep(60)", r"silent for 1 s while it wrote"),
        (_READY + "receive()\nsend({'too_long': [900, 512]})", r"900 tokens; the model attends to 512"),
        (_READY + "receive()\nsend({'done': 1})\nsys.stdout.buffer.write(b'\\0\\0\\0\\x09{')\nsys.exit(6)", r"code 6"),
        # its child holds the pipe open
        (_READY + "receive()\nsubprocess.Popen(['sleep', '60'])\nos._exit(7)", r"ended \(exit code 7\)"),
    ],
)
def test_what_goes_wrong_is_told_without_private_text(
    tiny_model: Path, tmp_path: Path, mark: str, capfd: pytest.CaptureFixture[str], program: str, said: str
) -> None:
    limits = {"start_timeout_s": 1 if program == "time.sleep(60)" else 60, "timeout_s": 1 if "alive" in program else 60}
    with played_by(program, tiny_model, tmp_path, **limits) as engine:
        error = failure(engine)
    assert re.search(said, error.problem), error.problem
    assert none_is_left(mark)
    assert SECRET not in "".join(capfd.readouterr())


def test_what_is_interrupted_leaves_no_half_answer(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    answer = 'send({"done": 1})\ntime.sleep(0.2)\nsend({"texts": [[["so", True, 2]]]})\n'
    program = _READY + "while True:\n" + textwrap.indent("receive()\n" + answer, "    ")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with played_by(program, tiny_model, tmp_path) as engine:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(["a"], 1, SAMPLING, 0, interrupt)
        assert left(mark) == []
        [[one]] = engine.generate(["a"], 1, SAMPLING, 0)
        assert one.text == "so"


# ---- with vLLM ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with heads as wide as vLLM takes them."""
    return make_tiny_model(tmp_path_factory.mktemp("wide") / "model", head_dim=32)


_PARENT = """
import sys
from pathlib import Path
from tutelage.configs.schema import VllmConfig
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.engines.vllm import VllmEngine

engine = VllmEngine(Path(sys.argv[1]), VllmConfig(kind="vllm", kv_cache_gib=1))
engine.generate(["a"], 1, Sampling(2, 1.0, 1.0, 0, "\\n###"), 0)
print("ready", flush=True)
while True:
    engine.generate(["a b c"] * 8, 8, Sampling(500, 1.0, 1.0, 0, "never"), 0)
"""


def kill_parents(model: Path, mark: str, kills: int) -> None:
    """Kill whoever has an engine at any moment of its life: nothing that it began goes on."""
    draw = random.Random()
    for i in range(kills):
        parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(model)], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        if i % 2:  # at work; else while Python, vLLM and the model are being loaded
            assert parent.stdout.readline() == b"ready\n"
            time.sleep(draw.uniform(0, 3))
        else:
            time.sleep(draw.uniform(0, 40))
        parent.kill()
        parent.wait()
        parent.stdout.close()
        assert none_is_left(mark), f"after kill {i}"


def kill_workers(model: Path, mark: str, kills: int) -> None:
    """Kill the process with vLLM at any moment: its engine says so, and goes on with another."""
    draw = random.Random()
    endless = replace(SAMPLING, max_new_tokens=500, stop="never")
    with contextlib.closing(VllmEngine(model, VllmConfig(kind="vllm", kv_cache_gib=1))) as engine:
        for i in range(kills):
            at_work = i % 2
            if at_work:
                engine.generate(["a"], 1, SAMPLING, 0)
            killed = threading.Event()

            def kill(wait: float, killed: threading.Event = killed) -> None:
                while engine._process is None:
                    time.sleep(0.01)
                pid = engine._process.pid
                time.sleep(wait)
                killed.set()
                os.kill(pid, signal.SIGKILL)

            killer = threading.Thread(target=kill, args=(draw.uniform(0, 3 if at_work else 12),))
            killer.start()
            with pytest.raises(UserError, match="signal 9"):
                for _ in iter(lambda: engine.generate(["a b c"] * 8, 8, endless, 0), None):
                    ...
            killer.join()
            assert killed.is_set()
            assert none_is_left(mark), f"after kill {i}"


def with_vllm(test: Any) -> Any:
    """Marks a test that needs vLLM."""
    for one in (*needs_vllm, pytest.mark.timeout(3600)):
        test = one(test)
    return test


@with_vllm
def test_private_text_is_in_no_argument_no_variable_and_no_output(
    wide_model: Path, mark: str, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def look(_: int) -> None:
        for process in left(mark):
            seen.append(f"{process.cmdline()} {process.environ()}")

    with contextlib.closing(VllmEngine(wide_model, VllmConfig(kind="vllm", kv_cache_gib=1))) as engine:
        engine.generate([f"my {SECRET}"], 2, SAMPLING, 0, look)
        assert "attends to" in failure_of_length(engine).problem
    assert seen
    assert SECRET not in "".join(seen) + "".join(capfd.readouterr())
    assert none_is_left(mark)


@with_vllm
def test_prompts_too_many_to_be_read_at_once_and_a_shared_start(wide_model: Path) -> None:
    """Of seeded prompts that are read in parts vLLM makes an error on a processor."""
    prompts = [f"{i} " + "the meeting is moved to friday " * 60 for i in range(8)]
    written = []
    for caching in (False, True):
        config = VllmConfig(kind="vllm", kv_cache_gib=1, enable_prefix_caching=caching)
        with contextlib.closing(VllmEngine(wide_model, config)) as engine:
            written.append(engine.generate(prompts, 4, SAMPLING, 0))
            assert engine.generate(prompts, 4, SAMPLING, 0) == written[-1]
    assert [len(row) for row in written[0]] == [4] * 8
    assert written[0] == written[1]


@with_vllm
def test_a_process_that_hangs_is_ended(wide_model: Path, mark: str) -> None:
    config = VllmConfig(kind="vllm", kv_cache_gib=1, timeout_s=5)
    with contextlib.closing(VllmEngine(wide_model, config)) as engine:
        engine.generate(["a"], 1, SAMPLING, 0)
        worker = engine._process
        assert worker is not None
        stop = threading.Timer(1, os.kill, (worker.pid, signal.SIGSTOP))
        stop.start()
        long = replace(SAMPLING, max_new_tokens=1500, stop="never")
        with pytest.raises(UserError, match="silent for 5 s") as caught:
            for _ in iter(lambda: engine.generate([SECRET] * 8, 8, long, 0), None):
                ...
        stop.join()
        assert "timeout_s" in str(caught.value.remedy)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert none_is_left(mark)


@with_vllm
def test_a_model_that_vllm_does_not_take(tmp_path: Path, tiny_model: Path, mark: str) -> None:
    engine = VllmEngine(tiny_model, VllmConfig(kind="vllm", kv_cache_gib=1))
    assert "did not load" in failure(engine).problem
    assert none_is_left(mark)


@with_vllm
def test_parents_killed_a_few_times(wide_model: Path, mark: str) -> None:
    kill_parents(wide_model, mark, 4)


@with_vllm
def test_workers_killed_a_few_times(wide_model: Path, mark: str) -> None:
    kill_workers(wide_model, mark, 4)


@with_vllm
@pytest.mark.parametrize("kill", [kill_parents, kill_workers])
def test_half_of_fifty_kills(wide_model: Path, mark: str, kill: Callable[[Path, str, int], None]) -> None:
    """Of parents, or of the process with vLLM: together fifty."""
    kill(wide_model, mark, 25)


def failure_of_length(engine: VllmEngine) -> UserError:
    with pytest.raises(UserError) as caught:
        engine.generate([f"my {SECRET} " * 2000], 1, SAMPLING, 0)
    return caught.value
