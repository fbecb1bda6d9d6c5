"""`tutelage up`, `tutelage deploy`: real server and worker, a schedule that fires, a person's word, and no orphans."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from small_run import files_below, recipe_for, write_recipe

from tutelage.configs.errors import UserError
from tutelage.flows.deploy import _schedule

pytestmark = pytest.mark.slow


class Prefect:
    """`tutelage up` in a process of its own, and what its server says."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.api, self.home = f"http://127.0.0.1:{self.port}/api", folder / "prefect"
        self.env = {**os.environ, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.api, "OMP_NUM_THREADS": "1"}
        self.said = folder / "up.log"
        with self.said.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tutelage.flows.cli", "up", "--port", str(self.port)],
                env=self.env, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.until(lambda: "A worker takes" in self.said.read_text(), 240)

    def until(self, there: Callable[[], Any], seconds: float) -> Any:
        """What `there` gives, as soon as that is something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := there():
                return found
            time.sleep(0.5)
        raise AssertionError(f"not within {seconds} s; up said: {self.said.read_text()[-3000:]}")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`tutelage ARGUMENTS`, beside it."""
        return subprocess.run(
            [sys.executable, "-m", "tutelage.flows.cli", *arguments], env=self.env, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    def ask(self, path: str, **asked: Any) -> Any:
        answer = httpx.post(f"{self.api}/{path}", json=asked, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def states(self) -> list[tuple[str, str, str]]:
        """Of all flow runs: id, type of its state, and its name."""
        return [(one["id"], one["state_type"], one["state"]["name"]) for one in self.ask("flow_runs/filter")]

    def family(self) -> list[psutil.Process]:
        """It, and everything that it has started."""
        mine = [one for one in psutil.process_iter(["environ"]) if self._is_mine(one)]
        return [*mine]

    def _is_mine(self, one: psutil.Process) -> bool:
        return (one.info["environ"] or {}).get("PREFECT_HOME") == str(self.home)


@pytest.fixture
def prefect(tmp_path: Path) -> Iterator[Prefect]:
    made = Prefect(tmp_path)
    yield made
    made.process.kill()
    for one in made.family():
        one.kill()


def recipe(folder: Path, mails: tuple[Path, list[str]], model: Path, **gate: Any) -> Path:
    made = recipe_for(mails[0], model)
    made["attack"] = {**made.get("attack", {}), "run": []}
    made["rounds"] = 1
    made["gate"] = {"rules": [{"metric": "accuracy.student", "op": ">=", "value": 0}], **gate}
    return write_recipe(folder, made)


def test_a_schedule_fires_and_the_run_is_done(
    prefect: Prefect, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, mails, tiny_model)
    made = prefect.command("deploy", str(path), "--cron", "* * * * *", "--runs", str(tmp_path / "runs"))
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["run/small", "audit/small", "publish/small"]
    prefect.until(lambda: [one for one in prefect.states() if one[1] == "SCHEDULED"], 120)
    done = prefect.until(lambda: [one for one in prefect.states() if one[1] == "COMPLETED"], 500)
    (root,) = (tmp_path / "runs").glob(f"small-{done[0][0][:8]}")
    assert (root / "release" / "report.html").exists()
    assert (tmp_path / "runs" / "registry" / "small" / "v1" / "adapter_model.safetensors").exists()
    # one at a time, however often the schedule fires
    assert len([one for one in prefect.states() if one[1] == "RUNNING"]) <= 1
    artifacts = prefect.ask("artifacts/filter")
    assert any("Taught student" in (one["data"] or "") for one in artifacts if isinstance(one["data"], str))
    stored = b"".join(file.read_bytes() for file in files_below(prefect.home))
    assert not [secret for secret in mails[1] if secret.encode() in stored]
    family = prefect.family()
    assert len(family) > 3
    prefect.process.send_signal(signal.SIGTERM)
    assert prefect.process.wait(90) == 0
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def test_a_run_waits_for_a_person_and_goes_on(
    prefect: Prefect, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, mails, tiny_model, approval=True)
    assert prefect.command("deploy", str(path), "--runs", str(tmp_path / "runs")).returncode == 0
    (deployment,) = (
        one for one in prefect.ask("deployments/filter") if one["name"] == "small" and "recipe" in one["parameters"]
    )
    prefect.ask(f"deployments/{deployment['id']}/create_flow_run")
    waiting = prefect.until(lambda: [one for one in prefect.states() if one[1] == "PAUSED"], 500)
    run = waiting[0][0]
    assert not (tmp_path / "runs" / "registry").exists()
    word = {"approved": True, "by": "Ann", "reason": "It reads well."}
    prefect.ask(f"flow_runs/{run}/resume", run_input=word)
    prefect.until(lambda: [one for one in prefect.states() if one[:2] == (run, "COMPLETED")], 300)
    card = (tmp_path / "runs" / "registry" / "small" / "v1" / "README.md").read_text()
    assert "Approved by Ann" in card


def test_killed_it_leaves_nothing_behind(
    prefect: Prefect, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, mails, tiny_model)
    assert prefect.command("deploy", str(path), "--runs", str(tmp_path / "runs")).returncode == 0
    (deployment,) = (
        one for one in prefect.ask("deployments/filter") if one["name"] == "small" and "recipe" in one["parameters"]
    )
    prefect.ask(f"deployments/{deployment['id']}/create_flow_run")
    prefect.until(lambda: list((tmp_path / "runs").glob("small-*/stages/*.json")), 300)
    family = prefect.family()
    prefect.process.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert [(one.pid, one.ppid(), one.cmdline()) for one in alive] == []


@pytest.mark.parametrize(
    ("cron", "every", "problem"), [("* * *", None, "cron"), ("* * * * *", 60, "either"), ("at noon", None, "cron")]
)
def test_schedules_that_mean_nothing(cron: str, every: int | None, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        _schedule(cron, every)
