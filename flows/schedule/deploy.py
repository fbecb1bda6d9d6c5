"""`tutelage deploy`: a recipe's deployments on a Prefect server, with a schedule, a form and a limit."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError
from tutelage.configs.schema import Recipe

POOL = "tutelage"
"""The work pool of `tutelage up`."""
LIGHT = "light"
"""The work queue of what takes seconds: it doesn't wait behind runs, which go one at a time."""
_PATIENCE_S = 60
"""A server that was started just before takes a while to answer."""
_HEARTBEAT_S = 30
_GONE_S = 4 * _HEARTBEAT_S
_WITH_HEARTBEAT = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(_HEARTBEAT_S)}}


def deploy(
    recipe: Recipe,
    path: Path,
    *,
    runs: Path,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    cron: str | None = None,
    interval_s: int | None = None,
    look_s: int | None = None,
    pool: str = POOL,
) -> dict[str, str]:
    """Make a recipe's deployments, or renew them: to run it, to audit a run, to publish one, to look for new records.

    One run of a recipe at a time: a second waits for the first, since both would draw on the same ledgers.

    Args:
        recipe: The recipe, checked.
        path: Its file.
        runs: Folder of run folders.
        jobs: Stages at once.
        overrides: As `--set` takes them.
        cron: When, in five fields, UTC.
        interval_s: Or how often, in seconds.
        look_s: How often to look for new records, in seconds, and begin a run when there are some.
        pool: The work pool; made if it isn't there.

    Returns:
        Deployment -> its id.

    Raises:
        UserError: the schedule means nothing, or the server can't be reached.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from tutelage.flows.schedule import deployed
    from tutelage.flows.schedule.up import reached

    schedule = _schedule(cron, interval_s)
    one_at_a_time = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    given = {"recipe": str(path.resolve()), "runs": str(runs.resolve()), "jobs": jobs, "overrides": list(overrides)}
    wanted: list[tuple[Any, dict[str, Any]]] = [
        (deployed.run, {"parameters": given, "concurrency_limit": one_at_a_time, **schedule}),
        (deployed.audit, {"work_queue_name": LIGHT}),
        (deployed.publish, {"work_queue_name": LIGHT}),
    ]
    if look_s is not None:
        looked = {name: given[name] for name in ("recipe", "overrides")}
        every = datetime.timedelta(seconds=look_s)
        wanted.append((deployed.look, {"parameters": looked, "interval": every, "work_queue_name": LIGHT}))
    with reached(patience_s=_PATIENCE_S):
        make_pool(pool)
        _crash_what_is_gone()
        return {
            f"{flow.name}/{recipe.name}": str(
                flow.to_deployment(
                    recipe.name,
                    tags=["tutelage", recipe.name],
                    work_pool_name=pool,
                    entrypoint_type=EntrypointType.MODULE_PATH,
                    job_variables=_WITH_HEARTBEAT,
                    **settings,
                ).apply()
            )
            for flow, settings in wanted
        }


def deploy_silo(home: Path, name: str) -> None:
    """Make a silo's work pool and its deployment, or renew them: what runs call whose silo it is.

    Args:
        home: The silo's folder, on its worker's machine.
        name: The silo's.
    """
    from prefect.types.entrypoint import EntrypointType

    from tutelage.flows.schedule import deployed

    make_pool(silo_pool(name))
    part: Any = deployed.silo
    part.to_deployment(
        name,
        parameters={"home": str(home)},
        tags=["tutelage", f"silo-{name}"],
        work_pool_name=silo_pool(name),
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables=_WITH_HEARTBEAT,
    ).apply()


def silo_pool(name: str) -> str:
    """The work pool of a silo's own worker."""
    return f"silo-{name}"


def make_pool(name: str) -> None:
    """The work pool of that name, left as it is if it is there: processes on the worker's machine.

    Of runs one at a time, since each takes the machine's memory and processors; beside it what is light.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        except ObjectAlreadyExists:
            return
        runs = client.read_work_queue_by_name("default", work_pool_name=name)
        client.update_work_queue(runs.id, concurrency_limit=1)
        client.create_work_queue(LIGHT, concurrency_limit=2, work_pool_name=name)


def _crash_what_is_gone() -> None:
    """Let the server mark flow runs as crashed whose process has ended without a word, as a killed one does.

    Any event of a flow run counts as a sign of life. Retried, it goes on after its last finished stage.
    """
    from prefect.automations import Automation, EventTrigger, Posture, ResourceSpecification
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    tagged = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.tutelage"}
    name = "tutelage: a run without a heartbeat has crashed"
    with get_client(sync_client=True) as client:
        if client.read_automations_by_name(name):
            return
    message = f"no sign of life for {_GONE_S} s: its process is gone. Retry it, and it goes on where it was."
    Automation(
        name=name,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(tagged),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=datetime.timedelta(seconds=_GONE_S),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)],
    ).create()


def _schedule(cron: str | None, interval_s: int | None) -> dict[str, Any]:
    if cron is not None and interval_s is not None:
        raise UserError("a schedule is either --cron or --every", key="--every", remedy="leave one of them out")
    if interval_s is not None:
        return {"interval": datetime.timedelta(seconds=interval_s)}
    if cron is None:
        return {}
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        return {"schedule": CronSchedule(cron=cron, timezone="UTC")}
    except ValidationError:
        raise UserError("this is no cron schedule", key="--cron", remedy='five fields, e.g. "0 2 * * 1-5"') from None
