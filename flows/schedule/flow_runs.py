"""A deployed recipe's flow runs: begun, watched, and resumed once a person has decided."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tutelage.configs.records import Approval
from tutelage.flows.schedule.up import reached

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

_SECONDS_BETWEEN_LOOKS = 2.0
_OF_A_FLOW_RUN = re.compile(r".+-([0-9a-f]{8})")


def folder(runs: Path, name: str, flow_run: UUID | str) -> Path:
    """A flow run's folder: named after the recipe and the flow run, so that a retry goes on in it."""
    return runs / f"{name}-{str(flow_run)[:8]}"


def begin(name: str) -> UUID:
    """Begin a run of a deployed recipe as soon as a worker is free."""
    from prefect.deployments import run_deployment

    with reached():
        begun: Any = run_deployment(f"run/{name}", timeout=0, as_subflow=False)
        made: UUID = begun.id
        return made


def watch(flow_run: UUID, say: Callable[[str], None]) -> State:
    """Wait until a flow run has ended or waits for a person, and say each state that it comes to."""
    from prefect.client.orchestration import get_client

    said = None
    with reached(), get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(flow_run).state
            if state is not None and state.name != said:
                said = state.name
                say(f"{state.name}{f': {state.message}' if state.message and state.is_final() else ''}")
            if state is not None and (state.is_final() or state.is_paused()):
                return state
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def resume_waiting(root: Path, word: Approval) -> UUID | None:
    """Resume the flow run that works in a folder, if that is one that waits; what was decided is in its log already.

    Args:
        root: The run's folder.
        word: What was decided.

    Returns:
        The flow run; None: there is none.

    Raises:
        UserError: the folder is a flow run's, and the Prefect server can't be reached.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.flow_runs import resume_flow_run

    found = _OF_A_FLOW_RUN.fullmatch(root.resolve().name)
    if found is None:
        return None
    waiting = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    with reached(), get_client(sync_client=True) as client:
        for one in client.read_flow_runs(flow_run_filter=waiting):
            here = Path(str(one.parameters.get("runs", ""))).resolve() == root.resolve().parent
            if here and str(one.id).startswith(found[1]):
                resume_flow_run(one.id, run_input=word.model_dump(include={"approved", "by", "reason"}))
                return one.id
    return None
