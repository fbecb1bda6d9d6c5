"""How far work is: on the terminal, as one number for whoever runs it, and in Prefect's pages."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import report_fixture
from conftest import PREFECT_HOME
from doubles import HonestTeacher
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from small_run import files_below, recipe_for, write_recipe

from tutelage.configs.load import load_recipe
from tutelage.configs.progress import Bar, heard
from tutelage.configs.schema import ClassificationTask, TeachConfig
from tutelage.flows import pages, progress, workers
from tutelage.flows.server import start_embedded
from tutelage.flows.stage import Done, Run, StageError, create_run, stage
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers.examples import write_examples
from tutelage.teachers.teacher import Solo

SECRET = "zqPLANTEDinEveryRecord"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# ---- bars -----------------------------------------------------------------------------------------------------------


def test_a_bar_tells_its_share() -> None:
    told: list[float] = []
    with heard(told.append), Bar(8, done=2) as bar:
        bar.update()
        bar.update(3)
        bar.grow(4)
        bar.update(9)  # more than there should be
    assert told == [2 / 8, 3 / 8, 6 / 8, 6 / 12, 1]
    with Bar(1) as bar:
        bar.update()
    assert len(told) == 5, "nobody listens any more"


def test_bars_within_a_unit_fill_it() -> None:
    told: list[float] = []
    with heard(told.append), Bar(2) as outer:
        with Bar(2) as inner:
            inner.update()
        with Bar(4) as inner:  # the same unit's second bar does not lead back
            inner.update()
            inner.update(3)
        outer.update()
        with contextlib.suppress(KeyError), Bar(2) as inner:
            inner.update()
            raise KeyError
        with Bar(0) as inner:
            inner.update(0)
        outer.update()
    assert told == sorted(told)
    assert set(told) == {0, 1 / 4, 1 / 2, 3 / 4, 1}


def test_named_bars_are_drawn_on_a_terminal_and_others_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar(4) as whole, Bar(2, "student", "step") as bar:
        bar.update(2)
        bar.note(loss=0.5, heldback=0.25)
        whole.update()
    last = screen.getvalue().split("\r")[-1].strip()
    assert last.startswith("student: 100%|")
    assert "2/2" in last
    assert last.endswith("step/s, heldback=0.25, loss=0.5]")
    assert "/4" not in screen.getvalue()
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with Bar(2, "student", "step") as bar:
        bar.update(2)
    assert file.getvalue() == ""


def test_a_teacher_tells_how_far_it_is_and_no_text() -> None:
    told: list[Any] = []
    task = ClassificationTask(description="Sort mail.", labels={"ham": "h", "spam": "s"}, text_noun="e-mail")
    records = [PrivateRecord(f"r{i}", f"{SECRET} {i}", label) for i, label in enumerate(["ham", "spam"] * 4)]
    config = TeachConfig(prompts_per_label=3, references_per_prompt=2, drafts_per_prompt=4, keep_per_prompt=2)
    with heard(told.append):
        write_examples(
            Solo(HonestTeacher(), task), records, task=task, config=config, topics={}, silo="n", round=1, seed=0
        )
    assert told[0] == 0
    assert told[-1] == 1
    assert len(told) > 6
    assert {type(one) for one in told} == {float}


# ---- worker processes -----------------------------------------------------------------------------------------------


def half(end: Path) -> None:
    """Half of it is done, and that is all until the file is there."""
    with Bar(2) as bar:
        bar.update()
        uncounted(end)


def uncounted(end: Path) -> None:
    while not end.exists():
        time.sleep(0.01)


def test_a_workers_count_reaches_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOOK_S", 0.02)
    told: list[float] = []

    def hear(share: float) -> None:
        told.append(share)
        if share == 0.5:
            (tmp_path / "end").touch()

    with workers.working(2):
        pool = workers.active()
        assert pool is not None
        pool.run(half, tmp_path / "end", listener=hear)
        assert told[-1] == 0.5
        assert set(told) <= {0.0, 0.5}
        # what the one before had counted is not told of the next
        others: list[float] = []
        threading.Timer(0.3, (tmp_path / "second").touch).start()
        pool.run(uncounted, tmp_path / "second", listener=others.append)
        assert others == []


# ---- Prefect's pages ------------------------------------------------------------------------------------------------


class Server:
    """A client that keeps what it is told, and when; it fails as often as asked."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.made, self.told = failures, list[ArtifactCreate](), list[tuple[float, int]]()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def create_artifact(self, artifact: ArtifactCreate) -> Any:
        self._take(artifact.data)
        self.made.append(artifact)
        return type("Made", (), {"id": uuid4()})

    def update_artifact(self, id: UUID, artifact: Any) -> None:
        self._take(artifact.data)

    def _take(self, percent: int) -> None:
        self.told.append((time.monotonic(), percent))
        if self.failures:
            self.failures -= 1
            raise ConnectionError(SECRET)

    @property
    def percents(self) -> list[int]:
        return [percent for _, percent in self.told]


@pytest.fixture
def run_ids(monkeypatch: pytest.MonkeyPatch) -> tuple[UUID, UUID]:
    """Of the flow run and the task run that a test says it is in."""
    ids = uuid4(), uuid4()
    for kind, id in zip(("FLOW_RUN", "TASK_RUN"), ids, strict=True):
        monkeypatch.setenv(f"PREFECT__RUNTIME__{kind}__ID", str(id))
    return ids


@pytest.fixture
def serve(run_ids: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    def to(server: Server) -> Server:
        monkeypatch.setattr(progress, "get_client", lambda *_, **__: server)
        return server

    return to


def test_a_long_stage_is_told_of_once_a_look_at_most(serve: Callable[..., Server], run_ids: tuple[UUID, UUID]) -> None:
    server = serve(Server())
    with progress.showing("first_one", "first_one-1a2b", every_s=0.2), progress.shown("round-1/teach-silo-0") as hear:
        assert hear is not None
        for step in range(1, 201):
            hear(step / 200)
            time.sleep(0.005)
        time.sleep(0.5)
        assert server.percents, "it is told of while it works"
        assert 100 not in server.percents, "it is not finished"
    (made,) = server.made
    assert (made.key, made.type, made.data) == ("first-one-round-1-teach-silo-0", "progress", server.percents[0])
    assert made.description == "first_one-1a2b, round-1/teach-silo-0"
    assert (made.flow_run_id, made.task_run_id) == run_ids
    assert server.percents == sorted(set(server.percents))
    assert server.percents[-1] == 100
    times = [when for when, _ in server.told]
    assert all(later - earlier > 0.15 for earlier, later in pairwise(times[:-1]))
    assert len(times) <= 2 + (times[-1] - times[0]) / 0.2


def test_a_short_stage_and_one_that_counts_nothing_leave_nothing(serve: Callable[..., Server]) -> None:
    server = serve(Server())
    with progress.showing("small", "small-1", every_s=0.6):
        with progress.shown("index") as hear:  # there at the first look, and over at the second
            assert hear is not None
            hear(0.5)
            time.sleep(0.7)
        with progress.shown("prepare"):
            time.sleep(1.4)
        with contextlib.suppress(StageError), progress.shown("attack") as hear:
            assert hear is not None
            hear(0.5)
            time.sleep(0.7)
            raise StageError
        time.sleep(0.6)
    assert server.told == []


def test_a_stage_that_was_cut_short_ends_at_100_and_a_failed_one_does_not(serve: Callable[..., Server]) -> None:
    server = serve(Server())
    with progress.showing("small", "small-1", every_s=0.05):
        with progress.shown("learn") as hear:
            assert hear is not None
            hear(0.4)
            time.sleep(0.3)
        with contextlib.suppress(StageError), progress.shown("attack") as hear:
            assert hear is not None
            hear(0.7)
            time.sleep(0.3)
            raise StageError
    assert server.percents == [40, 100, 70]


def test_nothing_is_shown_unless_asked_for() -> None:
    with progress.shown("learn") as hear:
        assert hear is None


def test_a_server_that_fails_is_told_at_the_next_look(serve: Callable[..., Server]) -> None:
    server = serve(Server(failures=3))
    with progress.showing("small", "small-1", every_s=0.05), progress.shown("learn") as hear:
        assert hear is not None
        hear(0.4)
        time.sleep(0.6)
    assert server.percents == [40, 40, 40, 40, 100]


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """A port where calls are taken and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("there", [nobody, mute])
def test_a_server_that_does_not_answer_neither_breaks_nor_slows_a_stage(
    there: Callable[[], contextlib.AbstractContextManager[int]],
    run_ids: tuple[UUID, UUID],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.5)
    with there() as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        begun = time.monotonic()
        with progress.showing("small", "small-1", every_s=0.05):
            with progress.shown("learn") as hear:
                assert hear is not None
                with heard(hear), Bar(1000) as bar:
                    for _ in range(1000):
                        bar.update()
                        time.sleep(0.0005)
            assert time.monotonic() - begun < 2
        assert time.monotonic() - begun < 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("silo", ["silo-0", "Zürich, Süd", "a_b", "0.5"])
def test_keys_are_what_prefect_takes(silo: str) -> None:
    made = progress.key("first_one", f"round-1/teach_bracket-{silo}")
    assert ArtifactCreate(key=made).key == made
    assert made.startswith("first-one-round-1-teach-bracket-")


@stage(version=1)
def prepares(run: Run) -> Done:
    """As in every run the first stage is alone: it makes the run's key."""
    return [], {}


@stage(version=1)
def works(run: Run, round: int, silo: str) -> Done:
    """Half done until it may go on; then `bad` fails with a message that quotes a record."""
    with Bar(4) as bar:
        bar.update(2)
        uncounted(run.dir.root.parent / f"{silo}-may-go-on")
        bar.update()  # the rest is not needed
        if silo == "bad":
            raise ValueError(SECRET)
    return [], {}


@flow(name="progress", persist_result=False, log_prints=False, retries=0)
def stages(run_dir: str, silos: list[str], jobs: int) -> None:
    with workers.working(jobs), progress.showing("small", "small-1", every_s=0.2):
        made = prepares(run_dir, after=[])
        for one in [works(run_dir, 1, silo, after=[made]) for silo in silos]:
            assert one.manifest["stage"].startswith("round-1/works-")


def shown_since(before: set[UUID]) -> dict[str | None, Any]:
    """Key -> progress artifact, of those that the server did not have before."""
    with get_client(sync_client=True) as client:
        new = [one for one in client.read_artifacts() if one.id not in before and one.type == "progress"]
    assert len({one.key for one in new}) == len(new), "one for each stage"
    return {one.key: one for one in new}


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_real_server_has_an_artifact_of_each_stage(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LOOK_S", 0.05)
    start_embedded()
    recipe = load_recipe(write_recipe(tmp_path, recipe_for(tmp_path / "mails.jsonl", tmp_path / "model")))
    run = create_run(recipe, tmp_path / "run")
    with get_client(sync_client=True) as client:
        before = {one.id for one in client.read_artifacts()}
    halfway: dict[str | None, Any] = {}
    over = threading.Event()

    def let_go_what_is_shown() -> None:
        while not over.wait(0.1):
            for name, one in shown_since(before).items():
                halfway.setdefault(name, one.data)
                (tmp_path / f"{str(name).removeprefix('small-round-1-works-')}-may-go-on").touch()

    watching = threading.Thread(target=let_go_what_is_shown)
    watching.start()
    try:
        stages(str(run.dir.root), ["a", "b"], jobs)
        made = shown_since(before)
        with pytest.raises(StageError):
            stages(str(run.dir.root), ["a", "bad"], jobs)
    finally:
        over.set()
        watching.join()
    assert {name: one.data for name, one in made.items()} == {f"small-round-1-works-{silo}": 100 for silo in "ab"}
    assert set(halfway.values()) == {50}
    one = made["small-round-1-works-a"]
    assert one.description == "small-1, round-1/works-a"
    assert one.flow_run_id is not None
    with get_client(sync_client=True) as client:
        assert client.read_task_run(one.task_run_id).name == "round-1/works-a"
    # what was done before is not shown again, and what failed does not come to its end
    (failed,) = shown_since(before).keys() - made.keys()
    assert failed == "small-round-1-works-bad"
    assert shown_since(before)[failed].data in (50, 75)
    kept = [file for folder in (PREFECT_HOME, run.dir.stages, run.dir.release) for file in files_below(folder)]
    assert not [file for file in kept if SECRET.encode() in file.read_bytes()]


def test_the_rounds_table_says_where_report_and_data_set_are(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, recipe_for(tmp_path / "mails.jsonl", tmp_path / "model")))
    run = create_run(recipe, tmp_path / "run")
    shown = pages.markdown(run, report_fixture.report(round=2))
    assert f"`{run.dir.root}/release/report.html`" in shown
    assert f"`{run.dir.root}/release/round-2`" in shown
