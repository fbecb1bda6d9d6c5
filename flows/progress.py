"""How far long stages are, in Prefect's pages: a progress artifact for each.

An artifact holds a percentage, the stage's name and the run's id. A thread of its own tells the server what was heard
last, so that a stage neither waits for a server nor fails with one.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from tutelage.configs.progress import Listener

EVERY_S = 5.0
"""Between two looks at what was heard: a stage is told of once a look at most, and not at all if it is over sooner."""
_PATIENCE_S = 10.0
"""How long the server may take to answer, and at the end to hear of what is finished."""


@dataclass(eq=False)
class _Stage:
    """One that is at work, or has just finished."""

    name: str
    flow_run: UUID
    task_run: UUID
    percent: int | None = None
    """What was heard last; None: nothing yet. 100: it is finished, and not before."""
    seen: bool = False
    """Whether it was at work at an earlier look."""
    artifact: UUID | None = None
    told: int | None = None
    """The percentage that the server knows."""

    def hear(self, share: float) -> None:
        self.percent = min(99, int(100 * share))


class Pages:
    """Tells a Prefect server of the stages at work.

    Args:
        recipe: Its name: the artifacts' keys begin so.
        run_id: Stands in their descriptions.
        every_s: Between two looks, in seconds.
    """

    def __init__(self, recipe: str, run_id: str, every_s: float = EVERY_S) -> None:
        self._recipe, self._run_id, self._every_s = recipe, run_id, every_s
        self._stages: set[_Stage] = set()
        self._over = threading.Event()
        # One of its own: the flow's is closed with the flow, and waits longer for an answer.
        self._client = get_client({"timeout": _PATIENCE_S}, sync_client=True)
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Listener]:
        """What a stage's bars are to tell meanwhile, within its task run. It comes to 100 only if nothing is raised."""
        stage = _Stage(name, UUID(runtime.flow_run.id), UUID(runtime.task_run.id))
        self._stages.add(stage)
        try:
            yield stage.hear
        except BaseException:
            self._stages.discard(stage)
            raise
        stage.percent = 100

    def close(self) -> None:
        """Tell what is finished, if the server answers in time."""
        self._over.set()
        self._thread.join(_PATIENCE_S)

    def _tell(self) -> None:
        with self._client as client:
            while not self._over.wait(self._every_s):
                self._look(client)
            self._look(client)

    def _look(self, client: SyncPrefectClient) -> None:
        for stage in list(self._stages):
            # No run fails because its page does, for whatever reason; the next look tries again.
            with contextlib.suppress(Exception):
                self._tell_of(stage, client)

    def _tell_of(self, stage: _Stage, client: SyncPrefectClient) -> None:
        percent = stage.percent
        if percent is None:
            return
        if stage.artifact is None and stage.seen and percent < 100:
            made = ArtifactCreate(
                key=key(self._recipe, stage.name),
                type="progress",
                description=f"{self._run_id}, {stage.name}",
                data=percent,
                flow_run_id=stage.flow_run,
                task_run_id=stage.task_run,
            )
            stage.artifact, stage.told = client.create_artifact(made).id, percent
        elif stage.artifact is not None and percent != stage.told:
            client.update_artifact(stage.artifact, ArtifactUpdate(data=percent))
            stage.told = percent
        stage.seen = True
        if percent == 100:
            self._stages.discard(stage)


def key(recipe: str, stage: str) -> str:
    """`first-round-1-teach-silo-0`: Prefect's keys are of lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", f"{recipe}-{stage}".lower()).strip("-")


_pages: Pages | None = None


@contextlib.contextmanager
def showing(recipe: str, run_id: str, every_s: float = EVERY_S) -> Iterator[None]:
    """Show in Prefect's pages how far the stages are meanwhile, within a flow run; arguments as of `Pages`."""
    global _pages
    _pages = Pages(recipe, run_id, every_s)
    try:
        yield
    finally:
        _pages.close()
        _pages = None


def shown(stage: str) -> contextlib.AbstractContextManager[Listener | None]:
    """What that stage's bars are to tell, within its task run; None where nothing is shown."""
    return _pages.stage(stage) if _pages else contextlib.nullcontext()
