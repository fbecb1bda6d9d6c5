"""How often a gate is wrong: its attacks and rules over many pipelines that leak on purpose, and some that cannot leak.

    tutelage audit power [RECIPE] --seeds 300

Each seed is a small world of its own (worlds.py). What is measured in it is kept, so that another gate is judged on the
same worlds in no time; see `judge`.
"""

from __future__ import annotations

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from pydantic import BaseModel

from tutelage.configs.errors import UserError
from tutelage.configs.progress import Bar
from tutelage.configs.records import Metric
from tutelage.configs.schema import GateConfig, GateRule, PrivatePredictionPrivacy, Recipe
from tutelage.configs.store import digest
from tutelage.flows.power import ground, worlds
from tutelage.flows.power.worlds import KINDS, Pipeline, World
from tutelage.privacy import gate
from tutelage.privacy.stats import clopper_pearson
from tutelage.students import pocket

_PRIVACY = (
    "audit.",
    "canary.",
    "epsilon.",
    "extraction.",
    "instruction.",
    "lessons.",
    "mia.",
    "overlap.",
    "synthetic.",
)
"""The metrics that a world measures begin so; rules on others (accuracy, forgetting, scanner) are left out."""


@dataclass(frozen=True)
class Verdicts:
    """How a gate judged all worlds of one kind."""

    pipeline: Pipeline
    seeds: int
    wrong: int
    """Passed although it leaks, or refused although it cannot."""
    by: tuple[tuple[str, int], ...]
    """Rule -> worlds it refused, the most first."""

    @property
    def leaks(self) -> bool:
        return KINDS[self.pipeline].leaks

    @property
    def interval(self) -> tuple[float, float]:
        """95% Clopper-Pearson, of the share that is wrong."""
        return clopper_pearson(self.wrong, self.seeds)


def kinds_asked(recipe: Recipe, names: Sequence[str] | None) -> list[Pipeline]:
    """The kinds of pipelines with these names; None: all that a recipe's gate may be asked about.

    Raises:
        UserError: there is no such kind, or it takes a recipe with private prediction.
    """
    formal = isinstance(recipe.privacy, PrivatePredictionPrivacy)
    known = [name for name in KINDS if formal or not KINDS[name].formal]
    for name in names or ():
        if name not in known:
            raise UserError(
                f"there is no kind {name!r} for this recipe", key="--kind", remedy=f"one of {', '.join(known)}"
            )
    return [name for name in known if names is None or name in names]


def privacy_rules(recipe: Recipe) -> GateConfig:
    """The recipe's rules on what a world measures.

    Raises:
        UserError: it has none.
    """
    measured = [rule for rule in recipe.gate.rules if rule.metric.startswith(_PRIVACY)]
    rules: tuple[GateRule, ...] = tuple(rule for rule in measured if (rule.minus or rule.metric).startswith(_PRIVACY))
    if not rules:
        raise UserError(
            "no rule of this gate is about privacy: nothing could be refused for a leak",
            key="gate.rules",
            remedy="add some, e.g. {metric: mia.loss.auc, bound: ci_low, op: '<=', value: 0.55}",
        )
    return GateConfig(rules=rules)


def judge(measured: Iterable[World], recipe: Recipe) -> list[Verdicts]:
    """Hold a recipe's rules on privacy against worlds that have been measured."""
    rules = privacy_rules(recipe)
    refused: dict[Pipeline, list[bool]] = defaultdict(list)
    by: dict[Pipeline, Counter[str]] = defaultdict(Counter)
    for world in measured:
        decision = gate.decide(world.metrics, rules, lessons=world.lessons, defended=recipe.defended)
        refused[world.pipeline].append(not decision.passed)
        by[world.pipeline].update(outcome.rule for outcome in decision.outcomes if not outcome.passed)
    return [
        Verdicts(
            name,
            seeds=len(refused[name]),
            wrong=sum(one != KINDS[name].leaks for one in refused[name]),
            by=tuple(by[name].most_common()),
        )
        for name in KINDS
        if name in refused
    ]


def measure(
    recipe: Recipe, pipelines: Sequence[Pipeline], seeds: Sequence[int], *, results: Path | None = None, jobs: int = 1
) -> list[World]:
    """Measure every pipeline's world of every seed, those that are in a file of results already left out.

    Args:
        recipe: Its attacks, student, number of lessons and privacy; its data is not read.
        pipelines: Kinds.
        seeds: Each makes one world of each kind.
        results: Where each world is written down as it is done, a line each; None: nowhere.
        jobs: Processes of one thread each.
    """
    key = _key(recipe)
    known = {(one.pipeline, one.seed): one for one in (_read(results, key) if results else [])}
    asked = [(name, seed) for seed in seeds for name in pipelines]
    wanted = [one for one in asked if one not in known]
    with Bar(len(asked), "worlds", done=len(asked) - len(wanted)) as bar:
        for world in _made(recipe, wanted, jobs):
            known[world.pipeline, world.seed] = world
            if results:
                _append(results, world, key)
            bar.update()
    return [known[one] for one in asked]


def _made(recipe: Recipe, wanted: Sequence[tuple[Pipeline, int]], jobs: int) -> Iterator[World]:
    if not wanted:
        return
    worlds.ground()  # fetched and trained once, before there are several processes
    if jobs == 1:
        yield from (worlds.simulate(recipe, *one) for one in wanted)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        yield from pool.map(functools.partial(_simulate, recipe), wanted)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _simulate(recipe: Recipe, which: tuple[Pipeline, int]) -> World:
    return worlds.simulate(recipe, *which)


def _key(recipe: Recipe) -> str:
    """What figures depend on, the gate left out."""
    parts: list[BaseModel] = [recipe.attack, recipe.student, recipe.aggregate, recipe.privacy, recipe.measure]
    parts += [recipe.teach] if isinstance(recipe.privacy, PrivatePredictionPrivacy) else []
    versions = [worlds.VERSION, ground.VERSION, pocket.VERSION]
    return digest([versions, *(part.model_dump(mode="json") for part in parts)])


def _append(path: Path, world: World, key: str) -> None:
    row = {
        "key": key,
        "pipeline": world.pipeline,
        "seed": world.seed,
        "lessons": world.lessons,
        "metrics": [metric.model_dump(mode="json") for metric in world.metrics],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and not path.read_bytes().endswith(b"\n")  # by a kill: its line must not take this one along
    with path.open("a") as stream:
        stream.write("\n" * torn + json.dumps(row) + "\n")


def _read(path: Path, key: str) -> Iterator[World]:
    """The worlds of a file that were measured under the same settings; a line that was cut short is passed over."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            same = row["key"] == key and row["pipeline"] in KINDS
        except (ValueError, KeyError, TypeError):
            continue
        if same:
            metrics = tuple(Metric(**metric) for metric in row["metrics"])
            yield World(row["pipeline"], row["seed"], row["lessons"], metrics)
