"""One run, top to bottom: silos teach, lessons are screened, a student learns, is measured, attacked and judged.

    Silo -> Draft -> Lesson -> Adapter -> RoundReport -> GateDecision -> registry

Read this file first. Each call in `run_rounds` is a stage of flows/stages.py, trials.py or attacks.py, and returns at
once if it is complete.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from prefect import flow

from tutelage.flows import approve, attacks, stages, trials
from tutelage.flows.federation import coordinator
from tutelage.flows.stage import Pending, open_run
from tutelage.flows.workers import working
from tutelage.privacy.attacks.suite import SURFACES


@flow(name="distill", persist_result=False, log_prints=False, retries=0)
def distill(run_dir: str, jobs: int = 1) -> dict[str, object]:
    """Run every round of the recipe in a run folder, or go on where an earlier attempt stopped.

    Args:
        run_dir: A folder made by `stage.create_run`. Prefect stores this path and `jobs`, and nothing else.
        jobs: Stages at once.

    Returns:
        Round -> whether its gate passed, as text keys.
    """
    with working(jobs):
        return run_rounds(run_dir)


def run_rounds(run_dir: str) -> dict[str, object]:
    """All rounds, or those up to one that waits for a person.

    With workers a stage begins as soon as those in its `after` are finished.
    """
    run = open_run(Path(run_dir))
    part: Any = stages  # of a silo: done here, or asked of it where it is elsewhere
    if run.recipe.federation:
        part = coordinator
        coordinator.call_silos(run)
    prepared = part.prepare(run_dir, after=[])
    asked, silos = prepared.facts, run.silos  # waited for: only then the silos have names
    indexed = {silo: part.index(run_dir, silo, after=[prepared]) for silo in silos}

    ready = [prepared, *indexed.values()] if run.recipe.federation else [prepared]  # there, an index tells their sizes
    tested = [attacks.check_scanner(run_dir, after=[prepared]), attacks.probe_mechanism(run_dir, after=ready)]

    rounds, judged = [], prepared
    for round in range(1, asked["rounds"] + 1):
        # Each silo alone: its teacher writes, its screen decides what may leave.
        screened = []
        for silo in silos:
            drafts = part.teach(run_dir, round, silo, after=[indexed[silo], judged, *tested])
            screened.append(part.screen(run_dir, round, silo, after=[indexed[silo], drafts]))

        # From here on only what was released is read, but for the silos' own votes and audits.
        votes = [part.vote(run_dir, round, silo, after=[indexed[silo], *screened]) for silo in silos]
        lessons = stages.aggregate(run_dir, round, after=[*screened, *votes])
        certified = [part.certify(run_dir, round, silo, after=[*screened, *votes]) for silo in silos]
        student = trials.learn(run_dir, round, after=[lessons])

        # What it is worth, and what it gives away.
        measured = trials.measure(run_dir, round, after=[prepared, lessons, student])
        upper = trials.upper_line(run_dir, round, after=[prepared, lessons])
        brackets = {}
        for bracket in asked["brackets"]:
            written = [stages.teach_bracket(run_dir, round, silo, bracket, after=certified) for silo in silos]
            brackets[bracket] = trials.bracket_student(run_dir, round, bracket, after=[lessons, *written])
        own = attacks.auxiliary(run_dir, round, after=[lessons])
        blank = [brackets["0"]] if "0" in brackets else []  # a reference to attacks: it learned from no record
        read = {"student": [student, *blank], "lessons": [own], "instruction": [], "one_run": [student, *certified]}
        attacked = [attacks.attack(run_dir, round, on, after=[prepared, lessons, *read[on]]) for on in SURFACES]
        seen = attacks.contaminated(run_dir, round, after=[prepared, lessons])
        audits = [part.audit_silo(run_dir, round, silo, after=[indexed[silo], lessons]) for silo in silos]

        found = [*tested, measured, upper, *brackets.values(), *attacked, seen, *certified, *audits]
        judged = trials.judge_round(run_dir, round, after=found)
        last = [judged]
        if run.recipe.federation:
            last.append(coordinator.hand_out(run_dir, round, after=[judged]))
        decided = []
        if asked["approval"] and judged.facts["passed"]:
            word = approve.manifest(run, round)
            if word is None:
                break  # a person's turn: `tutelage approve`, and then this goes on
            decided = [Pending(word)]
        published = trials.publish_student(run_dir, round, after=[student, judged, *decided])
        rounds.append([*last, published])
    [one.manifest for one in itertools.chain(*rounds)]
    return {str(round): judged.facts["passed"] for round, (judged, *_) in enumerate(rounds, 1)}
