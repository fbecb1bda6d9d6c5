"""The README's script, as it stands there: schedule, wait, inspect, approve, publish, verify, ask."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]


def script() -> str:
    """The commands below its heading."""
    readme = (HOME / "README.md").read_text()
    section = readme[readme.index("## Every night") :]
    found = re.search(r"```\n(.+?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_readmes_script_runs_as_written(tmp_path: Path) -> None:
    with socket.socket() as port:
        if port.connect_ex(("127.0.0.1", 4200)) == 0:
            pytest.skip("the script's port is taken")
    shutil.copytree(HOME / "configs", tmp_path / "configs")
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "BROWSER": "true",  # opens nothing
    }
    env.pop("PREFECT_API_URL", None)
    said = tmp_path / "said"
    with said.open("wb") as output:
        done = subprocess.run(
            ["bash", "-e", "-c", script() + "wait\n"], cwd=tmp_path, env=env, stdout=output, stderr=output, check=False
        )
    text = said.read_text()
    assert done.returncode == 0, text[-4000:]
    (root,) = (tmp_path / "runs").glob("first-*")
    assert "Suspended" in text
    assert "released texts of first, until Ctrl-C" in text, "the inspector's page"
    assert "round 1 approved by Your Name" in text
    assert (tmp_path / "models" / "first" / "latest" / "adapter_model.safetensors").exists()
    assert "Approved by Your Name" in (tmp_path / "models" / "first" / "v1" / "README.md").read_text()
    assert re.search(r"^(spam|ham)$", text, re.MULTILINE), "the student's answer"
    assert str(root.name) in text
