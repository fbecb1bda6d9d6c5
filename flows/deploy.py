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


def deploy(
    recipe: Recipe,
    path: Path,
    *,
    runs: Path,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    cron: str | None = None,
    interval_s: int | None = None,
    pool: str = POOL,
) -> dict[str, str]:
    """Make a recipe's deployments, or renew them: to run it, to audit a run, to publish one.

    One run of a recipe at a time: a second waits for the first, since both would draw on the same ledgers.

    Args:
        recipe: The recipe, checked.
        path: Its file.
        runs: Folder of run folders.
        jobs: Stages at once.
        overrides: As `--set` takes them.
        cron: When, in five fields, UTC.
        interval_s: Or how often, in seconds.
        pool: The work pool; made if it isn't there, of processes, one at a time.

    Returns:
        Deployment -> its id.

    Raises:
        UserError: the schedule means nothing, or the server can't be reached.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from tutelage.flows import deployed
    from tutelage.flows.up import reached

    schedule = _schedule(cron, interval_s)
    one_at_a_time = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    given = {"recipe": str(path.resolve()), "runs": str(runs.resolve()), "jobs": jobs, "overrides": list(overrides)}
    wanted: list[tuple[Any, dict[str, Any]]] = [
        (deployed.run, {"parameters": given, "concurrency_limit": one_at_a_time, **schedule}),
        (deployed.audit, {}),
        (deployed.publish, {}),
    ]
    with reached():
        make_pool(pool)
        return {
            f"{flow.name}/{recipe.name}": str(
                flow.to_deployment(
                    recipe.name,
                    tags=["tutelage", recipe.name],
                    work_pool_name=pool,
                    entrypoint_type=EntrypointType.MODULE_PATH,
                    **settings,
                ).apply()
            )
            for flow, settings in wanted
        }


def make_pool(name: str) -> None:
    """The work pool of that name, of processes on the worker's machine, one at a time; left as it is if it is there."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=1))
        except ObjectAlreadyExists:
            return


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
