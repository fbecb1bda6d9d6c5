"""The stages up to the lessons, in the order they happen; flows/trials.py has those of the student.

Each is a plain function; `@stage` makes it a task.
A stage reads what earlier stages committed and returns the files it wrote and a few facts: counts, figures,
digests and ids. What it may read is the point: a stage that takes a silo's name reads that silo's records and
no other's; `learn` reads released lessons only.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError
from tutelage.configs.jsonl import write_jsonl
from tutelage.configs.models import fetch_mail
from tutelage.configs.schema import (
    ClassificationTask,
    PrivateEvolutionPrivacy,
    Recipe,
    ScreenConfig,
)
from tutelage.configs.store import canonical_json, file_digest, write_atomic
from tutelage.flows import formal, layout, teaching
from tutelage.flows.stage import Done, Run, stage
from tutelage.privacy import canaries, overlap, review
from tutelage.privacy.attacks import contamination, overlap_audit
from tutelage.privacy.drafts import read_drafts, write_drafts
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.partition import Partition, controls, partition
from tutelage.privacy.pii import Scrubber
from tutelage.privacy.preferences import preferences
from tutelage.privacy.release import release, reviewed
from tutelage.privacy.similarity import embed_into
from tutelage.privacy.sources import load_records
from tutelage.privacy.vault import PrivateRecord, read_records, write_records
from tutelage.teachers import aggregate as aggregation
from tutelage.teachers import examples, instructions, prompts

# ---- once a run -------------------------------------------------------------------------------------------------


@stage(version=3)
def prepare(run: Run) -> Done:
    """Deal the records out to silos, test set and non-members; plant the canaries; make the silos' keys.

    This one stage stands for what happens before a federation begins: in production every silo has its own
    records already. After it nothing but the student on originals, which is for comparison, reads two silos' records.
    """
    recipe = run.recipe
    loaded = load_records(recipe.data, recipe.task, fetch_mail, layout.spool_path(run))
    dealt = partition(loaded, recipe.data, recipe.task, recipe.seed, recipe.min_records_per_label)
    # Canaries are put into records of no silo, which are then no controls for the attacks.
    members, nonmembers, carriers = controls(dealt, recipe)
    check_silos(recipe, dealt)
    silos, planted = canaries.plant(dealt.silos, carriers, recipe.attack, recipe.task, max_chars=recipe.data.max_chars)
    files = [
        write_records(layout.evaluation_path(run, "test"), dealt.test),
        write_records(layout.evaluation_path(run, "members"), members),
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
        files += [write_owners(run, name, records, loaded.owner_of) for name, records in silos.items()]
    for silo in {canary.silo for canary in planted}:
        formal.note_internal(run, silo, "canaries", 0)
    return files, {
        "records": {name: len(records) for name, records in silos.items()},
        **facts_of_run(recipe, dealt, nonmembers),
    }


@stage(version=4)
def index(run: Run, silo: str) -> Done:
    """Scrub and embed a silo's records once, for whatever compares lessons with them."""
    recipe, records, files = run.recipe, layout.records(run, silo), []
    texts = functools.partial(overlap.indexed_texts, records, labels(recipe))
    if not (recipe.formal and recipe.federation):  # there no figure of overlap is taken
        scrubbed = overlap.scrub(texts(), scrubber(recipe.screen))
        files.append(write_jsonl(layout.scrubbed_path(run, silo), ({"text": text} for text in scrubbed)))
    if recipe.embeds_records:  # screening, voting or a rule of the gate
        path = layout.embeddings_path(run, silo)
        path.parent.mkdir(parents=True, exist_ok=True)
        embed_into(path, texts(), sum(1 for _ in texts()), alone=_votes_are_counted(recipe))
        files.append(path)
    return files, {}


# ---- teach, screen, aggregate -----------------------------------------------------------------------------------


@stage(version=2)
def teach(run: Run, round: int, silo: str) -> Done:
    """A silo's teacher writes drafts and wordings of an instruction, into the silo's vault."""
    recipe, records = run.recipe, layout.records(run, silo)
    topics = layout.topics(run, round)
    place: dict[str, Any] = {"silo": silo, "round": round, "seed": recipe.seed}
    asked: dict[str, Any] = {"task": recipe.task, "config": recipe.teach, **place}
    with contextlib.closing(teaching.teacher(run, round, silo)) as teacher:
        if recipe.formal:
            drafts, facts = formal.teach(run, teacher, round, silo)
        else:
            wordings = instructions.write_instruction(teacher, records, **asked)  # first, while a budget covers it
            written = examples.write_examples(teacher, records, topics=topics, **asked)
            drafts = [*written.drafts, *wordings]
            facts = {
                "prompts": written.prompts,
                "sampled": written.sampled,
                "malformed": written.malformed,
                "dropped": {"off_label": written.off_label, "not_kept": written.not_kept},
            }
        facts |= teaching.spending(teacher, silo)
    return [write_drafts(layout.drafts_path(run, round, silo), drafts)], facts


@stage(version=2)
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
        scrubber=scrubber(config),
        public_completions=labels(run.recipe),
        embeddings=None if run.recipe.formal else layout.embeddings(run, silo),
        scrubbed=None if run.recipe.formal else layout.scrubbed(run, silo),
        structure=run.recipe.structure,
    )
    path = released.lessons.save(layout.released_path(run, round, silo))
    count = sum(lesson.kind == "example" for lesson in released.lessons)
    return [path], {"dropped": released.dropped, "replaced": released.replaced, "released": count}


@stage(version=2)
def vote(run: Run, round: int, silo: str) -> Done:
    """A silo's records vote for the released lessons nearest to them; only the counts leave."""
    if run.recipe.formal:
        return [], formal.vote(run, round, silo)
    records = layout.records(run, silo)
    embeddings = layout.embeddings(run, silo)[: len(records)]
    votes = aggregation.count_votes(records, embeddings, layout.all_lessons(run, round).examples(), run.recipe.task)
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
def teach_bracket(run: Run, round: int, silo: str, bracket: str) -> Done:
    """A silo's teacher does the round's work once more at another ε, into the vault."""
    with contextlib.closing(teaching.teacher(run, round, silo)) as teacher:
        drafts, _ = formal.teach(run, teacher, round, silo, bracket)
    return [write_drafts(layout.drafts_path(run, round, silo, bracket), drafts)], {}


@stage(version=4)
def aggregate(run: Run, round: int) -> Done:
    """All rounds' and silos' lessons become the set the student learns from, and one instruction.

    What reviewers decided up to now (`tutelage inspect`) holds: rejected lessons are left out, edited ones as edited.
    The pairs that they make are written where the recipe has the student trained on them.
    """
    recipe, decisions = run.recipe, review.read(layout.review_path(run))
    released = layout.all_lessons(run, round)
    lessons = reviewed(
        released,
        decisions,
        key=layout.run_key(run),
        scrubber=scrubber(recipe.screen),
        public_completions=labels(recipe),
        structure=recipe.structure,
    )
    voted = recipe.aggregate.method == "vote"
    votes = [run.facts(f"round-{round}/vote-{silo}")["votes"] for silo in run.silos] if voted else []
    chosen, per_class = aggregation.aggregate(
        lessons.examples(), votes, task=recipe.task, config=recipe.aggregate, seed=recipe.seed
    )
    advice = instructions.choose_instruction(lessons)
    path = lessons.select(chosen).save(layout.lessons_path(run, round))
    wording = prompts.compose_instruction(recipe.task, advice) + "\n"
    instruction = write_atomic(layout.instruction_path(run, round), wording)
    heeded = "".join(canonical_json(one.model_dump(exclude_none=True)) + "\n" for one in decisions.values())
    files = [path, instruction, write_atomic(layout.heeded_path(run, round), heeded, mode=0o600)]
    if recipe.student.dpo:
        pairs, paths = preferences(released, lessons, decisions), layout.preferences_paths(run, round)
        files += [side.save(path) for side, path in zip((pairs.chosen, pairs.rejected), paths, strict=True)]
    counts = review.counts(decisions)
    return files, {"per_class": per_class, "lessons_digest": file_digest(path), "reviewed": counts}


@stage(version=5)
def audit_silo(run: Run, round: int, silo: str) -> Done:
    """How much the released set, and the evaluation set, overlap with one silo's records. Aggregates, and internal."""
    recipe = run.recipe
    formal.note_internal(run, silo, "overlap_audit", round)
    corpus = overlap.Corpus(
        layout.records(run, silo),
        ngram=recipe.screen.ngram,
        scrubber=scrubber(recipe.screen),
        public_completions=labels(recipe),
        embeddings=layout.embeddings(run, silo) if recipe.embeds_records else None,
        scrubbed=layout.scrubbed(run, silo),
    )
    edited = {lesson.id: lesson for lesson in layout.taught(run, round) if lesson.silo == review.SILO}
    texts = [lesson.prompt for lesson in [*layout.all_lessons(run, round), *edited.values()]]
    overlaps = corpus.measure(texts, meaning=recipe.embeds_records)
    facts: dict[str, Any] = {"overlap": overlap_audit.summarise(overlaps)}
    here = layout.evaluation_path(run, "test")
    if here.exists():  # a silo that is elsewhere doesn't get it
        facts["test_seen"] = contamination.seen(corpus, [one.text for one in read_records(here)])
    return [], facts


# ---- helpers ----------------------------------------------------------------------------------------------------


def facts_of_run(recipe: Recipe, dealt: Partition, nonmembers: Sequence[PrivateRecord]) -> dict[str, Any]:
    """What `prepare` tells the flow and the report, wherever the silos are."""
    return {
        "test": len(dealt.test),
        "nonmembers": len(nonmembers),
        "near_duplicates_unused": dealt.twins_unused,
        "brackets": brackets(recipe),
        "rounds": recipe.rounds,
        "approval": recipe.gate.approval,
    }


def check_silos(recipe: Recipe, dealt: Partition) -> None:
    """Refuse a route that does not fit the silos that the data names.

    Raises:
        UserError: it doesn't.
    """
    try:
        recipe.check_silos(list(dealt.silos))
    except ValueError as error:
        remedy = f"the silos are {', '.join(sorted(dealt.silos))}"
        raise UserError(str(error), key="teach.route.teachers", remedy=remedy) from None


def write_owners(run: Run, silo: str, records: Sequence[PrivateRecord], owner_of: dict[str, str]) -> Path:
    """Write down whose a silo's records are, where the data names owners."""
    # a canary belongs to nobody, so each of its copies is a unit of its own
    owners = {record.id: owner_of.get(record.id, f"\0canary {record.id}") for record in records}
    return write_atomic(layout.owners_path(run, silo), canonical_json(owners), mode=0o600)


def _votes_are_counted(recipe: Recipe) -> bool:
    """Whether embeddings decide what leaves under a guarantee: then no record's may depend on another's by a bit.

    Else they serve audits that stay in the vault, and are computed many at a time, in some 0.6 of the time.
    """
    evolves = isinstance(recipe.privacy, PrivateEvolutionPrivacy)
    return evolves or (recipe.formal is not None and recipe.aggregate.method == "vote")


def scrubber(config: ScreenConfig) -> Scrubber:
    """The recipe's detectors."""
    return Scrubber(config.entities, config.pii_score)


def labels(recipe: Recipe) -> frozenset[str]:
    """A classification's labels, or the answers to choose from; empty where any text will do."""
    if isinstance(recipe.task, ClassificationTask):
        return frozenset(recipe.task.labels)
    return frozenset(recipe.structure.choice or ()) if recipe.structure else frozenset()


def brackets(recipe: Recipe) -> list[str]:
    """The other ε that a round's work is done at, as text, by ε."""
    return [f"{epsilon:g}" for epsilon in sorted(recipe.formal.brackets)] if recipe.formal else []
