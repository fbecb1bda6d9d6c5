"""The real flow, killed and resumed. Apart from test_flow.py, so that both may run side by side."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from doubles import HonestTeacher
from drive import drive, printed, start
from small_run import call, files_below, recipe_for

from tutelage.configs.load import parse_recipe
from tutelage.flows import stages, teaching
from tutelage.flows.stage import create_run, open_run, release_digests


def test_killed_anywhere_and_resumed_gives_the_same(
    mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the midst of a stage; what was finished is not redone; the released bytes are the same.

    In every stage: the slow test below. While texts are written under a guarantee: test_formal_flow.py.
    """
    kill_and_resume(mails[0], tiny_model, tmp_path, monkeypatch, ("round-1/measure",))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a process and a Prefect server for every one of some 25 stages
def test_killed_in_every_stage_and_resumed_gives_the_same(
    mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_and_resume(mails[0], tiny_model, tmp_path, monkeypatch, None)


def kill_and_resume(
    data: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[str, ...] | None
) -> None:
    """Prepare once, copy the folder, run one copy through, kill the other in each of `stops` (None: in all)."""
    monkeypatch.setattr(teaching, "teacher_engine", lambda *_: HonestTeacher())
    quick = {"originals": stops is None, "few_shot_per_label": 1, "bootstrap": 100, "neutral_texts": 2}
    recipe = parse_recipe(recipe_for(data, model, measure=quick))
    # canary coins and keys come from the operating system, so both runs must start from one preparation
    whole, broken = folder / "whole", folder / "broken"
    run = create_run(recipe, whole)
    stages.prepare(str(whole), after=[])
    shutil.copytree(whole, broken)
    assert call(monkeypatch, "resume", str(whole)) == 0
    expected = release_digests(run)
    if stops is None:
        named = [str(path.relative_to(run.dir.stages).with_suffix("")) for path in files_below(run.dir.stages)]
        stops = tuple(sorted(named, key=lambda name: run.dir.manifest_path(name).stat().st_mtime))[1:]
    killed = 0
    for stop in stops:
        if open_run(broken).dir.manifest_path(stop).exists():
            continue  # so quick that it was done before the kill in the stage before it came
        killed += 1
        before = {path: path.stat().st_mtime_ns for path in files_below(broken / "stages")}
        said = folder / f"said-{stop.replace('/', '-')}"
        process = start("honest", "resume", str(broken), output=said)
        for line in printed(process, said):
            if line.split() == [stop, "..."]:
                time.sleep(0.05)
                servers = psutil.Process(process.pid).children(recursive=True)
                process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert servers
        assert not psutil.wait_procs(servers, timeout=20)[1], "the embedded server outlives its killed run"
        assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished stage was written again"
    assert killed > len(stops) / 2
    code, said_last = drive("honest", "resume", str(broken), output=folder / "said-last")
    assert code == 0, said_last[-2000:]
    assert "done before" in said_last
    assert release_digests(open_run(broken)) == expected
