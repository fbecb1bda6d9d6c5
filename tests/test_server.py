"""Prefect's embedded server is begun first, unless another is named; and a process that ends at once has said all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.flows import server

ELSEWHERE = "http://127.0.0.1:9/api"


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name != server.API}
    return subprocess.run([sys.executable, "-c", code], env=known | env, capture_output=True, text=True, check=False)


def test_none_is_begun_where_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server.API, ELSEWHERE)
    assert server.begin.__wrapped__() is None


def test_beginning_imports_none_of_it() -> None:
    done = run(
        "import sys; from tutelage.flows.server import begin; begun = begin();"
        "print(begun.process.poll(), 'prefect' in sys.modules)"
    )
    assert (done.stdout, done.stderr) == ("None False\n", "")


@pytest.mark.slow
def test_one_that_a_profile_names_is_used(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(f'active = "mine"\n[profiles.mine]\n{server.API} = "{ELSEWHERE}"\n')
    done = run(
        "from tutelage.flows.server import begin, start_embedded; start_embedded();"
        f"from prefect.settings import {server.API} as api; print(api.value(), begin().process.poll() is None)",
        PREFECT_HOME=str(tmp_path),
    )
    assert done.stdout == f"{ELSEWHERE} False\n", done.stderr


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("raise ZeroDivisionError", 1, "ZeroDivisionError"),
    ],
)
def test_a_command_that_ends_at_once_has_said_all(end: str, code: int, said: str) -> None:
    done = run(
        "import atexit, sys; from tutelage.flows import cli\n"
        "def main():\n"
        "    atexit.register(print, 'stopped')\n"
        "    print('x' * 100_000)\n"
        f"    {end}\n"
        "cli.main = main; cli.entry()"
    )
    assert done.returncode == code
    assert done.stdout == "x" * 100_000 + "\nstopped\n"
    assert said in done.stderr
