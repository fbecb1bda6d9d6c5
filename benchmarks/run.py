"""What of a run's time is not in its stages: Python and Prefect starting, tasks, manifests, the signed log.

`configs/first.yaml` from end to end, in a process of its own as a user runs it, without its person in between. A
stage's seconds are those in its manifest: its own work and nothing of the flow's. The rest is what orchestration costs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.suite import Figure, figure, say
from tutelage.configs.errors import UserError

PASSED, REFUSED = 0, 3


def measure(full: bool) -> list[Figure]:
    """One run, then the same again, which finds everything done."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "tutelage.flows.cli", "run", "configs/first.yaml"),
            *("--run-dir", f"{folder}/runs/first", "--set", "gate.approval=false"),
        ]
        whole, again = (_seconds(command) for _ in range(2))
        manifests = [json.loads(path.read_text()) for path in Path(folder, "runs/first/stages").rglob("*.json")]
    within = sum(manifest["seconds"] for manifest in manifests)
    say(f"{len(manifests)} stages, {within:.1f} s of {whole:.1f} s")
    return [
        figure("`first.yaml`: share outside of stages", [100 * (1 - within / whole)], "%", at_most=3.0),
        figure("`first.yaml`: seconds outside of stages", [whole - within], " s"),
        figure(f"`first.yaml`: {len(manifests)} stages", [within], " s"),
        figure("`first.yaml`: again, with everything done", [again], " s"),
    ]


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code not in (PASSED, REFUSED):
        raise UserError(f"the run ended with exit code {code}", remedy="see what it printed above")
    return time.perf_counter() - started
