"""`tutelage up`, `tutelage deploy`: real server and worker, a schedule that fires, a person's word, and no orphans."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from small_run import files_below, recipe_for, write_recipe

from tutelage.configs.errors import UserError
from tutelage.flows.cli_options import REFUSED, WAITS
from tutelage.flows.schedule.deploy import _schedule

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


HOME = Path(__file__).parents[1]
PLANTED = {
    "HF_TOKEN": "hf_plantedPLANTEDplanted0123456789",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED00",
    "AWS_SECRET_ACCESS_KEY": "planted/PLANTED/planted/0123456789+planted",
}
"""Secrets as they come from the environment; the server's database, all logs and all files are searched for them."""
NOWHERE = {
    "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


class Prefect:
    """`tutelage up` in a process of its own, and what its server says."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.api, self.home = f"http://127.0.0.1:{self.port}/api", folder / "prefect"
        self.env = {**os.environ, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.api, "OMP_NUM_THREADS": "1"}
        self.env |= PLANTED | NOWHERE | ({"TUTELAGE_DATABASE": database} if database else {})
        self.said = folder / "up.log"
        self.start()

    def start(self) -> None:
        """`up`, until it is there."""
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

    def end(self) -> None:
        """Leave nothing of it."""
        self.process.kill()
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()

    def _is_mine(self, one: psutil.Process) -> bool:
        return (one.info["environ"] or {}).get("PREFECT_HOME") == str(self.home)


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL server of Debian's packages on loopback, with a password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    password = "pg-planted-PLANTED-0123456789"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="tutelage-pg-"))
    (folder / "password").write_text(password)
    other: list[str] = []
    if os.geteuid() == 0:  # it doesn't run as root
        other = ["runuser", "-u", "postgres", "--"]
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")

    def program(name: str, *arguments: str) -> None:
        subprocess.run([*other, str(programs[-1] / name), *arguments], check=True, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    program("initdb", "-D", data, "-U", "tutelage", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    program("pg_ctl", "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
    yield f"postgresql+asyncpg://tutelage:{password}@127.0.0.1:{port}/postgres"
    program("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    shutil.rmtree(folder)


@pytest.fixture
def prefect(tmp_path: Path) -> Iterator[Prefect]:
    made = Prefect(tmp_path)
    yield made
    made.end()


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


def test_long_stages_show_how_far_they_are(
    prefect: Prefect, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, mails, tiny_model)
    made = yaml.safe_load(path.read_text())
    made["teach"] |= {"prompts_per_label": 60, "keep_per_prompt": 1}
    made["student"] |= {"epochs": 60, "patience_epochs": 60}
    write_recipe(tmp_path, made)
    assert prefect.command("deploy", str(path), "--runs", str(tmp_path / "runs"), "--jobs", "2").returncode == 0
    (deployment,) = (one for one in prefect.ask("deployments/filter") if one["parameters"].get("jobs") == 2)
    begun = prefect.ask(f"deployments/{deployment['id']}/create_flow_run")["id"]

    def shown() -> dict[str, dict[str, Any]]:
        return {one["key"]: one for one in prefect.ask("artifacts/filter") if one["type"] == "progress"}

    prefect.until(lambda: [one for one in shown().values() if 0 < one["data"] < 100], 400)
    prefect.until(lambda: [one for one in prefect.states() if one[:2] == (begun, "COMPLETED")], 500)
    stages = {"small-round-1-teach-silo-0", "small-round-1-teach-silo-1", "small-round-1-learn"}
    assert stages <= shown().keys()
    for key, one in shown().items():
        assert one["data"] == 100, key
        assert re.fullmatch(r"small-[0-9a-f]{8}, round-1/[a-z0-9_-]+", one["description"]), one["description"]
        assert one["flow_run_id"] == begun
    assert "small-prepare" not in shown(), "it is short"
    (table,) = (one["data"] for one in prefect.ask("artifacts/filter") if one["key"] == "small-round-1")
    (root,) = (tmp_path / "runs").glob("small-*")
    for place in (root / "release" / "report.html", root / "release" / "round-1"):
        assert place.exists()
        assert f"`{place}`" in table
    stored = b"".join(file.read_bytes() for file in files_below(prefect.home))
    assert b"small-round-1-learn" in stored  # what is looked for would be found
    assert not [secret for secret in mails[1] if secret.encode() in stored]


def test_a_run_waits_for_a_person_and_goes_on(
    prefect: Prefect, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    """By the form in Prefect's pages, and by the command line."""
    path = recipe(tmp_path, mails, tiny_model, approval=True)
    begun = prefect.command("deploy", str(path), "--runs", str(tmp_path / "runs"), "--now")
    assert begun.returncode == WAITS, begun.stderr
    assert "Suspended" in begun.stderr
    (root,) = (tmp_path / "runs").glob("small-*")
    assert f"tutelage approve {root}" in begun.stderr
    (waiting,) = [id for id, kind, _ in prefect.states() if kind == "PAUSED"]
    # one that waits for a person keeps no other from running
    begun = prefect.command("deploy", str(path), "--runs", str(tmp_path / "runs"), "--now")
    assert begun.returncode == WAITS, begun.stderr
    (other,) = set((tmp_path / "runs").glob("small-*")) - {root}
    assert not (tmp_path / "runs" / "registry").exists()
    word = {"approved": True, "by": "Ann", "reason": "It reads well."}
    prefect.ask(f"flow_runs/{waiting}/resume", run_input=word)
    prefect.until(lambda: [one for one in prefect.states() if one[:2] == (waiting, "COMPLETED")], 300)
    registry = tmp_path / "runs" / "registry" / "small"
    assert "Approved by Ann" in (registry / "v1" / "README.md").read_text()

    approved = prefect.command("approve", str(other), "--by", "Bob", "--reason", "So does this.", "--wait")
    assert approved.returncode == 0, approved.stderr
    assert "its flow run goes on" in approved.stdout
    assert "Approved by Bob" in (registry / "v2" / "README.md").read_text()

    begun = prefect.command("deploy", str(path), "--runs", str(tmp_path / "runs"), "--now")
    (third,) = set((tmp_path / "runs").glob("small-*")) - {root, other}
    declined = prefect.command("approve", str(third), "--by", "Cyd", "--reason", "Not this.", "--decline", "--wait")
    assert declined.returncode == REFUSED, declined.stderr
    assert ("COMPLETED", "Declined") in [one[1:] for one in prefect.states()]
    assert not (registry / "v3").exists()


def test_a_refused_run_says_so_and_no_secret_is_kept(
    prefect: Prefect, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    never = [{"metric": "accuracy.student", "op": ">=", "value": 2}]
    path = recipe(tmp_path, mails, tiny_model, rules=never)
    begun = prefect.command("deploy", str(path), "--runs", str(tmp_path / "runs"), "--now")
    assert begun.returncode == REFUSED, begun.stderr
    assert [one[1:] for one in prefect.states()] == [("COMPLETED", "Refused")]

    # Published with credentials to where nobody listens: tried again, failed, and nothing of them is kept.
    (root,) = (tmp_path / "runs").glob("small-*")
    reason = "This is a test of what is said of it."
    assert prefect.command("publish", str(root), "--override", "--by", "Ann", "--reason", reason).returncode == 0
    deployments = prefect.ask("deployments/filter")
    (publish,) = (one for one in deployments if "to" in one["parameter_openapi_schema"]["properties"])
    for target in ("s3://bucket/models", "hf://org/name"):
        parameters = {"run_dir": str(root), "to": target}
        sent = prefect.ask(f"deployments/{publish['id']}/create_flow_run", parameters=parameters)
        prefect.until(lambda id=sent["id"]: [one for one in prefect.states() if one[:2] == (id, "FAILED")], 400)
    stored = b"".join(file.read_bytes() for file in files_below(prefect.home))
    said = prefect.said.read_bytes() + (begun.stdout + begun.stderr).encode()
    kept = b"".join(file.read_bytes() for file in files_below(tmp_path / "runs"))
    for secret in PLANTED.values():
        assert secret.encode() not in stored + said + kept
    assert b"bucket/models" in stored  # what was looked for would have been found

    # prefect.yaml is understood, and its deployments run
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    made = subprocess.run(command, env=prefect.env, cwd=HOME, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (audit,) = (
        one for one in prefect.ask("deployments/filter") if one["entrypoint"].endswith("audit") and one["name"] == "any"
    )
    sent = prefect.ask(f"deployments/{audit['id']}/create_flow_run", parameters={"run_dir": str(root)})
    prefect.until(lambda: [one for one in prefect.states() if one[:2] == (sent["id"], "COMPLETED")], 200)


def test_new_records_begin_a_run(
    prefect: Prefect, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    records = tmp_path / "records.jsonl"
    shutil.copyfile(mails[0], records)
    path = recipe(tmp_path, (records, mails[1]), tiny_model)
    made = prefect.command("deploy", str(path), "--runs", str(tmp_path / "runs"), "--look", "86400")
    assert "look/small" in made.stdout.split(), made.stderr
    deployments = prefect.ask("deployments/filter")
    (look,) = (one for one in deployments if one["work_queue_name"] == "light" and one["parameters"])

    def looked() -> str:
        sent = prefect.ask(f"deployments/{look['id']}/create_flow_run")["id"]
        done = prefect.until(lambda: [one for one in prefect.states() if one[:2] == (sent, "COMPLETED")], 240)
        return str(done[0][2])

    def runs() -> int:
        return len([one for one in prefect.ask("flow_runs/filter") if one["deployment_id"] != look["id"]])

    assert looked() == "Waiting"
    assert runs() == 0
    os.utime(records, (time.time() - 100, time.time() - 100))
    assert [looked(), looked()] == ["Completed", "Completed"]
    assert runs() == 1
    with records.open("a") as stream:
        stream.write(records.read_text().splitlines()[0].replace("a", "o") + "\n")
    os.utime(records, (time.time() - 90, time.time() - 90))
    assert looked() == "Completed"
    assert runs() == 2


def test_the_same_with_postgresql(
    postgresql: str, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    made = Prefect(tmp_path, postgresql)
    try:
        path = recipe(tmp_path, mails, tiny_model)
        begun = made.command("deploy", str(path), "--runs", str(tmp_path / "runs"), "--now")
        assert begun.returncode == 0, begun.stderr
        assert (tmp_path / "runs" / "registry" / "small" / "v1").is_dir()
        assert not list(made.home.rglob("*.db")), "nothing is kept in SQLite"
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(90) == 0
        kept = b"".join(file.read_bytes() for file in [*files_below(made.home), made.said])
        assert b"pg-planted" not in kept + (begun.stdout + begun.stderr).encode()
    finally:
        made.end()


def test_killed_it_leaves_nothing_behind(
    prefect: Prefect, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, mails, tiny_model)
    watching = subprocess.Popen(
        [sys.executable, "-m", "tutelage.flows.cli", "deploy", str(path), "--runs", str(tmp_path / "runs"), "--now"],
        env=prefect.env, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip
    prefect.until(lambda: list((tmp_path / "runs").glob("small-*/stages/*.json")), 300)
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert said.splitlines()[-1].startswith("the run goes on in ")
    (run,) = [id for id, kind, _ in prefect.states() if kind == "RUNNING"]
    family = prefect.family()
    prefect.process.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert [(one.pid, one.ppid(), one.cmdline()) for one in alive] == []

    # Server and worker are back: the run, which nobody ended, is seen to be gone; retried, it goes on where it was.
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("small-*/stages/*.json")}
    prefect.start()
    prefect.until(lambda: [one for one in prefect.states() if one[:2] == (run, "CRASHED")], 400)
    prefect.ask(f"flow_runs/{run}/set_state", state={"type": "SCHEDULED", "name": "AwaitingRetry"}, force=True)
    prefect.until(lambda: [one for one in prefect.states() if one[:2] == (run, "COMPLETED")], 500)
    assert done == {file: file.stat().st_mtime_ns for file in done}


@pytest.mark.parametrize(
    ("cron", "every", "problem"), [("* * *", None, "cron"), ("* * * * *", 60, "either"), ("at noon", None, "cron")]
)
def test_schedules_that_mean_nothing(cron: str, every: int | None, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        _schedule(cron, every)
