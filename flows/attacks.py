"""The stages that attack a round: the scanner's own test, the attacker's model, and all attacks.

They read what was released, and private records only as members to be told from non-members.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from tutelage.configs.errors import PrivacyError
from tutelage.configs.models import hub_name, load_model, resolve_model
from tutelage.configs.records import Example
from tutelage.configs.schema import PrivatePredictionPrivacy
from tutelage.flows import formal, layout
from tutelage.flows.stage import Done, Run, stage
from tutelage.flows.stages import labels, scrubber
from tutelage.flows.teaching import teacher_engine
from tutelage.privacy import canaries, gate
from tutelage.privacy.attacks import contamination, suite
from tutelage.privacy.attacks.base import Controls, Released, Settings
from tutelage.privacy.attacks.membership import whole_text
from tutelage.privacy.attacks.suite import Surface
from tutelage.privacy.overlap import Corpus
from tutelage.privacy.pii.check import check
from tutelage.privacy.stats import point_metric
from tutelage.privacy.vault import PrivateRecord, read_records
from tutelage.students import score, train
from tutelage.students.scorer import ModelScorer
from tutelage.teachers import private, prompts
from tutelage.teachers.engines.private import PrivateEngine

_AUXILIARY_EPOCHS = 2
_AUXILIARY_TEXTS = 200
NO_CLAIM_DELTA = 1e-5
"""δ of the one-run audit where no guarantee names one."""


@stage(version=2)
def check_scanner(run: Run) -> Done:
    """How much planted, known personal data the recipe's detectors find."""
    screen = run.recipe.screen
    metrics = check(scrubber(screen), screen.entities, n=screen.check_texts, seed=run.recipe.seed)
    return [], {"metrics": [metric.model_dump() for metric in metrics]}


@stage(version=2)
def probe_mechanism(run: Run) -> Done:
    """Whether one record moves a teacher's scores by no more than the guarantee says, on records of no silo.

    It comes before a teacher reads a silo's record: if the mechanism does not hold, nothing is spent and nothing leaks.
    """
    recipe, privacy = run.recipe, run.recipe.formal
    if not isinstance(privacy, PrivatePredictionPrivacy) or privacy.epsilon == 0:
        return [], {"metrics": []}
    records = read_records(layout.evaluation_path(run, "nonmembers"))
    _, examples = private.mechanisms(formal.allocation(run, run.silos[0]).teach, recipe.teach)
    tried = []
    for one in {(one.model, one.adapter, one.engine.model_dump_json()): one for one in recipe.teach.staff}.values():
        with contextlib.closing(teacher_engine(one, recipe.teach.batch_rows)) as made:
            engine = cast(PrivateEngine, made)  # `Recipe.check_teacher`
            tried.append(private.probe(engine, records, task=recipe.task, privacy=privacy, mechanism=examples))
    # unlike Python's max, NaN where any is: that must not look like no shift
    ratio, draws = float(np.max([one for one, _ in tried])), sum(n for _, n in tried)
    if not ratio <= 1 + gate.ROUNDING:
        raise PrivacyError(
            f"one record moves a teacher's scores {ratio:.3g} times as far as the guarantee allows: nothing was read"
        )
    metric = point_metric("audit.mechanism.shift_ratio", ratio, draws, "a maximum; the mechanism allows 1")
    return [], {"metrics": [metric.model_dump()]}


@stage(version=1)
def auxiliary(run: Run, round: int) -> Done:
    """The attacker's own model, tuned on the released texts as they stand. It stays in the vault."""
    texts = layout.all_lessons(run, round).examples()[:_AUXILIARY_TEXTS]
    if "auxiliary" not in run.recipe.attack.run or len(texts) < 2:
        return [], {"trained": False}
    train.train_upper_line(
        [PrivateRecord(one.id, "", whole_text(one)) for one in texts],
        instruction=None,
        base=resolve_model(run.recipe.student.base),
        base_name=hub_name(run.recipe.student.base),
        out=layout.auxiliary_path(run, round),
        config=run.recipe.student.model_copy(update={"epochs": _AUXILIARY_EPOCHS, "heldback_share": 0.0}),
        seed=run.recipe.seed,
    )
    return [layout.auxiliary_path(run, round)], {"trained": True}


@stage(version=4)
def attack(run: Run, round: int, surface: Surface) -> Done:
    """Everything an attacker may try on the student, the released texts or the instruction, or one-run audits."""
    instruction = layout.instruction(run, round)
    if surface == "instruction" and instruction == prompts.public_instruction(run.recipe.task):
        return [], {"metrics": [], "roc": []}  # no advice was released: public words can give nothing away
    controls = _controls(run, round, surface)
    base = _base(run, instruction)
    student = blank = auxiliary = None
    if surface in ("student", "one_run"):
        student = _scorer(run, layout.adapter_path(run, round), instruction)
    if surface == "student":
        # Where the same work was done at ε = 0, its student is a reference that saw no record at all.
        blank = _scorer(run, layout.bracket_path(run, round, "0"), instruction)
    if surface == "lessons":
        auxiliary = _scorer(run, layout.auxiliary_path(run, round), None)
    released = Released(
        tuple(whole_text(one) for one in layout.all_lessons(run, round).examples()),
        instruction,
        student,
        base,
        references=tuple(one for one in (base, blank) if one is not None),
        auxiliary=auxiliary,
        bare=base.told(None),
    )
    found = suite.run(
        surface,
        run.recipe.attack,
        released,
        controls,
        Settings(run.recipe.measure.bootstrap, run.recipe.seed),
        delta=_delta(run, round) if surface == "one_run" else NO_CLAIM_DELTA,
        gain=None if student is None else added_likelihood(student, base),
    )
    return [], {
        "metrics": [metric.model_dump() for metric in found.metrics],
        "roc": [curve.model_dump() for curve in found.curves],
    }


@stage(version=1)
def contaminated(run: Run, round: int) -> Done:
    """Whether the released texts hold the evaluation set."""
    lessons = layout.all_lessons(run, round).examples()
    if not lessons:
        return [], {"seen": None}
    held = [PrivateRecord(one.id, one.prompt, one.completion) for one in lessons]
    corpus = Corpus(held, public_completions=labels(run.recipe))
    test = [one.text for one in read_records(layout.evaluation_path(run, "test"))]
    return [], {"seen": contamination.seen(corpus, test)}


# ---- helpers ----------------------------------------------------------------------------------------------------


def _controls(run: Run, round: int, surface: Surface) -> Controls:
    """What is told apart: canaries, and records only where an attack is on them."""
    planted = tuple(canaries.read_canaries(layout.evaluation_path(run, "canaries")))
    if surface not in ("student", "lessons"):
        return Controls((), (), planted)
    for silo in run.silos if not run.recipe.federation else ():  # there, what is told apart was planted by this run
        formal.note_internal(run, silo, "membership_attacks", round)
    return Controls(_examples(run, "members"), _examples(run, "nonmembers"), planted)


def _examples(run: Run, name: str) -> tuple[Example, ...]:
    return tuple(record.example() for record in read_records(layout.evaluation_path(run, name)))


def _delta(run: Run, round: int) -> float:
    return min((one.delta for one in layout.certificates(run, round)), default=NO_CLAIM_DELTA)


def _base(run: Run, instruction: str) -> ModelScorer:
    model, tokenizer = load_model(resolve_model(run.recipe.student.base))
    return ModelScorer(model, tokenizer, instruction, run.recipe.measure.batch_rows, run.recipe.student.max_tokens)


def _scorer(run: Run, adapter: Path, instruction: str | None) -> ModelScorer | None:
    if not adapter.exists():
        return None
    model, tokenizer = train.load_student(resolve_model(run.recipe.student.base), adapter)
    return ModelScorer(model, tokenizer, instruction, run.recipe.measure.batch_rows, run.recipe.student.max_tokens)


def added_likelihood(student: ModelScorer, base: ModelScorer) -> Callable[[Sequence[str]], np.ndarray]:
    """How much likelier the student finds each plain text than its base does: what training added."""

    def gain(candidates: Sequence[str]) -> np.ndarray:
        after, before = (
            score.sequence_nll(one.model, one.tokenizer, candidates, one.batch_rows, reduce="sum")
            for one in (student, base)
        )
        return before - after

    return gain
