"""The stages of a run, in the order they happen. Each is a plain function; `@stage` makes it a task.

A stage reads what earlier stages committed and returns the files it wrote and a few facts: counts, figures,
digests and ids. What it may read is the point: a stage that takes a silo's name reads that silo's records and
no other's; `learn` reads released lessons only.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.configs.models import fetch_mail, hub_name, load_model, load_tokenizer, resolve_model
from tutelage.configs.records import Certificate, CurvePoint, Metric, RoundReport, SiloCounts
from tutelage.configs.schema import ClassificationTask, Recipe, ScreenConfig, Task
from tutelage.configs.store import canonical_json, digest, file_digest, write_atomic
from tutelage.flows import formal, layout
from tutelage.flows.stage import Run, stage
from tutelage.privacy import canaries, certificate, gate
from tutelage.privacy.attacks import exposure, overlap_audit
from tutelage.privacy.drafts import read_drafts, write_drafts
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.overlap import OverlapIndex, indexed_texts
from tutelage.privacy.partition import partition
from tutelage.privacy.release import LessonSet, cleaned, release
from tutelage.privacy.scrub import Scrubber
from tutelage.privacy.similarity import embed
from tutelage.privacy.sources import load_records
from tutelage.privacy.vault import PrivateRecord, read_records, write_records
from tutelage.students import evaluate, neutral, publish, score, train
from tutelage.students.compare import Comparison, balanced, few_shot
from tutelage.teachers import aggregate as aggregation
from tutelage.teachers import curriculum, examples, instructions, prompts
from tutelage.teachers.engines.transformers import TransformersEngine

Done = tuple[list[Path], dict[str, Any]]

PROTECTION = (
    "Lessons were screened: personal data that the detectors found was replaced, and drafts that copy a silo's "
    "records were dropped. That is hygiene and no guarantee: there is no differential privacy in this run, and "
    "the figures below are measurements of some attacks, not bounds on all."
)
FORMAL_PROTECTION = (
    "Every lesson was written under differential privacy, and each silo's certificate says with which epsilon, delta, "
    "unit and adjacency. That bounds what any attack on the lessons, or on whatever is made from them, can learn about "
    "one unit; the figures below are measurements of some attacks beside it."
)
_TOPIC_LESSONS = 64


# ---- once a run -------------------------------------------------------------------------------------------------


@stage(version=1)
def prepare(run: Run) -> Done:
    """Deal the records out to silos, test set and non-members; plant the canaries; make the silos' keys.

    This one stage stands for what happens before a federation begins: in production every silo has its own
    records already. After it nothing but the student on originals, which is for comparison, reads two silos' records.
    """
    recipe = run.recipe
    loaded = load_records(recipe.data, recipe.task, fetch_mail)
    dealt = partition(loaded, recipe.data, recipe.task, recipe.seed, recipe.min_records_per_label)
    # Canaries are put into records of no silo, which are then no controls for the attacks.
    carriers, nonmembers = dealt.nonmembers[: recipe.attack.canaries], dealt.nonmembers[recipe.attack.canaries :]
    silos, planted = canaries.plant(dealt.silos, carriers, recipe.attack, recipe.task, max_chars=recipe.data.max_chars)
    files = [
        write_records(layout.evaluation_path(run, "test"), dealt.test),
        write_records(layout.evaluation_path(run, "nonmembers"), nonmembers),
        canaries.write_canaries(layout.evaluation_path(run, "canaries"), planted),
    ]
    keys = {}
    for name, records in silos.items():
        key = layout.key_path(run, name)
        key.unlink(missing_ok=True)  # of a killed attempt: nothing was signed with it yet
        keys[name] = SiloKey.create(key).public_hex
        files += [write_records(layout.records_path(run, name), records), key]
    files.append(write_atomic(layout.public_keys_path(run), canonical_json(keys) + "\n"))
    if loaded.owner_of:
        files += [_write_owners(run, name, records, loaded.owner_of) for name, records in silos.items()]
    for silo in {canary.silo for canary in planted}:
        formal.note_internal(run, silo, "canaries", 0)
    facts = {
        "records": {name: len(records) for name, records in silos.items()},
        "test": len(dealt.test),
        "nonmembers": len(nonmembers),
        "near_duplicates_unused": dealt.twins_unused,
        "brackets": _brackets(recipe),
        "rounds": recipe.rounds,
    }
    return files, facts


@stage(version=1)
def index(run: Run, silo: str) -> Done:
    """Embed a silo's records once: screening, voting and the overlap audit all compare with them."""
    texts = indexed_texts(layout.records(run, silo), _labels(run.recipe))
    path = layout.embeddings_path(run, silo)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, embed(texts, alone=run.recipe.formal is not None))
    return [path], {}


# ---- teach, screen, aggregate -----------------------------------------------------------------------------------


@stage(version=2)
def teach(run: Run, round: int, silo: str) -> Done:
    """A silo's teacher writes drafts and wordings of an instruction, into the silo's vault."""
    recipe, records = run.recipe, layout.records(run, silo)
    engine = _engine(recipe.teach.model, recipe.teach.batch_rows)
    if recipe.formal:
        drafts, facts = formal.teach(run, engine, round, silo)
        return [write_drafts(layout.drafts_path(run, round, silo), drafts)], facts
    topics = run.facts(f"round-{round - 1}/measure")["topics"] if round > 1 else {}
    place: dict[str, Any] = {"silo": silo, "round": round, "seed": recipe.seed}
    written = examples.write_examples(engine, records, task=recipe.task, config=recipe.teach, topics=topics, **place)
    wordings = instructions.write_instruction(engine, records, task=recipe.task, config=recipe.teach, **place)
    path = write_drafts(layout.drafts_path(run, round, silo), [*written.drafts, *wordings])
    facts = {
        "prompts": written.prompts,
        "sampled": written.sampled,
        "malformed": written.malformed,
        "dropped": {"off_label": written.off_label, "not_kept": written.not_kept},
    }
    return [path], facts


@stage(version=1)
def screen(run: Run, round: int, silo: str) -> Done:
    """Turn a silo's drafts into signed lessons, or drop them. What this writes may leave the silo."""
    config = run.recipe.screen
    released = release(
        read_drafts(layout.drafts_path(run, round, silo)),
        records=None if run.recipe.formal else layout.records(run, silo),
        silo=silo,
        round=round,
        run_id=run.id,
        screen=config,
        key=SiloKey.load(layout.key_path(run, silo)),
        scrubber=_scrubber(config),
        public_completions=_labels(run.recipe),
        embeddings=None if run.recipe.formal else layout.embeddings(run, silo),
    )
    path = released.lessons.save(layout.released_path(run, round, silo))
    count = sum(lesson.kind == "example" for lesson in released.lessons)
    return [path], {"dropped": released.dropped, "replaced": released.replaced, "released": count}


@stage(version=1)
def vote(run: Run, round: int, silo: str) -> Done:
    """A silo's records vote for the released lessons nearest to them; only the counts leave."""
    if run.recipe.formal:
        return [], formal.vote(run, round, silo)
    records = layout.records(run, silo)
    embeddings = layout.embeddings(run, silo)[: len(records)]
    votes = aggregation.count_votes(records, embeddings, layout.all_lessons(run, round), run.recipe.task)
    return [], {"votes": votes}


@stage(version=1)
def certify(run: Run, round: int, silo: str) -> Done:
    """What a silo's lessons are guaranteed to give away at most, from its ledger, signed. Nothing where none is."""
    if not run.recipe.formal:
        return [], {}
    certificate = formal.certify(run, round, silo)
    path = write_atomic(layout.certificate_path(run, round, silo), certificate.model_dump_json(indent=1) + "\n")
    return [path], {"epsilon": certificate.epsilon}


@stage(version=1)
def aggregate(run: Run, round: int) -> Done:
    """All rounds' and silos' lessons become the set the student learns from, and one instruction."""
    recipe, lessons = run.recipe, layout.all_lessons(run, round)
    voted = recipe.aggregate.method == "vote"
    votes = [run.facts(f"round-{round}/vote-{silo}")["votes"] for silo in run.silos] if voted else []
    chosen, per_class = aggregation.aggregate(
        lessons, votes, task=recipe.task, config=recipe.aggregate, seed=recipe.seed
    )
    advice = instructions.choose_instruction(lessons)
    path = lessons.select(chosen).save(layout.lessons_path(run, round))
    wording = prompts.compose_instruction(recipe.task, advice) + "\n"
    instruction = write_atomic(layout.instruction_path(run, round), wording)
    return [path, instruction], {"per_class": per_class, "lessons_digest": file_digest(path)}


# ---- learn, measure, attack -------------------------------------------------------------------------------------


@stage(version=2)
def learn(run: Run, round: int) -> Done:
    """Train the student on the lessons. Its adapter stays in the vault until the gate has passed it."""
    recipe = run.recipe
    lessons = layout.lessons(run, round)
    if len(lessons) < 2:
        # Nothing to learn from: no adapter, so every figure of the student is missing and the gate refuses.
        return [], {"curve": [], "adapter_digest": ""}
    result = train.train_student(
        lessons,
        instruction=layout.instruction(run, round),
        base=resolve_model(recipe.student.base),
        base_name=hub_name(recipe.student.base),
        out=layout.adapter_path(run, round),
        config=recipe.student,
        seed=recipe.seed,
    )
    curve = [point.model_dump() for point in result.curve]
    return [result.adapter], {"curve": curve, "adapter_digest": publish.adapter_digest(result.adapter)}


@stage(version=1)
def measure(run: Run, round: int) -> Done:
    """The student on the real test set, beside what else could be done without the private records."""
    recipe, config = run.recipe, run.recipe.measure
    compare = _comparison(run)
    lessons = [lesson.example() for lesson in layout.lessons(run, round)]
    instruction, public = layout.instruction(run, round), prompts.public_instruction(recipe.task)
    folder = resolve_model(recipe.student.base)
    base, tokenizer = load_model(folder)
    shots = few_shot(lessons, recipe)
    metrics = [
        *compare.measure("zero_shot", base, tokenizer, instruction=public),
        *compare.measure("few_shot", base, tokenizer, instruction=instruction, taught_with=lessons, shots=shots),
        *compare.measure("instruction", base, tokenizer, instruction=instruction, taught_with=lessons),
        *compare.tfidf(lessons),
    ]
    topics: dict[str, float] = {}
    if layout.adapter_path(run, round).exists():
        neutral_texts = neutral.NEUTRAL_TEXTS[: config.neutral_texts]
        before = score.sequence_nll(base, tokenizer, neutral_texts, config.batch_rows)
        student, tokenizer = train.load_student(folder, layout.adapter_path(run, round))
        after = score.sequence_nll(student, tokenizer, neutral_texts, config.batch_rows)
        metrics += compare.measure("student", student, tokenizer, instruction=instruction, taught_with=lessons)
        metrics += evaluate.forgetting(before, after, draws=config.bootstrap, seed=recipe.seed)
        topics = _next_topics(run, round, student, tokenizer, instruction)
    return [], {"metrics": _dump(metrics), "topics": topics}


@stage(version=2)
def upper_line(run: Run, round: int) -> Done:
    """The same student on as many original records: what no privacy would give. It never leaves the vault."""
    recipe = run.recipe
    lessons = layout.lessons(run, round)
    if not recipe.measure.originals or len(lessons) < 2:
        return [], {"metrics": []}
    for silo in run.silos:
        formal.note_internal(run, silo, "student_on_originals", round)
    originals = _originals(run, lessons)
    instruction, folder = layout.instruction(run, round), resolve_model(recipe.student.base)
    result = train.train_upper_line(
        originals,
        instruction=instruction,
        base=folder,
        base_name=hub_name(recipe.student.base),
        out=layout.upper_line_path(run, round),
        config=recipe.student,
        seed=recipe.seed,
    )
    student, tokenizer = train.load_student(folder, result.adapter)
    taught_with = [record.example() for record in originals]
    metrics = _comparison(run).measure(
        "originals", student, tokenizer, instruction=instruction, taught_with=taught_with, internal=True
    )
    return [result.adapter], {"metrics": _dump(metrics)}


@stage(version=1)
def teach_bracket(run: Run, round: int, silo: str, bracket: str) -> Done:
    """A silo's teacher does the round's work once more at another ε, into the vault."""
    engine = _engine(run.recipe.teach.model, run.recipe.teach.batch_rows)
    drafts, _ = formal.teach(run, engine, round, silo, bracket)
    return [write_drafts(layout.drafts_path(run, round, silo, bracket), drafts)], {}


@stage(version=1)
def bracket_student(run: Run, round: int, bracket: str) -> Done:
    """The student on what the bracket's teachers wrote, as many texts a class: what the asked ε is compared with."""
    recipe = run.recipe
    wanted = run.facts(f"round-{round}/aggregate")["per_class"]
    drafts = [
        draft
        for earlier in range(1, round + 1)
        for silo in run.silos
        for draft in cleaned(
            read_drafts(layout.drafts_path(run, earlier, silo, bracket)),
            recipe.screen,
            _scrubber(recipe.screen),
            _labels(recipe),
        )
    ]
    wordings = [draft.prompt for draft in drafts if draft.kind == "instruction"]
    instruction = prompts.compose_instruction(recipe.task, instructions.medoid(wordings))
    records = [PrivateRecord(one.id, one.prompt, one.completion) for one in drafts if one.kind == "example"]
    chosen = _as_many(records, wanted, recipe.task, f"{recipe.seed}/{bracket}")
    if len(chosen) < 2:
        return [], {"metrics": []}
    folder = resolve_model(recipe.student.base)
    result = train.train_upper_line(
        chosen,
        instruction=instruction,
        base=folder,
        base_name=hub_name(recipe.student.base),
        out=layout.bracket_path(run, round, bracket),
        config=recipe.student,
        seed=recipe.seed,
    )
    student, tokenizer = train.load_student(folder, result.adapter)
    metrics = _comparison(run).measure(
        f"epsilon_{bracket.replace('.', '_')}",  # names of metrics are dotted
        student,
        tokenizer,
        instruction=instruction,
        taught_with=[record.example() for record in chosen],
        internal=bracket != "0",
    )
    return [result.adapter], {"metrics": _dump(metrics)}


@stage(version=1)
def attack(run: Run, round: int) -> Done:
    """Exposure of the planted canaries, in the student and in the released texts alone."""
    recipe = run.recipe
    planted = canaries.read_canaries(layout.evaluation_path(run, "canaries"))
    texts = [f"{lesson.prompt} {lesson.completion}" for lesson in layout.all_lessons(run, round)]
    metrics = list(exposure.text_exposure(planted, texts))
    if layout.adapter_path(run, round).exists():
        folder = resolve_model(recipe.student.base)
        base, tokenizer = load_model(folder)
        student, _ = train.load_student(folder, layout.adapter_path(run, round))
        size = len(planted[0].candidates) if planted else 1

        def gain(candidates: Any) -> np.ndarray:
            """How much likelier the student finds each text than its base does: what training added."""
            found = []
            for start in range(0, len(candidates), size):  # one canary's candidates share all but the secret
                group = list(candidates[start : start + size])
                after, before = (
                    score.sequence_nll(model, tokenizer, group, recipe.measure.batch_rows, reduce="sum")
                    for model in (student, base)
                )
                found.append(before - after)
            return np.concatenate(found)

        metrics += exposure.attack(planted, gain, n_resamples=recipe.measure.bootstrap, seed=recipe.seed).metrics
    return [], {"metrics": _dump(metrics)}


@stage(version=1)
def audit_silo(run: Run, round: int, silo: str) -> Done:
    """How much of the released set overlaps with one silo's records. Aggregates only, and marked internal."""
    recipe = run.recipe
    formal.note_internal(run, silo, "overlap_audit", round)
    overlaps = OverlapIndex(
        layout.records(run, silo),
        ngram=recipe.screen.ngram,
        scrubber=_scrubber(recipe.screen),
        public_completions=_labels(recipe),
        embeddings=layout.embeddings(run, silo),
    ).measure([lesson.prompt for lesson in layout.all_lessons(run, round)])
    return [], {"overlap": overlap_audit.summarise(overlaps)}


# ---- gate, report, publish --------------------------------------------------------------------------------------


@stage(version=2)
def judge_round(run: Run, round: int) -> Done:
    """Apply the gate's rules to everything measured, and write the round's report."""
    recipe = run.recipe
    at = f"round-{round}/"
    metrics = [Metric(**row) for name in ("measure", "upper_line", "attack") for row in run.facts(at + name)["metrics"]]
    metrics += overlap_audit.combine({silo: run.facts(f"{at}audit_silo-{silo}")["overlap"] for silo in run.silos})
    aggregated, learned, records = (
        run.facts(at + "aggregate"),
        run.facts(at + "learn"),
        run.facts("prepare")["records"],
    )
    certificates = _certificates(run, round)
    certified = {one.silo: one for one in certificates}
    if certificates:
        claimed = max(one.epsilon for one in certificates)
        interval = "none: an upper bound"
        metrics.append(
            Metric(
                name="epsilon.claimed",
                value=claimed,
                ci_low=claimed,
                ci_high=claimed,
                n=len(certificates),
                interval=interval,
            )
        )
    for bracket in _brackets(recipe):
        metrics += [Metric(**row) for row in run.facts(f"{at}bracket_student-{bracket}")["metrics"]]
    report = RoundReport(
        run_id=run.id,
        round=round,
        recipe_name=recipe.name,
        recipe_digest=digest(recipe.model_dump(mode="json")),
        protection=PROTECTION if not certificates else FORMAL_PROTECTION,
        certificates=certificates,
        instruction=layout.instruction(run, round),
        silos=tuple(_silo_counts(run, round, silo, records[silo], certified.get(silo)) for silo in run.silos),
        lessons_per_class=aggregated["per_class"],
        topics_next=run.facts(at + "measure")["topics"],
        metrics=tuple(metrics),
        curve=tuple(CurvePoint(**point) for point in learned["curve"]),
        decision=gate.decide(metrics, recipe.gate, lessons=sum(aggregated["per_class"].values())),
        lessons_digest=aggregated["lessons_digest"],
        adapter_digest=learned["adapter_digest"],
    )
    public = publish.public_report(report)
    files = [
        write_atomic(path, one.model_dump_json(indent=1) + "\n")
        for path, one in ((layout.report_path(run, round), report), (layout.public_report_path(run, round), public))
    ]
    return files, {"passed": report.decision.passed}


@stage(version=1)
def publish_student(run: Run, round: int) -> Done:
    """Put a passed adapter into the registry. A refused one stays where it is, in the vault."""
    if not run.facts(f"round-{round}/judge_round")["passed"]:
        return [], {"published": None}
    report = layout.report(run, round)
    target = publish.publish(
        layout.adapter_path(run, round),
        run.dir.root.parent / "registry",
        run.recipe.name,
        report.decision,
        report,
        base_name=hub_name(run.recipe.student.base),
        tokenizer=load_tokenizer(resolve_model(run.recipe.student.base)),
    )
    return [], {"published": target.name}


# ---- helpers ----------------------------------------------------------------------------------------------------


def _write_owners(run: Run, silo: str, records: list[PrivateRecord], owner_of: dict[str, str]) -> Path:
    # a canary belongs to nobody, so each of its copies is a unit of its own
    owners = {record.id: owner_of.get(record.id, f"\0canary {record.id}") for record in records}
    return write_atomic(layout.owners_path(run, silo), canonical_json(owners), mode=0o600)


@functools.lru_cache(maxsize=1)
def _engine(model: str, batch_rows: int) -> TransformersEngine:
    return TransformersEngine(resolve_model(model), batch_rows)


def _scrubber(config: ScreenConfig) -> Scrubber:
    return Scrubber(config.entities, config.pii_score)


def _labels(recipe: Recipe) -> frozenset[str]:
    return frozenset(recipe.task.labels) if isinstance(recipe.task, ClassificationTask) else frozenset()


def _brackets(recipe: Recipe) -> list[str]:
    return [f"{epsilon:g}" for epsilon in sorted(recipe.formal.brackets)] if recipe.formal else []


def _certificates(run: Run, round: int) -> tuple[Certificate, ...]:
    if not run.recipe.formal:
        return ()
    keys = layout.public_keys(run)
    return tuple(certificate.load(layout.certificate_path(run, round, silo), keys) for silo in run.silos)


def _comparison(run: Run) -> Comparison:
    return Comparison(run.recipe, [r.example() for r in read_records(layout.evaluation_path(run, "test"))])


def _originals(run: Run, lessons: LessonSet) -> list[PrivateRecord]:
    """As many original records per class as there are lessons, drawn over all silos. For the upper line only."""
    pool = [record for silo in run.silos for record in layout.records(run, silo)]
    wanted = Counter(aggregation.class_of(lesson.completion, run.recipe.task) for lesson in lessons)
    return _as_many(pool, wanted, run.recipe.task, f"{run.recipe.seed}/originals")


def _as_many(pool: list[PrivateRecord], wanted: Mapping[str, int], task: Task, seed: str) -> list[PrivateRecord]:
    """Records drawn at random, as many of each class as wanted."""
    pool = random.Random(seed).sample(pool, len(pool))
    chosen: list[PrivateRecord] = []
    for name, count in wanted.items():
        chosen += [one for one in pool if aggregation.class_of(one.completion, task) == name][:count]
    return chosen


def _next_topics(run: Run, round: int, student: Any, tokenizer: Any, instruction: str) -> dict[str, float]:
    """The next round's topics, from the student's errors on released lessons it was not trained on."""
    task = run.recipe.task
    if not isinstance(task, ClassificationTask) or round == run.recipe.rounds:
        return {}
    used = {lesson.id for lesson in layout.lessons(run, round)}
    spare = [one.example() for one in layout.all_lessons(run, round) if one.kind == "example" and one.id not in used]
    spare = balanced(spare, _TOPIC_LESSONS // len(task.labels), run.recipe.seed)
    guesses = evaluate.classify(
        student,
        tokenizer,
        spare,
        list(task.labels),
        instruction=instruction,
        batch_rows=run.recipe.measure.batch_rows,
    ).labels
    recall = {label: (0, 0) for label in task.labels}
    for guess, example in zip(guesses, spare, strict=True):
        right, n = recall[example.completion]
        recall[example.completion] = (right + (guess == example.completion), n + 1)
    return curriculum.next_topics(recall)


def _silo_counts(run: Run, round: int, silo: str, records: int, certificate: Certificate | None) -> SiloCounts:
    taught, screened = run.facts(f"round-{round}/teach-{silo}"), run.facts(f"round-{round}/screen-{silo}")
    return SiloCounts(
        silo=silo,
        # under owners the number of records is a secret, and that of owners is not
        records=certificate.units if certificate else records,
        prompts=taught["prompts"],
        drafts=taught["sampled"],
        malformed=taught["malformed"],
        dropped={**taught["dropped"], **screened["dropped"]},
        replaced=screened["replaced"],
        released=screened["released"],
    )


def _dump(metrics: Any) -> list[dict[str, Any]]:
    return [metric.model_dump() for metric in metrics]
