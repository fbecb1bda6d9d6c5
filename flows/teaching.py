"""A silo's teacher as a stage opens it: the engine that the recipe names, or several behind a route."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, assert_never

from tutelage.configs.adapters import resolve_adapter
from tutelage.configs.models import hub_name, load_model, resolve_model
from tutelage.configs.schema import LabelRoute, OpenAIConfig, TeacherConfig, TransformersConfig, VllmConfig
from tutelage.flows import layout
from tutelage.flows.stage import Run
from tutelage.teachers import examples
from tutelage.teachers.cascade import Routed
from tutelage.teachers.engines.base import Engine
from tutelage.teachers.engines.openai import OpenAIEngine
from tutelage.teachers.engines.transformers import TransformersEngine
from tutelage.teachers.engines.vllm import VllmEngine
from tutelage.teachers.engines.vllm_parallel import ParallelVllm
from tutelage.teachers.scoring import PublicModel, Scorer
from tutelage.teachers.spending import Purse
from tutelage.teachers.staff import Staff
from tutelage.teachers.teacher import Solo, Teacher


def teacher(run: Run, round: int, silo: str) -> Teacher:
    """Who writes a silo's drafts in a round. Whoever asks closes it."""
    recipe, teach = run.recipe, run.recipe.teach
    route = teach.routed
    if route is None:
        return Solo(teacher_engine(teach.only(silo), teach.batch_rows), recipe.task)
    scorer, share = _scorer(run, silo), route.share(len(run.silos) * recipe.rounds)
    purse = Purse(layout.spending_path(run, round, silo), teach.teachers, share)
    staff = Staff(teach.teachers, lambda one: teacher_engine(one, teach.batch_rows), purse, teach.batch_rows)
    return Routed(staff, route, recipe.task, scorer, recipe.drafts_per_round)


def spending(teacher: Teacher, silo: str) -> dict[str, Any]:
    """The fact that says what several teachers cost; none of one."""
    return {"spending": teacher.spending(silo).model_dump()} if isinstance(teacher, Routed) else {}


def teacher_engine(teacher: TeacherConfig, batch_rows: int) -> Engine:
    """What a teacher writes with. Whoever asks for it closes it."""
    engine = teacher.engine
    match engine:
        case TransformersConfig():
            return _transformers(teacher, batch_rows)
        case VllmConfig():
            made = VllmEngine if engine.data_parallel_size == 1 else ParallelVllm
            return made(resolve_model(teacher.model), engine, _adapter(teacher))
        case OpenAIConfig():
            return OpenAIEngine(
                resolve_model(teacher.model, weights=False), engine, engine.model or hub_name(teacher.model)
            )
        case _:
            assert_never(engine)


def _transformers(teacher: TeacherConfig, batch_rows: int) -> TransformersEngine:
    """The same for all silos that this process teaches."""
    known = teacher.model, teacher.adapter, batch_rows
    if known not in _loaded:
        _loaded.clear()  # before the next is loaded: two may be more than the memory holds
        _loaded[known] = TransformersEngine(resolve_model(teacher.model), batch_rows, _adapter(teacher))
    return _loaded[known]


_loaded: dict[tuple[str, str | None, int], TransformersEngine] = {}


def _adapter(teacher: TeacherConfig) -> Path | None:
    return resolve_adapter(teacher.adapter, teacher.model) if teacher.adapter else None


def _scorer(run: Run, silo: str) -> Scorer | None:
    route, task = run.recipe.teach.routed, run.recipe.task
    if route is None or isinstance(route, LabelRoute):
        return None
    if route.scorer == "typicality":
        return examples.typicality(layout.records(run, silo), task)
    model = route.scorer_model or run.recipe.student.base
    return PublicModel(functools.partial(_judge, model), task)


@functools.lru_cache(maxsize=1)
def _judge(model: str) -> tuple[Any, Any]:
    return load_model(resolve_model(model), dtype="auto")
