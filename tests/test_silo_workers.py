"""Silos' own workers on a real Prefect server: other users in other folders, neither of whom can read the other's."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_run import files_below
from test_federation import FORMAL, NAMES, places, secrets_of
from test_schedule import Prefect

from tutelage.flows import layout
from tutelage.flows.federation.exchange import runs_at
from tutelage.flows.stage import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can begin processes of other users"),
]
USERS = {"north": 64001, "south": 64002}


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder that every user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="tutelage-silos-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def python(ground: Path) -> str:
    """A Python that other users may begin, with the packages of this one."""
    packages, version = sysconfig.get_path("purelib"), f"{sys.version_info.major}.{sys.version_info.minor}"
    for program in (sys.executable, f"/usr/bin/python{version}"):
        shutil.rmtree(ground / "venv", ignore_errors=True)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([program, "-m", "venv", "--without-pip", str(ground / "venv")], check=True)
            here = ground / "venv" / "lib" / f"python{version}" / "site-packages" / "packages.pth"
            here.write_text(f"import site; site.addsitedir({packages!r})\n")
            made = str(ground / "venv" / "bin" / "python")
            subprocess.run([made, "-c", "import tutelage.flows, torch"], cwd=ground, **_identity("north"), check=True)
            return made
    pytest.skip("no Python here that another user may begin has these packages")


def _identity(name: str) -> dict[str, Any]:
    return {"user": USERS[name], "group": USERS[name], "extra_groups": []}


def as_user(name: str, home: Path, prefect: Prefect, python: str, *command: str) -> subprocess.Popen[bytes]:
    """A process of a silo's user, with nothing of ours in its environment but where Python and the server are."""
    env = {key: os.environ[key] for key in ("PATH", "LANG", "LD_LIBRARY_PATH") if key in os.environ}
    env |= {"HOME": str(home), "USER": name, "LOGNAME": name, "PREFECT_HOME": str(home / "prefect")}
    env |= {"PREFECT_API_URL": prefect.api, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with (home / f"{command[0]}.log").open("ab") as output:
        return subprocess.Popen(
            [python, "-m", "tutelage.flows.cli", *command], env=env, cwd=home, stdout=output, stderr=output,
            start_new_session=True, **_identity(name),
        )  # fmt: skip


def readable(name: str, python: str, *paths: Path) -> list[str]:
    """Which of these files a silo's user can read."""
    program = "import sys\nfor p in sys.argv[1:]:\n try: open(p,'rb').read(); print(p)\n except PermissionError: pass"
    command = [python, "-c", program, *map(str, paths)]
    done = subprocess.run(command, **_identity(name), cwd="/", capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def test_each_silo_teaches_on_its_own_worker(
    ground: Path, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path, python: str
) -> None:
    shutil.copytree(tiny_model, ground / "model")
    for path in files_below(ground / "model"):
        path.chmod(0o644)
    (ground / "exchange").mkdir()
    recipe = places(ground, mails[0], ground / "model", str(ground / "exchange"), 4.0, **FORMAL)
    for name, user in USERS.items():
        shutil.move(ground / f"{name}.jsonl", ground / name / "records.jsonl")
        settings = ground / name / "silo.yaml"
        settings.write_text(settings.read_text().replace(str(ground / f"{name}.jsonl"), "records.jsonl"))
        for path in (ground / name, *(ground / name).rglob("*")):
            os.chown(path, user, user)
        (ground / name).chmod(0o700)
    (ground / "own.jsonl").chmod(0o600)

    prefect, workers = Prefect(tmp_path), []
    try:
        for name in NAMES:
            home = ground / name
            workers.append(as_user(name, home, prefect, python, "silo", "up", str(home)))
        for name in NAMES:
            log = ground / name / "silo.log"
            prefect.until(lambda log=log: "takes part" in log.read_text(), 120)
        here = ground / "here"
        here.chmod(0o700)
        done = prefect.command("run", str(recipe), "--run-dir", str(here / "run"))
        messages = [one["state"]["message"] for one in prefect.ask("flow_runs/filter")]
        logs = "".join((ground / name / "silo.log").read_text()[-2000:] for name in NAMES)
        assert done.returncode == 0, f"{done.stderr[-2000:]}\n{messages}\n{logs}"
        prefect.until(lambda: [name for _, kind, name in prefect.states() if kind == "COMPLETED"][2:], 60)

        run = open_run(here / "run")
        assert runs_at(str(ground / "exchange")) == [run.id]
        assert {lesson.silo for lesson in layout.all_lessons(run, 1)} == set(NAMES)
        assert len(layout.certificates(run, 1)) == 2
        pools = {one["name"]: one["work_pool_name"] for one in prefect.ask("deployments/filter")}
        assert pools == {name: f"silo-{name}" for name in NAMES}
        flows = prefect.ask("flow_runs/filter")
        assert sorted(str(one["work_pool_name"]) for one in flows) == ["None", "silo-north", "silo-south"]
        assert all(one["state_type"] == "COMPLETED" for one in flows)

        for name, other in (NAMES, NAMES[::-1]):
            theirs = files_below(ground / other)
            assert len(theirs) > 10
            assert readable(name, python, *theirs) == []
            assert readable(name, python, *files_below(here)) == []
            mine = [path for path in files_below(ground / name) if path.name != "silo.log"]  # which we opened
            assert {path.stat().st_uid for path in mine} == {USERS[name]}, "all of it was done by its own user"
            lessons = ground / "exchange" / run.id / "from" / other / f"release/round-1/silos/{other}.jsonl"
            assert readable(name, python, lessons) == [str(lessons)]
            searched = [path for place in (ground / "exchange", here, ground / other, tmp_path)
                        for path in files_below(place)]  # fmt: skip
            for path in searched:
                content = path.read_bytes()
                assert not [secret for secret in secrets_of(mails, name) if secret in content], path
    finally:
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
                    one.kill()
            worker.wait()
        prefect.end()
