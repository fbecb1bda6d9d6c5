"""The silos' stages as a run sees them whose silos are elsewhere: each asks for a silo's part, waits, checks, takes.

They stand under the names, and with the facts and files, of the stages that flows/stages.py would have run here, so all
that comes after is the same. What is taken are signed lessons, certificates, counts of votes, and where lessons are
screened only, figures of overlap; no record, no draft and no ledger leaves a silo.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import fetch_mail
from tutelage.configs.schema import FederationConfig, FileData, Recipe
from tutelage.configs.store import canonical_json, file_digest, files_below, write_atomic
from tutelage.flows import layout
from tutelage.flows.federation import exchange as at
from tutelage.flows.federation.exchange import Exchange
from tutelage.flows.stage import Done, Run, stage, stage_name
from tutelage.flows.stages import facts_of_run
from tutelage.privacy import canaries
from tutelage.privacy.certificate import load as load_certificate
from tutelage.privacy.custody import PUBLIC_KEY
from tutelage.privacy.handed import Handed
from tutelage.privacy.keys import SiloKey, seal
from tutelage.privacy.partition import Partition, controls, partition
from tutelage.privacy.release import LessonSet
from tutelage.privacy.sources import Loaded, load_records
from tutelage.privacy.vault import dump_records, write_records


@stage(version=1)
def prepare(run: Run) -> Done:
    """Deal this run's own records out to test set, members, non-members and canaries.

    Canaries and members are planted: each silo gets its share, sealed, and puts it among its records. So the attacks
    know what was there and what was not, without a record of any silo. Nothing of it is handed out before all of it is
    written down, or a run that was killed in between would plant one thing and look for another.
    """
    recipe, federation = run.recipe, _federation(run)
    dealt = deal(load_records(recipe.data, recipe.task, fetch_mail, layout.spool_path(run)), recipe)
    members, nonmembers, carriers = controls(dealt, recipe)
    names = run.silos
    dealt_out = {name: members[number :: len(names)] for number, name in enumerate(names)}
    shares, planted = canaries.plant(dealt_out, carriers, recipe.attack, recipe.task, max_chars=recipe.data.max_chars)
    public_keys = {name: one.signing for name, one in federation.silos.items()}
    files = [
        write_records(layout.evaluation_path(run, "test"), dealt.test),
        write_records(layout.evaluation_path(run, "members"), members),
        write_records(layout.evaluation_path(run, "nonmembers"), nonmembers),
        canaries.write_canaries(layout.evaluation_path(run, "canaries"), planted),
        write_atomic(layout.public_keys_path(run), canonical_json(public_keys) + "\n"),
    ]
    for name in names:
        sealed = seal(dump_records(shares[name]), federation.silos[name].sealing, at.about_planted(run.id, name))
        files.append(write_atomic(_sealed_path(run, name), sealed))
    return files, facts_of_run(recipe, dealt, nonmembers)


@stage(version=1)
def index(run: Run, silo: str) -> Done:
    """Open the run to its silos, and wait until this one has prepared itself: it says how many units it has."""
    exchange = exchange_of(run)
    digests = {}
    for name in run.silos:
        exchange.open_to_all(at.place_of(name))
        exchange.put(at.sealed(name), _sealed_path(run, name))
        digests[name] = file_digest(_sealed_path(run, name))
    facts = {"recipe": _handed_out(run.recipe), "sealed": digests}
    exchange.say(at.RUN, coordinator_key(run.dir.root.parent), facts)
    return [], {"units": int(_awaited(run, silo, "prepare").facts["units"])}


@stage(version=1)
def teach(run: Run, round: int, silo: str) -> Done:
    """A silo's teacher writes drafts, there; here is how many."""
    own_key = (run.dir.root / PUBLIC_KEY).read_text().strip()
    facts = {"topics": layout.topics(run, round), "public_key": own_key}
    exchange_of(run).say(at.begin(round), coordinator_key(run.dir.root.parent), facts)
    return [], _awaited(run, silo, "teach", round).facts


@stage(version=1)
def screen(run: Run, round: int, silo: str) -> Done:
    """A silo's lessons of the round, every signature verified."""
    statement, path = _awaited(run, silo, "screen", round), layout.released_path(run, round, silo)
    _fetch(run, statement, path)
    found = LessonSet.load(path, run.id, layout.public_keys(run))
    expected = (silo, round, run.recipe.privacy.mechanism)
    if any((lesson.silo, lesson.round, lesson.mechanism) != expected for lesson in found):
        raise PrivacyError(f"silo {silo} handed over lessons of another silo, round or mechanism")
    return [path], statement.facts


@stage(version=1)
def vote(run: Run, round: int, silo: str) -> Done:
    """A silo's votes for the released lessons: counts, noised under a formal mechanism."""
    return [], _awaited(run, silo, "vote", round).facts


@stage(version=1)
def certify(run: Run, round: int, silo: str) -> Done:
    """A silo's certificate from its own ledger, its signature verified. Nothing where none is."""
    privacy = run.recipe.formal
    if not privacy:
        return [], {}
    statement, path = _awaited(run, silo, "certify", round), layout.certificate_path(run, round, silo)
    _fetch(run, statement, path)
    found = load_certificate(path, layout.public_keys(run))
    if (found.run_id, found.silo, found.round) != (run.id, silo, round):
        raise PrivacyError(f"silo {silo} handed over a certificate of another run, silo or round")
    # Its arithmetic is `tutelage audit recompute`'s; here, that it is about these lessons and this recipe's promise.
    promised = (privacy.mechanism, privacy.unit, privacy.epsilon, file_digest(layout.released_path(run, round, silo)))
    if (found.mechanism, found.unit, found.epsilon_asked, found.lessons_digest) != promised:
        raise PrivacyError(f"silo {silo} certifies other lessons, or another promise, than the recipe asks for")
    return [path], {"epsilon": found.epsilon}


@stage(version=1)
def audit_silo(run: Run, round: int, silo: str) -> Done:
    """How much the released set overlaps with a silo's records: aggregates, where no ε is promised; else nothing."""
    if run.recipe.formal:
        return [], {}
    for name in at.taught(run.recipe, round):
        exchange_of(run).put(name, run.dir.root / name)
    statement = _awaited(run, silo, "audit_silo", round)
    return [], {"overlap": dict(statement.facts["overlap"])}


@stage(version=1)
def hand_out(run: Run, round: int) -> Done:
    """Put the round's report, data card and lessons where the silos, and whoever may read there, find them."""
    exchange = exchange_of(run)
    for path in files_below(layout.lessons_path(run, round).parent):
        exchange.put(path.relative_to(run.dir.root).as_posix(), path)
    return [], {}


def deal(loaded: Loaded, recipe: Recipe) -> Partition:
    """This place's own records: test set, non-members, and all others, of which members are drawn, as one silo's.

    Raises:
        UserError: there are too few.
    """
    alone = recipe.data.model_copy(update={"silos": 1, "records_per_silo": None})
    return partition(Loaded(loaded.records, {}, loaded.owner_of), alone, recipe.task, recipe.seed, 0)


def call_silos(run: Run) -> None:
    """Begin the silos' part on their own workers, for each that has a deployment on this Prefect server.

    Others look into the exchange by themselves (`tutelage silo work`). One flow run for each attempt of this run.
    """
    from prefect import runtime
    from prefect.client.orchestration import get_client
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        for silo in run.silos:
            try:
                found = client.read_deployment_by_name(f"silo/{silo}")
            except ObjectNotFound:
                continue
            attempt = f"{run.id}-{silo}-{runtime.flow_run.id}-{runtime.flow_run.run_count}"
            run_deployment(
                found.id, parameters={"run_id": run.id}, timeout=0, as_subflow=False, idempotency_key=attempt
            )


def coordinator_key(runs: Path) -> SiloKey:
    """The key that all runs of a folder ask silos with; made for the first."""
    path = layout.coordinator_key_path(runs)
    return SiloKey.load(path) if path.exists() else SiloKey.create(path)


def exchange_of(run: Run) -> Exchange:
    """The run's part of its exchange."""
    return Exchange(_federation(run).exchange, run.id)


# ---- helpers ----------------------------------------------------------------------------------------------------


def _awaited(run: Run, silo: str, name: str, *where: int) -> Handed:
    """What a silo hands over as a stage, as soon as it has.

    Raises:
        UserError: it refuses, or `federation.patience_s` has passed.
        PrivacyError: it isn't signed by the silo's key.
    """
    exchange, federation = exchange_of(run), _federation(run)
    keys = {name: one.signing for name, one in federation.silos.items()}
    named = stage_name(name, *where, silo)
    said = False

    def look() -> Handed | None:
        nonlocal said
        statement = exchange.take(silo, named, keys)
        refused = exchange.refused(silo, keys) if statement is None else None
        if refused is not None:
            raise refused
        if statement is None and not said:
            print(f"  {named:<28} waits for silo {silo}", file=sys.stderr, flush=True)
            said = True
        return statement

    statement = at.patiently(look, federation.patience_s)
    if statement is None:
        raise UserError(
            f"silo {silo} has not handed over {named} within {federation.patience_s} s",
            file=run.dir.root,
            key="federation.patience_s",
            remedy="is its worker running? Then `tutelage resume` this run",
        )
    return statement


def _fetch(run: Run, statement: Handed, path: Path) -> None:
    exchange_of(run).fetch(statement, path.relative_to(run.dir.root).as_posix(), path)


def _federation(run: Run) -> FederationConfig:
    assert run.recipe.federation is not None
    return run.recipe.federation


def _sealed_path(run: Run, silo: str) -> Path:
    return run.dir.vault / "sealed" / silo


def _handed_out(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what is this place's own: where its records and ledgers lie."""
    data = recipe.data.model_copy(update={"records": FileData(path=Path("elsewhere"))})
    privacy = recipe.formal.model_copy(update={"ledgers": None}) if recipe.formal else recipe.privacy
    return recipe.model_copy(update={"data": data, "privacy": privacy}).model_dump(mode="json")
