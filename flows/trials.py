"""The stages of the student, in the order they happen: learn, measure, judge, publish; attacks.py has the attacks.

They read released lessons. Those that read private records besides say so: what they find is marked internal.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from tutelage.configs.models import hub_name, load_model, resolve_model
from tutelage.configs.progress import Bar
from tutelage.configs.records import Certificate, Curve, CurvePoint, Example, Metric, RoundReport, SiloCounts, Spending
from tutelage.configs.schema import ClassificationTask, Recipe
from tutelage.configs.store import digest, write_atomic
from tutelage.flows import approve, formal, layout, registry
from tutelage.flows.data_card import data_card
from tutelage.flows.stage import Done, Run, stage
from tutelage.flows.stages import brackets, labels, scrubber
from tutelage.privacy import custody, gate
from tutelage.privacy.attacks import contamination, overlap_audit
from tutelage.privacy.attacks.suite import SURFACES
from tutelage.privacy.drafts import read_drafts
from tutelage.privacy.partition import matched
from tutelage.privacy.release import LessonSet, cleaned
from tutelage.privacy.vault import Joined, PrivateRecord, read_records
from tutelage.students import evaluate, neutral, publish, score, train
from tutelage.students.compare import Comparison, balanced, few_shot
from tutelage.teachers import aggregate as aggregation
from tutelage.teachers import curriculum, instructions, prompts

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
UNDEFENDED = (
    "Nothing protected the records in this run: drafts were not compared with them, and copies may have been released. "
    "It is there to be attacked. Personal data that the detectors found was replaced, which is no protection either."
)
_TOPIC_LESSONS = 64


@stage(version=3)
def learn(run: Run, round: int) -> Done:
    """Train the student on the lessons, then on pairs that reviewers' decisions make, if the recipe asks for it.

    Its adapter stays in the vault until the gate has passed it.
    """
    recipe = run.recipe
    lessons = layout.lessons(run, round)
    if len(lessons) < 2:
        # Nothing to learn from: no adapter, so every figure of the student is missing and the gate refuses.
        return [], {"curve": [], "adapter_digest": "", "preference_pairs": 0}
    result = train.train_student(
        lessons,
        instruction=layout.instruction(run, round),
        base=resolve_model(recipe.student.base),
        base_name=hub_name(recipe.student.base),
        out=layout.adapter_path(run, round),
        config=recipe.student,
        seed=recipe.seed,
        preferences=layout.preferences(run, round),
    )
    facts = {
        "curve": [point.model_dump() for point in result.curve],
        "adapter_digest": publish.adapter_digest(result.adapter),
        "preference_pairs": result.preference_pairs,
    }
    return [result.adapter], facts


@stage(version=1)
def measure(run: Run, round: int) -> Done:
    """The student on the real test set, beside what else could be done without the private records."""
    recipe, config = run.recipe, run.recipe.measure
    compare = _comparison(run)
    lessons = layout.lessons(run, round).examples()
    instruction, public = layout.instruction(run, round), prompts.public_instruction(recipe.task)
    folder = resolve_model(recipe.student.base)
    base, tokenizer = load_model(folder)
    shots = few_shot(lessons, recipe)
    trained = layout.adapter_path(run, round).exists()
    topics: dict[str, float] = {}
    with Bar(4 if trained else 3) as methods:
        metrics = [*compare.measure("zero_shot", base, tokenizer, instruction=public)]
        methods.update()
        metrics += compare.measure(
            "few_shot", base, tokenizer, instruction=instruction, taught_with=lessons, shots=shots
        )
        methods.update()
        metrics += compare.measure("instruction", base, tokenizer, instruction=instruction, taught_with=lessons)
        methods.update()
        metrics += compare.tfidf(lessons)
        if trained:
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
    out, instruction = layout.upper_line_path(run, round), layout.instruction(run, round)
    return [out], _compared(run, out, "originals", _originals(run, lessons), instruction, internal=True)


@stage(version=3)
def bracket_student(run: Run, round: int, bracket: str) -> Done:
    """The student on what the bracket's teachers wrote, as many texts a class: what the asked ε is compared with."""
    recipe = run.recipe
    per_class = min(run.facts(f"round-{round}/aggregate")["per_class"].values())
    detectors = scrubber(recipe.screen)
    drafts = [
        draft
        for earlier in range(1, round + 1)
        for silo in run.silos
        for draft in cleaned(
            read_drafts(layout.drafts_path(run, earlier, silo, bracket)),
            recipe.screen,
            detectors,
            labels(recipe),
            recipe.structure,
        )
    ]
    wordings = [draft.prompt for draft in drafts if draft.kind == "instruction"]
    instruction = prompts.compose_instruction(recipe.task, instructions.medoid(wordings))
    written = {one.id: one for one in drafts if one.kind == "example"}
    candidates = [Example(id=one.id, prompt=one.prompt, completion=one.completion) for one in written.values()]
    chosen, _ = aggregation.aggregate(
        candidates,
        [formal.vote_bracket(run, round, silo, bracket, candidates) for silo in run.silos],
        task=recipe.task,
        config=recipe.aggregate.model_copy(update={"lessons_per_class": per_class}),
        seed=recipe.seed,
    )
    if len(chosen) < 2:
        return [], {"metrics": []}
    name = f"epsilon_{bracket.replace('.', '_')}"  # names of metrics are dotted
    out = layout.bracket_path(run, round, bracket)
    records = [PrivateRecord(id, written[id].prompt, written[id].completion) for id in chosen]
    return [out], _compared(run, out, name, records, instruction, internal=bracket != "0")


# ---- gate, report, publish --------------------------------------------------------------------------------------


@stage(version=5)
def judge_round(run: Run, round: int) -> Done:
    """Apply the gate's rules to everything measured, and write the round's report."""
    recipe = run.recipe
    at = f"round-{round}/"
    attacks = [f"{at}attack-{surface}" for surface in SURFACES]
    stages = ("check_scanner", "probe_mechanism", f"{at}measure", f"{at}upper_line", *attacks)
    metrics = [Metric(**row) for name in stages for row in run.facts(name)["metrics"]]
    audits = {silo: run.facts(f"{at}audit_silo-{silo}") for silo in run.silos}
    metrics += overlap_audit.combine({silo: one["overlap"] for silo, one in audits.items() if "overlap" in one})
    metrics += contamination.summarise(
        run.facts(f"{at}contaminated")["seen"],
        {silo: one["test_seen"] for silo, one in audits.items() if "test_seen" in one},
        run.facts("prepare")["test"],
    )
    aggregated, learned, records = (
        run.facts(at + "aggregate"),
        run.facts(at + "learn"),
        run.records,
    )
    certificates = layout.certificates(run, round)
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
    for bracket in brackets(recipe):
        metrics += [Metric(**row) for row in run.facts(f"{at}bracket_student-{bracket}")["metrics"]]
    report = RoundReport(
        run_id=run.id,
        round=round,
        recipe_name=recipe.name,
        recipe_digest=digest(recipe.model_dump(mode="json")),
        protection=_protection(recipe),
        certificates=certificates,
        instruction=layout.instruction(run, round),
        silos=tuple(_silo_counts(run, round, silo, records[silo], certified.get(silo)) for silo in run.silos),
        spending=_spending(run, round),
        lessons_per_class=aggregated["per_class"],
        reviewed=aggregated["reviewed"],
        preference_pairs=learned["preference_pairs"],
        topics_next=run.facts(at + "measure")["topics"],
        metrics=tuple(metrics),
        roc=tuple(Curve(**row) for name in attacks for row in run.facts(name)["roc"]),
        curve=tuple(CurvePoint(**point) for point in learned["curve"]),
        decision=gate.decide(
            metrics, recipe.gate, lessons=sum(aggregated["per_class"].values()), defended=recipe.defended
        ),
        lessons_digest=aggregated["lessons_digest"],
        adapter_digest=learned["adapter_digest"],
        versions=custody.versions(),
        seed=recipe.seed,
    )
    public = publish.public_report(report)
    files = [
        write_atomic(path, one.model_dump_json(indent=1) + "\n")
        for path, one in ((layout.report_path(run, round), report), (layout.public_report_path(run, round), public))
    ]
    files.append(write_atomic(layout.data_card_path(run, round), data_card(public, recipe)))
    return files, {"passed": report.decision.passed}


@stage(version=2)
def publish_student(run: Run, round: int) -> Done:
    """Put a passed adapter into the registry. One that the gate or a person refused stays where it is, in the vault."""
    if not run.facts(f"round-{round}/judge_round")["passed"]:
        return [], {"published": None}
    word = approve.approval(run, round) if run.recipe.gate.approval else None
    if run.recipe.gate.approval and (word is None or not word.approved):
        return [], {"published": None}
    return [], {"published": registry.publish_round(run, round, approval=word).name}


# ---- helpers ----------------------------------------------------------------------------------------------------


def _protection(recipe: Recipe) -> str:
    if recipe.formal:
        return FORMAL_PROTECTION
    return PROTECTION if recipe.defended else UNDEFENDED


def _comparison(run: Run) -> Comparison:
    return Comparison(run.recipe, [r.example() for r in read_records(layout.evaluation_path(run, "test"))])


def _compared(
    run: Run, out: Path, name: str, taught_with: list[PrivateRecord], instruction: str, *, internal: bool
) -> dict[str, Any]:
    """A student for comparison, trained on texts that are not released. Its adapter never leaves the vault."""
    folder = resolve_model(run.recipe.student.base)
    with Bar(2) as parts:
        train.train_upper_line(
            taught_with,
            instruction=instruction,
            base=folder,
            base_name=hub_name(run.recipe.student.base),
            out=out,
            config=run.recipe.student,
            seed=run.recipe.seed,
        )
        parts.update()
        student, tokenizer = train.load_student(folder, out)
        known = [record.example() for record in taught_with]
        metrics = _comparison(run).measure(
            name, student, tokenizer, instruction=instruction, taught_with=known, internal=internal
        )
    return {"metrics": _dump(metrics)}


def _originals(run: Run, lessons: LessonSet) -> list[PrivateRecord]:
    """As many original records per class as there are lessons, drawn over all silos. For the upper line only."""
    pool, task = Joined([layout.records(run, silo) for silo in run.silos]), run.recipe.task
    order = random.Random(f"{run.recipe.seed}/originals").sample(range(len(pool)), len(pool))
    wanted = Counter(aggregation.class_of(lesson.completion, task) for lesson in lessons)
    return matched(pool, order, wanted, lambda one: aggregation.class_of(one.completion, task))


def _next_topics(run: Run, round: int, student: Any, tokenizer: Any, instruction: str) -> dict[str, float]:
    """The next round's topics, from the student's errors on released lessons it was not trained on."""
    task = run.recipe.task
    if not isinstance(task, ClassificationTask) or round == run.recipe.rounds:
        return {}
    used = {lesson.id for lesson in layout.taught(run, round)}
    spare = [one for one in layout.all_lessons(run, round).examples() if one.id not in used]
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


def _spending(run: Run, round: int) -> tuple[Spending, ...]:
    """Nothing of it is internal: under an ε it comes of protected drafts, else it tells no more than counts do."""
    taught = [run.facts(f"round-{round}/teach-{silo}") for silo in run.silos]
    return tuple(Spending(**facts["spending"]) for facts in taught if "spending" in facts)


def _dump(metrics: Any) -> list[dict[str, Any]]:
    return [metric.model_dump() for metric in metrics]
