"""The stages of a run, in the order they happen. Each is a plain function; `@stage` makes it a task.

A stage reads what earlier stages committed and returns the files it wrote and a few facts: counts, figures,
digests and ids. What it may read is the point: a stage that takes a silo's name reads that silo's records and
no other's; `learn` reads released lessons only.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.configs.models import fetch_mail, hub_name, load_model, load_tokenizer, resolve_model
from tutelage.configs.records import CurvePoint, Metric, RoundReport, SiloCounts
from tutelage.configs.schema import ClassificationTask, ScreenConfig
from tutelage.configs.store import digest, file_digest, write_atomic
from tutelage.flows.stage import Run, stage
from tutelage.privacy import canaries, gate
from tutelage.privacy.attacks import exposure, overlap_audit
from tutelage.privacy.overlap import OverlapIndex, indexed_texts
from tutelage.privacy.partition import partition
from tutelage.privacy.release import LessonSet, SiloKey, read_drafts, release, write_drafts
from tutelage.privacy.scrub import Scrubber
from tutelage.privacy.similarity import embed
from tutelage.privacy.sources import load_records
from tutelage.privacy.vault import PrivateRecord, read_records, write_records
from tutelage.students import baselines, evaluate, neutral, publish, score, train
from tutelage.teachers import aggregate as aggregation
from tutelage.teachers import curriculum, examples, instructions, prompts
from tutelage.teachers.engines.transformers import TransformersEngine

if TYPE_CHECKING:
    from tutelage.configs.records import Example
    from tutelage.configs.schema import Recipe

Done = tuple[list[Path], dict[str, Any]]

PROTECTION = (
    "Lessons were screened: personal data that the detectors found was replaced, and drafts that copy a silo's "
    "records were dropped. That is hygiene and no guarantee: there is no differential privacy in this run, and "
    "the figures below are measurements of some attacks, not bounds on all."
)
_CALIBRATION_LESSONS = 32
_TOPIC_LESSONS = 64


# ---- once a run -------------------------------------------------------------------------------------------------


@stage(version=1)
def prepare(run: Run) -> Done:
    """Deal the records out to silos, test set and non-members; plant the canaries; make the silos' keys.

    This one stage stands for what happens before a federation begins: in production every silo has its own
    records already. Nothing after it reads two silos' records together.
    """
    recipe = run.recipe
    loaded = load_records(recipe.data, recipe.task, fetch_mail)
    dealt = partition(loaded, recipe.data, recipe.task, recipe.seed, recipe.teach.references_per_prompt + 1)
    silos, planted = canaries.plant(dealt.silos, recipe.attack, recipe.task, max_chars=recipe.data.max_chars)
    vault = run.dir.vault
    files = [
        write_records(vault / "evaluation" / "test.jsonl", dealt.test),
        write_records(vault / "evaluation" / "nonmembers.jsonl", dealt.nonmembers),
        canaries.write_canaries(vault / "evaluation" / "canaries.jsonl", planted),
    ]
    keys = {}
    for name, records in silos.items():
        folder = run.dir.silo(name)
        (folder / "key.pem").unlink(missing_ok=True)  # of a killed attempt: nothing was signed with it yet
        keys[name] = SiloKey.create(folder / "key.pem").public_hex
        files += [write_records(folder / "records.jsonl", records), folder / "key.pem"]
    files.append(write_atomic(run.dir.release / "public_keys.json", _json(keys)))
    facts = {
        "records": {name: len(records) for name, records in silos.items()},
        "test": len(dealt.test),
        "nonmembers": len(dealt.nonmembers),
        "near_duplicates_unused": dealt.twins_unused,
        "rounds": recipe.rounds,
    }
    return files, facts


@stage(version=1)
def index(run: Run, silo: str) -> Done:
    """Embed a silo's records once: screening, voting and the overlap audit all compare with them."""
    texts = indexed_texts(_records(run, silo), _labels(run.recipe))
    path = _embeddings_path(run, silo)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, embed(texts))
    return [path], {}


# ---- teach, screen, aggregate -----------------------------------------------------------------------------------


@stage(version=1)
def teach(run: Run, round: int, silo: str) -> Done:
    """A silo's teacher writes drafts and wordings of an instruction, into the silo's vault."""
    recipe, records = run.recipe, _records(run, silo)
    engine = _engine(recipe.teach.model, recipe.teach.batch_rows)
    topics = run.facts(f"round-{round - 1}/measure")["topics"] if round > 1 else {}
    place: dict[str, Any] = {"silo": silo, "round": round, "seed": recipe.seed}
    written = examples.write_examples(
        engine, records, task=recipe.task, config=recipe.teach, topics=topics, **place
    )
    wordings = instructions.write_instruction(engine, records, task=recipe.task, config=recipe.teach, **place)
    path = write_drafts(_drafts_path(run, round, silo), [*written.drafts, *wordings])
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
        read_drafts(_drafts_path(run, round, silo)),
        records=_records(run, silo),
        silo=silo,
        round=round,
        run_id=run.id,
        screen=config,
        key=SiloKey.load(run.dir.silo(silo) / "key.pem"),
        scrubber=_scrubber(config),
        public_completions=_labels(run.recipe),
        embeddings=np.load(_embeddings_path(run, silo)),
    )
    path = released.lessons.save(_released_path(run, round, silo))
    count = sum(lesson.kind == "example" for lesson in released.lessons)
    return [path], {"dropped": released.dropped, "replaced": released.replaced, "released": count}


@stage(version=1)
def vote(run: Run, round: int, silo: str) -> Done:
    """A silo's records vote for the released lessons nearest to them; only the counts leave."""
    records = _records(run, silo)
    embeddings = np.load(_embeddings_path(run, silo))[: len(records)]
    votes = aggregation.count_votes(records, embeddings, _all_lessons(run, round), run.recipe.task)
    return [], {"votes": votes}


@stage(version=1)
def aggregate(run: Run, round: int) -> Done:
    """All rounds' and silos' lessons become the set the student learns from, and one instruction."""
    recipe, lessons = run.recipe, _all_lessons(run, round)
    voted = recipe.aggregate.method == "vote"
    votes = [run.facts(f"round-{round}/vote-{silo}")["votes"] for silo in run.silos] if voted else []
    chosen, per_class = aggregation.aggregate(
        lessons, votes, task=recipe.task, config=recipe.aggregate, seed=recipe.seed
    )
    advice = instructions.choose_instruction(lessons)
    folder = run.dir.released_round(round)
    path = lessons.select(chosen).save(folder / "lessons.jsonl")
    instruction = write_atomic(folder / "instruction.txt", prompts.compose_instruction(recipe.task, advice) + "\n")
    return [path, instruction], {"per_class": per_class, "lessons_digest": file_digest(path)}


# ---- learn, measure, attack -------------------------------------------------------------------------------------


@stage(version=1)
def learn(run: Run, round: int) -> Done:
    """Train the student on the lessons. Its adapter stays in the vault until the gate has passed it."""
    recipe = run.recipe
    lessons = _lessons(run, round)
    if len(lessons) < 2:
        # Nothing to learn from: no adapter, so every figure of the student is missing and the gate refuses.
        return [], {"curve": [], "adapter_digest": ""}
    result = train.train_student(
        lessons,
        instruction=_instruction(run, round),
        base=resolve_model(recipe.student.base),
        base_name=hub_name(recipe.student.base),
        out=_adapter_path(run, round),
        config=recipe.student,
        seed=recipe.seed,
    )
    curve = [point.model_dump() for point in result.curve]
    return [result.adapter], {"curve": curve, "adapter_digest": publish.adapter_digest(result.adapter)}


@stage(version=1)
def measure(run: Run, round: int) -> Done:
    """The student on the real test set, beside what else could be done without the private records."""
    recipe, task, config = run.recipe, run.recipe.task, run.recipe.measure
    test = [record.example() for record in _test(run)]
    lessons = [lesson.example() for lesson in _lessons(run, round)]
    instruction, public = _instruction(run, round), prompts.public_instruction(task)
    base, tokenizer = load_model(resolve_model(recipe.student.base))
    shots = _few_shot(lessons, recipe)
    judge = functools.partial(_judge, recipe=recipe, test=test, lessons=lessons)
    metrics = [
        *judge("zero_shot", base, tokenizer, instruction=public, calibrated=False),
        *judge("few_shot", base, tokenizer, instruction=instruction, shots=shots),
        *judge("instruction", base, tokenizer, instruction=instruction),
    ]
    topics: dict[str, float] = {}
    if _adapter_path(run, round).exists():
        neutral_texts = list(neutral.NEUTRAL_TEXTS[: config.neutral_texts])
        before = score.sequence_nll(base, tokenizer, neutral_texts, config.batch_rows)
        student, tokenizer = train.load_student(resolve_model(recipe.student.base), _adapter_path(run, round))
        after = score.sequence_nll(student, tokenizer, neutral_texts, config.batch_rows)
        metrics += judge("student", student, tokenizer, instruction=instruction)
        metrics += evaluate.forgetting(before, after, draws=config.bootstrap, seed=recipe.seed)
        topics = _next_topics(run, round, student, tokenizer, instruction)
    if isinstance(task, ClassificationTask) and len({lesson.completion for lesson in lessons}) > 1:
        guessed = baselines.tfidf(lessons, test, list(task.labels))
        metrics += _scored("tfidf", guessed.labels, test, recipe)
    return [], {"metrics": _dump(metrics), "topics": topics}


@stage(version=1)
def upper_line(run: Run, round: int) -> Done:
    """The same student on as many original records: what no privacy would give. It never leaves the vault."""
    recipe = run.recipe
    lessons = _lessons(run, round)
    if not recipe.measure.originals or len(lessons) < 2:
        return [], {"metrics": []}
    originals = _originals(run, lessons)
    instruction = _instruction(run, round)
    result = train.train_upper_line(
        originals,
        instruction=instruction,
        base=resolve_model(recipe.student.base),
        base_name=hub_name(recipe.student.base),
        out=run.dir.private_round(round) / "upper-line",
        config=recipe.student,
        seed=recipe.seed,
    )
    student, tokenizer = train.load_student(resolve_model(recipe.student.base), result.adapter)
    metrics = _judge(
        "originals",
        student,
        tokenizer,
        recipe=recipe,
        test=[record.example() for record in _test(run)],
        lessons=[record.example() for record in originals],
        instruction=instruction,
        internal=True,
    )
    return [result.adapter], {"metrics": _dump(metrics)}


@stage(version=1)
def attack(run: Run, round: int) -> Done:
    """Exposure of the planted canaries, in the student and in the released texts alone."""
    recipe = run.recipe
    planted = canaries.read_canaries(run.dir.vault / "evaluation" / "canaries.jsonl")
    texts = [f"{lesson.prompt} {lesson.completion}" for lesson in _all_lessons(run, round)]
    metrics = list(exposure.text_exposure(planted, texts))
    if _adapter_path(run, round).exists():
        folder = resolve_model(recipe.student.base)
        base, tokenizer = load_model(folder)
        student, _ = train.load_student(folder, _adapter_path(run, round))
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
    overlaps = OverlapIndex(
        _records(run, silo),
        ngram=recipe.screen.ngram,
        scrubber=_scrubber(recipe.screen),
        public_completions=_labels(recipe),
        embeddings=np.load(_embeddings_path(run, silo)),
    ).measure([lesson.prompt for lesson in _all_lessons(run, round)])
    return [], {"overlap": overlap_audit.summarise(overlaps)}


# ---- gate, report, publish --------------------------------------------------------------------------------------


@stage(version=1)
def judge_round(run: Run, round: int) -> Done:
    """Apply the gate's rules to everything measured, and write the round's report."""
    recipe = run.recipe
    at = f"round-{round}/"
    metrics = [
        Metric(**row) for name in ("measure", "upper_line", "attack") for row in run.facts(at + name)["metrics"]
    ]
    metrics += overlap_audit.combine({silo: run.facts(f"{at}audit_silo-{silo}")["overlap"] for silo in run.silos})
    aggregated, learned, records = (
        run.facts(at + "aggregate"),
        run.facts(at + "learn"),
        run.facts("prepare")["records"],
    )
    report = RoundReport(
        run_id=run.id,
        round=round,
        recipe_name=recipe.name,
        recipe_digest=digest(recipe.model_dump(mode="json")),
        protection=PROTECTION,
        instruction=_instruction(run, round),
        silos=tuple(_silo_counts(run, round, silo, records[silo]) for silo in run.silos),
        lessons_per_class=aggregated["per_class"],
        topics_next=run.facts(at + "measure")["topics"],
        metrics=tuple(metrics),
        curve=tuple(CurvePoint(**point) for point in learned["curve"]),
        decision=gate.decide(metrics, recipe.gate, lessons=sum(aggregated["per_class"].values())),
        lessons_digest=aggregated["lessons_digest"],
        adapter_digest=learned["adapter_digest"],
    )
    path = write_atomic(report_path(run, round), report.model_dump_json(indent=1) + "\n")
    return [path], {"passed": report.decision.passed}


@stage(version=1)
def publish_student(run: Run, round: int) -> Done:
    """Put a passed adapter into the registry. A refused one stays where it is, in the vault."""
    if not run.facts(f"round-{round}/judge_round")["passed"]:
        return [], {"published": None}
    report = read_report(run, round)
    target = publish.publish(
        _adapter_path(run, round),
        run.dir.root.parent / "registry",
        run.recipe.name,
        report.decision,
        report,
        base_name=hub_name(run.recipe.student.base),
        tokenizer=load_tokenizer(resolve_model(run.recipe.student.base)),
    )
    return [], {"published": target.name}


# ---- where things lie -------------------------------------------------------------------------------------------


def report_path(run: Run, round: int) -> Path:
    """A round's report as JSON."""
    return run.dir.released_round(round) / "report.json"


def read_report(run: Run, round: int) -> RoundReport:
    """Read a round's report."""
    return RoundReport.model_validate_json(report_path(run, round).read_text())


def _records(run: Run, silo: str) -> list[PrivateRecord]:
    return read_records(run.dir.silo(silo) / "records.jsonl")


def _test(run: Run) -> list[PrivateRecord]:
    return read_records(run.dir.vault / "evaluation" / "test.jsonl")


def _embeddings_path(run: Run, silo: str) -> Path:
    return run.dir.silo(silo) / "embeddings.npy"


def _drafts_path(run: Run, round: int, silo: str) -> Path:
    return run.dir.silo(silo) / f"round-{round}" / "drafts.jsonl"


def _released_path(run: Run, round: int, silo: str) -> Path:
    return run.dir.released_round(round) / "silos" / f"{silo}.jsonl"


def _adapter_path(run: Run, round: int) -> Path:
    return run.dir.private_round(round) / "adapter"


def _instruction(run: Run, round: int) -> str:
    return (run.dir.released_round(round) / "instruction.txt").read_text().strip()


def _public_keys(run: Run) -> dict[str, str]:
    import json

    keys: dict[str, str] = json.loads((run.dir.release / "public_keys.json").read_text())
    return keys


def _lessons(run: Run, round: int) -> LessonSet:
    """The lessons the round's student learns from; every signature is verified."""
    return LessonSet.load(run.dir.released_round(round) / "lessons.jsonl", run.id, _public_keys(run))


def _all_lessons(run: Run, round: int) -> LessonSet:
    """Everything released up to a round, instructions included; every signature is verified."""
    keys = _public_keys(run)
    return LessonSet.combine(
        [
            LessonSet.load(_released_path(run, earlier, silo), run.id, keys)
            for earlier in range(1, round + 1)
            for silo in run.silos
        ]
    )


# ---- helpers ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _engine(model: str, batch_rows: int) -> TransformersEngine:
    return TransformersEngine(resolve_model(model), batch_rows)


def _scrubber(config: ScreenConfig) -> Scrubber:
    return Scrubber(config.entities, config.pii_score)


def _labels(recipe: Recipe) -> frozenset[str]:
    return frozenset(recipe.task.labels) if isinstance(recipe.task, ClassificationTask) else frozenset()


def _judge(
    name: str,
    model: Any,
    tokenizer: Any,
    *,
    recipe: Recipe,
    test: list[Example],
    lessons: list[Example],
    instruction: str,
    shots: list[Example] | tuple[()] = (),
    calibrated: bool = True,
    internal: bool = False,
) -> tuple[Metric, ...]:
    """One method on the test set; label tokens are calibrated on a balanced handful of what it was taught with."""
    task, rows = recipe.task, recipe.measure.batch_rows
    if not isinstance(task, ClassificationTask):
        answers = evaluate.generate_answers(
            model,
            tokenizer,
            test,
            instruction=instruction,
            few_shot=shots,
            max_new_tokens=recipe.teach.max_new_tokens,
            batch_rows=rows,
        )
        return _scored(name, answers, test, recipe, internal)
    labels = list(task.labels)
    ask = functools.partial(
        evaluate.classify, model, tokenizer, labels=labels, instruction=instruction, few_shot=shots, batch_rows=rows
    )
    bias = None
    if calibrated and lessons:
        handful = _balanced(lessons, _CALIBRATION_LESSONS // len(labels) or 1, recipe.seed)
        bias = evaluate.calibrate(ask(handful).scores)
    return _scored(name, ask(test, bias=bias).labels, test, recipe, internal)


def _scored(
    name: str, answers: Any, test: list[Example], recipe: Recipe, internal: bool = False
) -> tuple[Metric, ...]:
    truth = [example.completion for example in test]
    draws, seed = recipe.measure.bootstrap, recipe.seed
    if isinstance(recipe.task, ClassificationTask):
        labels = list(recipe.task.labels)
        return evaluate.metrics_of(name, answers, truth, labels, draws=draws, seed=seed, internal=internal)
    return evaluate.generation_metrics(name, answers, truth, draws=draws, seed=seed, internal=internal)


def _balanced(items: list[Example], per_label: int, seed: int) -> list[Example]:
    """Up to `per_label` examples of each completion, drawn with the seed."""
    draw = random.Random(f"{seed}/balanced")
    chosen = []
    for label in sorted({item.completion for item in items}):
        pool = [item for item in items if item.completion == label]
        chosen += draw.sample(pool, min(per_label, len(pool)))
    return chosen


def _few_shot(lessons: list[Example], recipe: Recipe) -> list[Example]:
    """Released lessons as worked examples, the labels in turn; for generation, as many in all as two labels get."""
    count = recipe.measure.few_shot_per_label
    draw = random.Random(f"{recipe.seed}/few-shot")
    if isinstance(recipe.task, ClassificationTask):
        shots = _balanced(lessons, count, recipe.seed)
        draw.shuffle(shots)
        return shots
    return draw.sample(lessons, min(2 * count, len(lessons)))


def _originals(run: Run, lessons: LessonSet) -> list[PrivateRecord]:
    """As many original records per class as there are lessons, drawn over all silos. For the upper line only."""
    draw = random.Random(f"{run.recipe.seed}/originals")
    pool = [record for silo in run.silos for record in _records(run, silo)]
    draw.shuffle(pool)
    if not isinstance(run.recipe.task, ClassificationTask):
        return pool[: len(lessons)]
    wanted = {label: sum(lesson.completion == label for lesson in lessons) for label in run.recipe.task.labels}
    chosen = []
    for record in pool:
        if wanted.get(record.completion, 0) > 0:
            wanted[record.completion] -= 1
            chosen.append(record)
    return chosen


def _next_topics(run: Run, round: int, student: Any, tokenizer: Any, instruction: str) -> dict[str, float]:
    """The next round's topics, from the student's errors on released lessons it was not trained on."""
    task = run.recipe.task
    if not isinstance(task, ClassificationTask) or round == run.recipe.rounds:
        return {}
    used = {lesson.id for lesson in _lessons(run, round)}
    spare = [one.example() for one in _all_lessons(run, round) if one.kind == "example" and one.id not in used]
    spare = _balanced(spare, _TOPIC_LESSONS // len(task.labels), run.recipe.seed)
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


def _silo_counts(run: Run, round: int, silo: str, records: int) -> SiloCounts:
    taught, screened = run.facts(f"round-{round}/teach-{silo}"), run.facts(f"round-{round}/screen-{silo}")
    return SiloCounts(
        silo=silo,
        records=records,
        prompts=taught["prompts"],
        drafts=taught["sampled"],
        malformed=taught["malformed"],
        dropped={**taught["dropped"], **screened["dropped"]},
        replaced=screened["replaced"],
        released=screened["released"],
    )


def _dump(metrics: Any) -> list[dict[str, Any]]:
    return [metric.model_dump() for metric in metrics]


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=1, sort_keys=True) + "\n"
