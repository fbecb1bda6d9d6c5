"""How often a gate is wrong: its attacks and rules over many pipelines that leak on purpose, and some that cannot leak.

    tutelage audit power [RECIPE] --seeds 300

Each seed is a small world of its own: two silos of real mails (public ones, from the package that the demo uses) with
planted canaries, lessons, a student that is really tuned to write such mails, all attacks, and the recipe's rules on
privacy. It takes seconds because base and teacher are a model of some 200,000 weights (students/pocket.py). What a
larger base would remember, this does not show: the figures are of attacks and rules, on leaks of these kinds.

What is measured is kept, so that another gate is judged on the same worlds in no time; see `judge`.
"""

from __future__ import annotations

import functools
import json
import math
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tutelage.configs.errors import UserError
from tutelage.configs.models import cache_dir, fetch_mail, load_model
from tutelage.configs.records import Example, Metric
from tutelage.configs.schema import (
    ClassificationTask,
    DataConfig,
    GateConfig,
    GateRule,
    GenerationTask,
    PrivatePredictionPrivacy,
    Recipe,
)
from tutelage.configs.store import canonical_json, digest, write_atomic
from tutelage.flows.attacks import NO_CLAIM_DELTA, added_likelihood
from tutelage.privacy import canaries, gate, similarity
from tutelage.privacy.allocation import Allocation, delta_for
from tutelage.privacy.attacks import overlap_audit, suite
from tutelage.privacy.attacks.base import Controls, Released, Settings
from tutelage.privacy.attacks.membership import whole_text
from tutelage.privacy.ledger import Internal
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.privacy.overlap import Overlap, OverlapIndex
from tutelage.privacy.partition import Partition, controls
from tutelage.privacy.sources import load_records
from tutelage.privacy.stats import clopper_pearson, point_metric
from tutelage.privacy.units import by_record
from tutelage.privacy.vault import PrivateRecord
from tutelage.students import pocket, train
from tutelage.students.scorer import ModelScorer
from tutelage.teachers import private, prompts
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.engines.transformers import TransformersEngine

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Raised when the same seed would give other figures."""
Pipeline = Literal["never_saw", "as_claimed", "copies", "overfits", "unclipped"]


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline."""

    leaks: bool
    what: str
    formal: bool = False
    """Whether it takes a recipe with private prediction."""


KINDS: dict[Pipeline, Kind] = {
    "never_saw": Kind(False, "teacher never saw the silos"),
    "as_claimed": Kind(False, "private prediction, as claimed", formal=True),
    "copies": Kind(True, "teacher copies 1% of the records"),
    "overfits": Kind(True, "student tuned on the records, 30 epochs"),
    "unclipped": Kind(True, "private prediction, clipping off", formal=True),
}

_MAX_CHARS = 160
_SILOS, _SILO_RECORDS = ("silo-0", "silo-1"), 56
_BATCH_UNITS = 8
"""So small a teacher hardly heeds what it is shown: behind a batch of many its scores never reach the clip, and
clipping switched off would be no leak."""
_COPIED_SHARE = 0.01
_OVERFIT = {"epochs": 30, "batch_rows": 16, "heldback_share": 0.0}
_RATE = 2e-3
"""Learning rate of so small a base."""
_TOKENS, _WRITTEN, _DRAFTS = 64, 400, 16
"""Length of what the pocket model writes, and how many texts of each label a world may draw from."""
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


# ---- what is asked and what was found ---------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What was measured in one world."""

    pipeline: Pipeline
    seed: int
    lessons: int
    metrics: tuple[Metric, ...]


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


def judge(worlds: Iterable[World], recipe: Recipe) -> list[Verdicts]:
    """Hold a recipe's rules on privacy against worlds that have been measured."""
    rules = privacy_rules(recipe)
    refused: dict[Pipeline, list[bool]] = defaultdict(list)
    by: dict[Pipeline, Counter[str]] = defaultdict(Counter)
    for world in worlds:
        decision = gate.decide(world.metrics, rules, lessons=world.lessons)
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


# ---- many worlds ------------------------------------------------------------------------------------------------


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
    from tqdm import tqdm

    key = _key(recipe)
    known = {(one.pipeline, one.seed): one for one in (_read(results, key) if results else [])}
    asked = [(name, seed) for seed in seeds for name in pipelines]
    wanted = [one for one in asked if one not in known]
    with tqdm(desc="worlds", total=len(asked), initial=len(asked) - len(wanted), disable=None) as bar:
        for world in _made(recipe, wanted, jobs):
            known[world.pipeline, world.seed] = world
            if results:
                _append(results, world, key)
            bar.update()
    return [known[one] for one in asked]


def _made(recipe: Recipe, wanted: Sequence[tuple[Pipeline, int]], jobs: int) -> Iterator[World]:
    if not wanted:
        return
    ground()  # fetched and trained once, before there are several processes
    if jobs == 1:
        yield from (simulate(recipe, *one) for one in wanted)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        yield from pool.map(functools.partial(_simulate, recipe), wanted)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _simulate(recipe: Recipe, which: tuple[Pipeline, int]) -> World:
    return simulate(recipe, *which)


def _key(recipe: Recipe) -> str:
    """What figures depend on, the gate left out."""
    parts = [recipe.attack, recipe.student, recipe.aggregate, recipe.privacy, recipe.measure]
    formal = isinstance(recipe.privacy, PrivatePredictionPrivacy)
    return digest(
        [VERSION, *(part.model_dump(mode="json") for part in parts), recipe.teach.model_dump() if formal else {}]
    )


def _append(path: Path, world: World, key: str) -> None:
    row = {
        "key": key,
        "pipeline": world.pipeline,
        "seed": world.seed,
        "lessons": world.lessons,
        "metrics": [metric.model_dump(mode="json") for metric in world.metrics],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def _read(path: Path, key: str) -> Iterator[World]:
    """The worlds of a file that were measured under the same settings; a line that was cut short is passed over."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["key"] == key and row["pipeline"] in KINDS:
            metrics = tuple(Metric(**metric) for metric in row["metrics"])
            yield World(row["pipeline"], row["seed"], row["lessons"], metrics)


# ---- one world --------------------------------------------------------------------------------------------------


def simulate(recipe: Recipe, pipeline: Pipeline, seed: int) -> World:
    """Make one world, and attack it."""
    place, rng = ground(), random.Random(f"{pipeline}/{seed}")
    privacy = recipe.privacy
    formal = (
        privacy.model_copy(update={"batch_units": _BATCH_UNITS})
        if isinstance(privacy, PrivatePredictionPrivacy)
        else None
    )
    size = _SILO_RECORDS
    if formal:
        size = max(size, recipe.teach.prompts_per_label * formal.batch_units + formal.instruction_units)
    drawn = place.draw(rng, len(_SILOS) * size + recipe.attack.canaries + recipe.attack.members)
    outside = drawn[len(_SILOS) * size :]
    silos = {name: drawn[at * size :][:size] for at, name in enumerate(_SILOS)}
    as_here = recipe.model_copy(update={"task": STUDENT_TASK})
    inside, nonmembers, carriers = controls(Partition(silos, [], outside, 0, 0), as_here, rng)
    silos, planted = canaries.plant(silos, carriers, recipe.attack, STUDENT_TASK, rng, max_chars=_MAX_CHARS)
    held = [record for records in silos.values() for record in records]
    with tempfile.TemporaryDirectory(prefix="tutelage-power-") as folder:
        vault = Path(folder) / "vault"
        vault.mkdir()
        if formal and KINDS[pipeline].formal:
            lessons, found = _privately(recipe, formal, pipeline, silos, nonmembers, vault)
        else:
            lessons, found = place.lessons(rng, recipe.aggregate.lessons_per_class), []
        if pipeline == "copies":
            count = max(1, round(_COPIED_SHARE * len(held)))
            lessons[:count] = [record.example() for record in rng.sample(held, count)]
        taught = [record.example() for record in held] if pipeline == "overfits" else lessons
        released = _released(recipe, pipeline, lessons, taught, vault, seed)
        settings = Settings(recipe.measure.bootstrap, seed, place.embed)
        everyone = Controls(
            tuple(record.example() for record in inside),
            tuple(record.example() for record in nonmembers),
            tuple(planted),
        )
        delta = delta_for(recipe, size) if recipe.formal else NO_CLAIM_DELTA
        student, base = released.student, released.base
        assert isinstance(student, ModelScorer)
        assert isinstance(base, ModelScorer)
        gain = added_likelihood(student, base)
        metrics = suite.run_all(recipe.attack, released, everyone, settings, delta=delta, gain=gain).metrics
    if recipe.formal:
        found.append(point_metric("epsilon.claimed", recipe.formal.epsilon, len(silos), "an upper bound"))
    overlaps = {name: _overlap(records, lessons) for name, records in silos.items()}
    return World(pipeline, seed, len(lessons), (*found, *metrics, *overlap_audit.combine(overlaps)))


def _released(
    recipe: Recipe, pipeline: Pipeline, lessons: Sequence[Example], taught: Sequence[Example], vault: Path, seed: int
) -> Released:
    """What leaves: the lessons' texts, and a student that was tuned on `taught`."""
    place = ground()
    changes = {"learning_rate": _RATE, "target_modules": "all-linear", "max_tokens": 512} | (
        _OVERFIT if pipeline == "overfits" else {}
    )
    student = recipe.student.model_copy(update=changes)

    def tuned(name: str, examples: Sequence[Example], instruction: str | None, **more: Any) -> ModelScorer:
        train.train_upper_line(
            [PrivateRecord(one.id, one.prompt, one.completion) for one in examples],
            instruction=instruction,
            base=place.base,
            base_name=pocket.NAME,
            out=vault / name,
            config=student.model_copy(update=more),
            seed=seed,
            progress=False,
        )
        return _scorer(train.load_student(place.base, vault / name), instruction)

    texts = tuple(whole_text(one) for one in lessons)
    told = [Example(id=str(at), prompt="", completion=text) for at, text in enumerate(texts)]
    base = _scorer(load_model(place.base), _INSTRUCTION)
    auxiliary = tuned("auxiliary", told, None, epochs=2, heldback_share=0.0) if _asks(recipe, "auxiliary") else None
    return Released(
        texts,
        _INSTRUCTION,
        tuned("student", taught, _INSTRUCTION),
        base,
        references=(base,),
        auxiliary=auxiliary,
        bare=_scorer(load_model(place.base), None),
    )


def _asks(recipe: Recipe, attack: str) -> bool:
    return attack in recipe.attack.run


def _scorer(loaded: tuple[Any, Any], instruction: str | None) -> ModelScorer:
    return ModelScorer(*loaded, instruction, batch_rows=32)


def _overlap(records: Sequence[PrivateRecord], lessons: Sequence[Example]) -> dict[str, float | int]:
    """As the flow measures it, on the raw texts alone: scrubbing them all would take as long as the rest."""
    texts, place = [one.completion for one in lessons], ground()
    index = OverlapIndex(_shown(records), public_completions=frozenset(_LABELS))
    cosines = similarity.max_cosine(place.embed(texts), place.embed([record.completion for record in records]))
    found = zip(index.copying(texts), cosines, strict=True)
    return overlap_audit.summarise([Overlap(*one, float(cosine)) for one, cosine in found])


class _Unclipped(PrivatePrediction):
    """The mechanism with its fault: it claims what it claims, and clips nothing."""

    def scores(
        self, public: torch.Tensor, private: torch.Tensor, present: torch.Tensor, divisor: torch.Tensor
    ) -> torch.Tensor:
        return PrivatePrediction(math.inf, self.temperature, self.top_k, self.max_tokens).scores(
            public, private, present, divisor
        )


def _privately(
    recipe: Recipe,
    privacy: PrivatePredictionPrivacy,
    pipeline: Pipeline,
    silos: dict[str, list[PrivateRecord]],
    outside: Sequence[PrivateRecord],
    vault: Path,
) -> tuple[list[Example], list[Metric]]:
    """Lessons under private prediction, and what the probe of the mechanism says of it on records of no silo."""
    place = ground()
    engine = TransformersEngine(place.base, recipe.teach.batch_rows)
    rho = Allocation.of(recipe, len(silos[_SILOS[0]])).teach
    _, mechanism = private.mechanisms(rho, recipe.teach)
    if pipeline == "unclipped":
        mechanism, rho = _Unclipped(**vars(mechanism)), math.inf
    ratio, draws = private.probe(engine, _shown(outside), task=TEACHER_TASK, privacy=privacy, mechanism=mechanism)
    lessons: list[Example] = []
    for name, held in silos.items():
        records = _shown(held)
        written = private.write_lessons(
            engine,
            records,
            task=TEACHER_TASK,
            teach=recipe.teach,
            privacy=privacy,
            rho=rho,
            shares={},
            deal=private.Deal.draw(by_record(records), recipe.teach.prompts_per_label, privacy),
            allowance=Internal(),
            unused=range(recipe.teach.prompts_per_label + 1),
            journal=private.Journal(vault / f"{name}.jsonl"),
            silo=name,
            round=1,
        )
        examples = [draft for draft in written.drafts if draft.kind == "example"]
        lessons += [Example(id=one.id, prompt=_ASKED[one.completion], completion=one.prompt) for one in examples]
    return lessons, [point_metric("audit.mechanism.shift_ratio", ratio, draws, "a maximum; the mechanism allows 1")]


# ---- what all worlds are made of --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """The mails that worlds are made of, the base that was trained on others of them, and what it writes."""

    base: Path
    records: dict[str, list[PrivateRecord]]
    """By label; no two are near-duplicates."""
    written: dict[str, list[str]]
    embed: Callable[[Sequence[str]], np.ndarray]

    def draw(self, rng: random.Random, count: int) -> list[PrivateRecord]:
        """Different records in random order, as many of each label."""
        per_label = -(-count // len(self.records))
        drawn = [record for pool in self.records.values() for record in rng.sample(pool, min(per_label, len(pool)))]
        if len(drawn) < count:
            raise UserError(
                f"a world takes {count} mails, as many of each label; there are {len(drawn)}",
                key="attack.members",
                remedy="lower it, or attack.canaries, or privacy.batch_units",
            )
        rng.shuffle(drawn)
        return drawn[:count]

    def lessons(self, rng: random.Random, per_label: int) -> list[Example]:
        """What a teacher that never saw a silo might write."""
        drawn = [(label, text) for label, pool in self.written.items() for text in rng.sample(pool, per_label)]
        rng.shuffle(drawn)
        return [
            Example(id=f"lesson-{at}", prompt=_ASKED[label], completion=text) for at, (label, text) in enumerate(drawn)
        ]


_LABELS = {"spam": "unwanted", "ham": "wanted"}
_ASKED = {label: f"Write a {label} e-mail." for label in _LABELS}
STUDENT_TASK = GenerationTask(description="You write e-mails.", text_noun="e-mail")
"""Students learn texts here, not labels: what they could remember is then all of a record."""
_INSTRUCTION = prompts.public_instruction(STUDENT_TASK)
TEACHER_TASK = ClassificationTask(description="Sort e-mails.", text_noun="e-mail", labels=_LABELS)


def _shown(records: Sequence[PrivateRecord]) -> list[PrivateRecord]:
    """Records as a teacher has them: a text and its label."""
    label_of = {asked: label for label, asked in _ASKED.items()}
    return [PrivateRecord(record.id, record.completion, label_of[record.text]) for record in records]


@functools.lru_cache(maxsize=1)
def ground() -> Ground:
    """Load the mails, and the base that goes with them; the first time it is trained."""
    loaded = load_records(DataConfig(max_chars=_MAX_CHARS), TEACHER_TASK, fetch_mail).records
    groups = similarity.near_duplicate_groups([record.text for record in loaded], threshold=0.5)
    one_each = {group: record for group, record in zip(reversed(groups), reversed(loaded), strict=True)}
    records = sorted(one_each.values(), key=lambda record: record.id)
    random.Random(0).shuffle(records)
    public, rest = records[::3], [record for at, record in enumerate(records) if at % 3]
    examples = [record.example() for record in public]
    version = digest([pocket.VERSION, VERSION, _LABELS, [one.id for one in public]])[:16]
    base = cache_dir() / f"pocket-{version}"
    written = base / "written.json"
    if not written.exists():
        pocket.make_pocket_model(examples, base)
        texts = _write(TransformersEngine(base, batch_rows=64))
        write_atomic(written, canonical_json(texts) + "\n")
    by_label: dict[str, list[PrivateRecord]] = {label: [] for label in _LABELS}
    for record in rest:
        by_label[record.completion].append(PrivateRecord(record.id, _ASKED[record.completion], record.text))
    return Ground(base, by_label, json.loads(written.read_text()), _Remembered())


def _write(engine: TransformersEngine) -> dict[str, list[str]]:
    sampling = Sampling(_TOKENS, temperature=0.8, top_p=1.0, top_k=50, stop=prompts.STOP)
    texts = {}
    for label in _LABELS:
        # drafts of one prompt are computed in one row, whose cost grows with the square of their number
        found = engine.generate([pocket.heading(label)] * (2 * _WRITTEN // _DRAFTS), _DRAFTS, sampling, seed=0)
        kept = (
            prompts.parse_example(TEACHER_TASK, label, one.text, one.finished) for drafts in found for one in drafts
        )
        texts[label] = [one[0] for one in kept if one and len(one[0].split()) >= 6][:_WRITTEN]
    return texts


class _Remembered:
    """Sentence embeddings, each computed once: worlds are made of the same texts again and again."""

    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        self.known |= dict(zip(new, similarity.embed(new), strict=True))
        return np.stack([self.known[text] for text in texts]) if texts else np.zeros((0, similarity.EMBEDDING_DIM))
