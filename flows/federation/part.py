"""A silo's part of a run that is elsewhere: it prepares itself, teaches, screens and votes, and hands that over.

It does a step as soon as the exchange has what the step needs. Everything here may be killed at any time and asked
again: what is finished is handed over once more, as it was.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
import traceback
from array import array
from collections.abc import Callable
from pathlib import Path

from prefect import flow

from tutelage.configs.errors import HeldError, PrivacyError, UserError
from tutelage.configs.load import parse_recipe
from tutelage.configs.models import fetch_mail
from tutelage.configs.store import RunDir, canonical_json, write_atomic
from tutelage.flows import formal, layout, stages
from tutelage.flows.federation import exchange as at
from tutelage.flows.federation.exchange import Exchange
from tutelage.flows.federation.silo import KEY, Silo, agreed, federation_of
from tutelage.flows.stage import Done, Pending, Run, StageError, create_run, stage, stage_name
from tutelage.privacy import review
from tutelage.privacy.partition import check_labels
from tutelage.privacy.sources import load_records
from tutelage.privacy.units import by_owner, by_record
from tutelage.privacy.vault import Chosen, PrivateRecord, parse_records, write_records

_FIRST_WORD_S = 600
"""How long a run may take to open itself to its silos after it has called them."""


# ---- the silo's stages that flows/stages.py has not --------------------------------------------------------------


@stage(version=1)
def prepare(run: Run, silo: str) -> Done:
    """The silo's records, and among them at random places what the run wants planted, under ids that say nothing."""
    recipe, here = run.recipe, _here(run)
    loaded = load_records(recipe.data, recipe.task, fetch_mail, layout.spool_path(run))
    if not recipe.formal:  # there, that a label is missing would be told by nothing else
        check_labels({silo: loaded.records}, recipe.task, recipe.min_records_per_label)
    planted = _planted(here, run.id)
    order = array("q", range(len(loaded.records) + len(planted)))
    random.SystemRandom().shuffle(order)
    records = Chosen(loaded.records, order, planted)
    own_key = write_atomic(layout.key_path(run, silo), (here.home / KEY).read_bytes(), mode=0o600)
    files = [write_records(layout.records_path(run, silo), records), own_key]
    owners = loaded.owner_of and stages.write_owners(run, silo, records, loaded.owner_of)
    if owners:
        files.append(owners)
    if planted:
        formal.note_internal(run, silo, "canaries", 0)
    owner_of = layout.owners(run, silo) if recipe.formal and recipe.formal.unit == "owner" else None
    units = by_record(records) if owner_of is None else by_owner(records, owner_of)
    return files, {"units": len(units)}


@stage(version=1)
def begin(run: Run, round: int, silo: str) -> Done:
    """What the run says of a round before it: topics, and the keys that its lessons are signed with."""
    said = _here(run).said(run.id, at.begin(round))
    assert said is not None
    keys = {name: one.signing for name, one in federation_of(run.recipe).silos.items()}
    keys[review.SILO] = str(said["public_key"])
    topics = {str(label): float(share) for label, share in said["topics"].items()}
    return [write_atomic(layout.public_keys_path(run), canonical_json(keys) + "\n")], {"topics": topics}


@stage(version=1)
def receive(run: Run, round: int, silo: str) -> Done:
    """The other silos' lessons of a round, to vote on; every signature verified."""
    exchange, keys, files = _here(run).exchange(run.id), layout.public_keys(run), []
    for other in run.silos:
        if other != silo:
            statement = exchange.take(other, stage_name("screen", round, other), keys)
            assert statement is not None
            path = layout.released_path(run, round, other)
            files.append(exchange.fetch(statement, path.relative_to(run.dir.root).as_posix(), path))
    layout.all_lessons(run, round)
    return files, {}


@stage(version=1)
def receive_chosen(run: Run, round: int, silo: str) -> Done:
    """What the round's student learns from, to compare with the silo's records; every signature verified."""
    exchange, files = _here(run).exchange(run.id), []
    for name in at.taught(run.recipe, round):
        data = exchange.get(name)
        assert data is not None
        files.append(write_atomic(run.dir.root / name, data))
    layout.taught(run, round)
    return files, {}


# ---- its part of a run -------------------------------------------------------------------------------------------


def advance(silo: Silo, run_id: str) -> list[str]:
    """Do what can be done of the silo's part of a run, and hand it over.

    Returns:
        Files of the exchange that must be there before more can be done; none: the silo's part is done.

    Raises:
        UserError: the recipe asks for more than the silo agrees to or has left to spend. The run is told.
        PrivacyError: something is not signed as it should be. The run is told, if it is the coordinator's.
        StageError: a stage stopped. The run is told that, and this silo's log why.
        HeldError: another process does it already.
    """
    me, root, exchange = silo.config.name, silo.folder(run_id), silo.exchange(run_id)
    said = silo.said(run_id, at.RUN)
    if said is None:
        return [at.RUN]
    try:
        recipe = agreed(silo, parse_recipe(said["recipe"]))
        with RunDir(root).locked():
            exchange.go_on(me, silo.key)
            return _steps(silo, exchange, create_run(recipe, root, run_id, me))
    except HeldError:
        raise
    except UserError as error:  # of recipe and settings: those of stages are `StageError`s
        if at.unreached(error):
            raise
        exchange.refuse(me, silo.key, error.problem, error.remedy)
        raise
    except (PrivacyError, StageError) as error:
        exchange.refuse(me, silo.key, str(error), None)
        raise
    except Exception as error:  # its message may quote a record, and a server would keep it
        traceback.print_tb(error.__traceback__)
        what = f"a defect, {type(error).__name__}"
        exchange.refuse(me, silo.key, what, None)
        raise StageError(f"{what}, at the last of the lines in the silo's own log") from None


def _steps(silo: Silo, exchange: Exchange, run: Run) -> list[str]:
    """A run's stages at the silo, in order, as far as the exchange allows."""
    me, formal_claim, place = silo.config.name, run.recipe.formal is not None, str(run.dir.root)

    def hand(done: Pending, *facts: str) -> None:
        manifest = done.manifest
        if not exchange.handed(me, manifest["stage"]):
            exchange.hand(me, silo.key, run.dir.root, manifest, {name: manifest["facts"][name] for name in facts})

    prepared = prepare(place, me, after=[])
    hand(prepared, "units")
    before = prepared
    for round in range(1, run.recipe.rounds + 1):
        if not exchange.has(at.begin(round)):
            return [at.begin(round)]
        began = begin(place, round, me, after=[before])
        indexed = stages.index(place, me, after=[prepared])
        drafts = stages.teach(place, round, me, after=[indexed, began])
        hand(drafts, *drafts.facts)
        screened = stages.screen(place, round, me, after=[indexed, drafts])
        hand(screened, *screened.facts)

        others = [at.handed_as(other, stage_name("screen", round, other)) for other in run.silos if other != me]
        if not exchange.has(*others):
            return others
        received = receive(place, round, me, after=[screened])
        voted = stages.vote(place, round, me, after=[indexed, received])
        hand(voted, "votes")
        before = certified = stages.certify(place, round, me, after=[screened, voted])
        if formal_claim:
            hand(certified, "epsilon")
            continue  # figures of overlap are not protected by it, and stay
        if not exchange.has(*at.taught(run.recipe, round)):
            return at.taught(run.recipe, round)
        chosen = receive_chosen(place, round, me, after=[certified])
        hand(stages.audit_silo(place, round, me, after=[indexed, chosen]), "overlap")
    return []


def take_part(silo: Silo, run_id: str) -> None:
    """Do the silo's part of one run to its end.

    Raises:
        UserError: as `advance`, or there was no news for `federation.patience_s`.
        PrivacyError: as `advance`.
        StageError: as `advance`.
    """
    awaited, patience_s = [at.RUN], float(_FIRST_WORD_S)

    def look() -> list[str] | None:
        if not silo.exchange(run_id).has(*awaited):
            return None
        try:
            return advance(silo, run_id)
        except HeldError:
            return None

    while awaited:
        found = at.patiently(look, patience_s)
        if found is None:
            raise UserError(
                f"the run has not gone on within {patience_s:g} s", file=run_id,
                remedy="is it still running? It calls this silo when it is resumed",
            )  # fmt: skip
        awaited = found
        said = silo.said(run_id, at.RUN)
        patience_s = said["recipe"]["federation"]["patience_s"] if said else _FIRST_WORD_S


@flow(name="silo", persist_result=False, log_prints=False, retries=0)
def advance_flow(home: str, run_id: str) -> list[str]:
    """`advance`, where no server began it."""
    return advance(Silo.open(Path(home)), run_id)


def work(silo: Silo, only: str | None, say: Callable[[str], None]) -> None:
    """Take part in the exchange's runs that name this silo, as they come, until interrupted; or in one, to its end.

    Args:
        silo: The silo.
        only: A run's id; None: all.
        say: Told what was refused.

    Raises:
        UserError: as `take_part`, for one run.
        PrivacyError: as `take_part`, for one run.
    """
    awaited: dict[str, list[str]] = {only: [at.RUN]} if only else {}
    while True:
        try:
            _look_around(silo, only, awaited, say)
        except UserError as error:
            if not at.unreached(error):
                raise
            say(str(error))
        if only and not awaited[only]:
            return
        time.sleep(at.SECONDS_BETWEEN_LOOKS)


def _look_around(silo: Silo, only: str | None, awaited: dict[str, list[str]], say: Callable[[str], None]) -> None:
    """Look at every run once, and do what can be done; `awaited` says for what each waits."""
    if only is None:
        for run_id in at.runs_at(silo.config.exchange):
            if run_id not in awaited:
                awaited[run_id] = [at.RUN] if _asked(silo, run_id, say) else []
    for run_id, names in awaited.items():
        if not names or not silo.exchange(run_id).has(*names):
            continue
        try:
            awaited[run_id] = advance_flow(str(silo.home), run_id)
        except HeldError:
            continue
        except (UserError, PrivacyError, StageError) as error:
            if only or (isinstance(error, UserError) and at.unreached(error)):
                raise
            say(f"{run_id}: {error}; once that is mended, start this again")
            awaited[run_id] = []
            continue
        if not awaited[run_id]:
            say(f"{run_id}: this silo's part is done")


# ---- helpers ----------------------------------------------------------------------------------------------------


def _here(run: Run) -> Silo:
    return Silo.open(run.dir.root.parents[1])


def _asked(silo: Silo, run_id: str, say: Callable[[str], None]) -> bool:
    try:
        said = silo.said(run_id, at.RUN)
    except PrivacyError as error:
        say(f"{run_id}: passed over: {error}")
        return False
    return said is not None and silo.config.name in said["recipe"]["federation"]["silos"]


def _planted(silo: Silo, run_id: str) -> list[PrivateRecord]:
    said, sealed = silo.said(run_id, at.RUN), silo.exchange(run_id).get(at.sealed(silo.config.name))
    if said is None or sealed is None or hashlib.sha256(sealed).hexdigest() != said["sealed"][silo.config.name]:
        raise PrivacyError("what is to be planted is missing, or not what the coordinator sealed")
    found = parse_records(silo.sealing.open(sealed, at.about_planted(run_id, silo.config.name)))
    return [PrivateRecord(f"planted-{secrets.token_hex(8)}", one.text, one.completion, one.source) for one in found]
