"""One world of `audit power`: a small pipeline that leaks on purpose, or cannot leak, and all attacks on it.

Two silos of real mails (public ones, from the package that the demo uses) with planted canaries, lessons, a student
that is really tuned to write such mails, and the attacks of a recipe. It takes seconds because base and teacher are a
model of some 200,000 weights (students/pocket.py). What a larger base would remember, this does not show: the figures
are of attacks and rules, on leaks of these kinds.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tutelage.configs.models import load_model
from tutelage.configs.records import Example, Metric
from tutelage.configs.schema import PrivatePredictionPrivacy, Recipe
from tutelage.flows.attacks import NO_CLAIM_DELTA, added_likelihood
from tutelage.flows.power.ground import ASKED, INSTRUCTION, LABELS, MAX_CHARS, STUDENT_TASK, TEACHER_TASK, ground, shown
from tutelage.privacy import canaries, similarity
from tutelage.privacy.allocation import Allocation, delta_for
from tutelage.privacy.attacks import overlap_audit, suite
from tutelage.privacy.attacks.base import Controls, Released, Settings
from tutelage.privacy.attacks.membership import whole_text
from tutelage.privacy.ledger import Internal
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.privacy.overlap import Corpus, Overlap
from tutelage.privacy.partition import Partition, controls
from tutelage.privacy.stats import point_metric
from tutelage.privacy.units import by_record
from tutelage.privacy.vault import PrivateRecord
from tutelage.students import pocket, train
from tutelage.students.scorer import ModelScorer
from tutelage.teachers import private
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

_SILOS, _SILO_RECORDS = ("silo-0", "silo-1"), 56
_BATCH_UNITS = 8
"""So small a teacher hardly heeds what it is shown: behind a batch of many its scores never reach the clip, and
clipping switched off would be no leak."""
_COPIED_SHARE = 0.01
_OVERFIT = {"epochs": 30, "batch_rows": 16, "heldback_share": 0.0}
_RATE = 2e-3
"""Learning rate of so small a base."""


@dataclass(frozen=True)
class World:
    """What was measured in one world; little where its lessons were too few to train a student, and a gate refuses."""

    pipeline: Pipeline
    seed: int
    lessons: int
    metrics: tuple[Metric, ...]


def simulate(recipe: Recipe, pipeline: Pipeline, seed: int) -> World:
    """Make one world, and attack it.

    Args:
        recipe: Its attacks, student, number of lessons and privacy.
        pipeline: What kind of world.
        seed: Which of them: its records, coins, secrets and lessons. A private draw is the operating system's all the
            same, so worlds of private prediction do not repeat.

    Raises:
        UserError: there are too few mails for so many members, canaries and units.
    """
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
    silos: Mapping[str, Sequence[PrivateRecord]] = {name: drawn[at * size :][:size] for at, name in enumerate(_SILOS)}
    as_here = recipe.model_copy(update={"task": STUDENT_TASK})
    inside, nonmembers, carriers = controls(Partition(silos, [], outside, 0, 0), as_here, rng)
    silos, planted = canaries.plant(silos, carriers, recipe.attack, STUDENT_TASK, rng, max_chars=MAX_CHARS)
    held = [record for records in silos.values() for record in records]
    with tempfile.TemporaryDirectory(prefix="tutelage-power-") as folder:
        vault = Path(folder) / "vault"
        vault.mkdir()
        if formal and KINDS[pipeline].formal:
            lessons, found = _privately(recipe, formal, pipeline, silos, nonmembers, vault)
        else:
            lessons, found = place.lessons(rng, recipe.aggregate.lessons_per_class), []
        if len(lessons) < train.MIN_LESSONS:
            return World(pipeline, seed, len(lessons), tuple(found))  # as a run ends that nobody can learn from
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
        metrics = [
            metric
            for surface in suite.SURFACES
            for metric in suite.run(
                surface, recipe.attack, released, everyone, settings, delta=delta, gain=gain
            ).metrics
        ]
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
    base = _scorer(load_model(place.base), INSTRUCTION)
    auxiliary = tuned("auxiliary", told, None, epochs=2, heldback_share=0.0) if _asks(recipe, "auxiliary") else None
    return Released(
        texts,
        INSTRUCTION,
        tuned("student", taught, INSTRUCTION),
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
    corpus = Corpus(shown(records), public_completions=frozenset(LABELS))
    cosines = similarity.max_cosine(place.embed(texts), place.embed([record.completion for record in records]))
    found = zip(corpus.copying(texts), cosines, strict=True)
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
    silos: Mapping[str, Sequence[PrivateRecord]],
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
    ratio, draws = private.probe(engine, shown(outside), task=TEACHER_TASK, privacy=privacy, mechanism=mechanism)
    lessons: list[Example] = []
    for name, held in silos.items():
        records = shown(held)
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
        lessons += [Example(id=one.id, prompt=ASKED[one.completion], completion=one.prompt) for one in examples]
    return lessons, [point_metric("audit.mechanism.shift_ratio", ratio, draws, "a maximum; the mechanism allows 1")]
