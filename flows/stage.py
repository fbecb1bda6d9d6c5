"""What a stage is: a plain function over a run folder, run once, committed whole, resumed by its manifest.

The one record of what is complete is the stage's manifest (see configs/store.py): it carries the digests of
the stage's files and is checked against them before every reuse. Before it is written, the stage's statement goes into
the run's custody log (privacy/custody.py): a manifest that the log doesn't know counts for nothing. So Prefect neither
caches nor stores results; it schedules, shows and logs. A task gets a run folder, a round, a silo's name and manifests,
never a text.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.load import parse_recipe
from tutelage.configs.progress import heard
from tutelage.configs.schema import Recipe
from tutelage.configs.store import RunDir, digest, disk_is_full, file_digest, manifest_digest, write_atomic
from tutelage.flows import progress, workers
from tutelage.privacy import custody
from tutelage.privacy.ledger import BudgetError

Manifest = dict[str, Any]
Done = tuple[list[Path], dict[str, Any]]
"""What a stage returns: the files it wrote, and a few facts."""
Body = Callable[..., Done]


class StageError(Exception):
    """A stage failed for a reason that may be private: the vault or a silo's log has it, this message not."""


@dataclass(frozen=True)
class Run:
    """A run folder, its recipe and its id."""

    dir: RunDir
    recipe: Recipe
    id: str
    silo: str | None = None
    """Whose part of a run that is elsewhere this is; None: a run."""

    def facts(self, stage: str) -> dict[str, Any]:
        """The facts a finished stage committed."""
        import json

        facts: dict[str, Any] = json.loads(self.dir.manifest_path(stage).read_text())["facts"]
        return facts

    @property
    def silos(self) -> list[str]:
        """The silos' names, in order."""
        if self.recipe.federation:
            return sorted(self.recipe.federation.silos)
        return sorted(self.records)

    @property
    def records(self) -> dict[str, int]:
        """Silo -> how many records it has; of one that is elsewhere: how many units, as it said."""
        if self.recipe.federation:
            return {name: self.facts(f"index-{name}")["units"] for name in self.silos}
        found: dict[str, int] = self.facts("prepare")["records"]
        return found


def create_run(recipe: Recipe, root: Path, run_id: str | None = None, silo: str | None = None) -> Run:
    """Make a run folder for a recipe, or open it if it is this recipe's already.

    Args:
        recipe: The recipe.
        root: The folder.
        run_id: Of a run that was begun elsewhere; None: a new one.
        silo: Whose part of it this is.

    Raises:
        UserError: the folder holds another recipe's run, or something that is no run.
    """
    written = root / "run.json"
    if written.exists():
        run = open_run(root)
        if run.recipe == recipe:
            return run
        if any(run.dir.stages.rglob("*.json")):
            raise UserError(
                "this run folder was made by another recipe, or by an earlier state of this one",
                file=root,
                remedy="name another folder with --run-dir, or `tutelage resume` to finish it as it was begun",
            )
        # Its data was never dealt out, most likely because of a fault in it: the mended recipe takes its place.
        (root / custody.LOG).unlink(missing_ok=True)
        shutil.rmtree(run.dir.vault)
    elif root.exists() and any(path.name != "lock" for path in root.iterdir()):
        raise UserError("this folder is not empty and holds no run", file=root, remedy="name another with --run-dir")
    directory = RunDir(root)
    directory.create()
    run_id = run_id or f"{recipe.name}-{os.urandom(4).hex()}"
    part_of = {"silo": silo} if silo else {}
    write_atomic(written, _json({"run_id": run_id, "recipe": recipe.model_dump(mode="json"), **part_of}))
    return Run(directory, recipe, run_id, silo)


def open_run(root: Path) -> Run:
    """Open an existing run folder.

    Raises:
        UserError: it holds no run.
    """
    import json

    try:
        written = json.loads((root / "run.json").read_text())
        run_id, recipe, silo = written["run_id"], written["recipe"], written.get("silo")
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("this is not a run folder", file=root, remedy="`tutelage list` shows the runs") from None
    directory = RunDir(root)
    directory.create()
    return Run(directory, parse_recipe(recipe, root / "run.json"), run_id, silo)


class Pending:
    """A stage that was asked for: finished, or at work in another process."""

    def __init__(self, made: Manifest | PrefectFuture[Manifest]) -> None:
        self.made = made

    @property
    def manifest(self) -> Manifest:
        """Its manifest, as soon as it is finished.

        Raises:
            Exception: what it ended with.
        """
        if not isinstance(self.made, dict):
            try:
                self.made = self.made.result()
            except Exception as error:
                pool = workers.active()
                raise (pool and pool.failure) or error from None
        return self.made

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that it committed."""
        facts: dict[str, Any] = self.manifest["facts"]
        return facts


def stage(version: int) -> Callable[[Body], Callable[..., Pending]]:
    """Make a stage of a function `body(run, *where) -> (files, facts)`.

    Args:
        version: Part of the stage's key: raise it when the same inputs would give another result.

    Returns:
        A decorator. The stage is called as `stage(run_dir, *where, after=[stages])`, and comes to its manifest: the
        one on disk if it is complete and was made from the same inputs, else a new one. It is finished when the call
        returns, unless there are workers (flows/workers.py): then it begins when those it comes after are.
    """

    def decorate(body: Body) -> Callable[..., Pending]:
        def commit(run_dir: str, name: str, where: list[int | str], after: list[Manifest], order: int) -> Manifest:
            came_from = [[manifest["stage"], manifest_digest(manifest)] for manifest in after]
            task = (body.__module__, body.__name__, version, run_dir, name, where, came_from)
            pool = workers.active()
            with progress.shown(name) as listener:
                if pool:
                    return pool.run(_attempt, *task, order=order, listener=listener)
                with heard(listener) if listener else contextlib.nullcontext():
                    return _attempt(*task)

        prefect_task = task(
            name=body.__name__, task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False, retries=0
        )(commit)

        @functools.wraps(body)
        def call(run_dir: str, *where: int | str, after: list[Pending]) -> Pending:
            name = stage_name(body.__name__, *where)
            do = prefect_task.submit if workers.active() else prefect_task
            made: list[Any] = [one.made for one in after]  # Prefect waits for those that are not made yet
            # Of stages that could begin, the one that the flow calls first does: what others come after stands early.
            return Pending(do(run_dir, name, list(where), made, next(_order)))

        return call

    return decorate


_order = itertools.count()


def _attempt(
    module: str, function: str, version: int, run_dir: str, name: str, where: list[int | str], after: list[list[str]]
) -> Manifest:
    """Commit the stage of that function, found by name: a worker is told no more. No error leaves it unsealed."""
    body, run = getattr(importlib.import_module(module), function).__wrapped__, open_run(Path(run_dir))
    try:
        return _commit(body, version, run, name, where, after)
    except (UserError, PrivacyError) as error:
        if run.silo and not isinstance(error, PrivacyError | BudgetError):
            _say(f"error: {error}" + (f"\n  try: {error.remedy}" if error.remedy else ""))
            raise _unsaid(run, name) from None
        raise error.with_traceback(None) from None  # what caused it may quote a record
    except Exception as error:
        if disk_is_full(error):
            raise UserError("the disk is full", file=run_dir, remedy="free some space, then resume") from None
        raise _sealed(error, Path(run_dir), name) from None


def by_hand(run: Run, name: str, body: Body, *where: int | str, after: list[str]) -> Manifest:
    """Commit, outside a flow, something that a person did to a finished run: it stands in the run's log like a stage.

    Args:
        run: The run.
        name: As a stage's, and of no stage.
        body: As a stage's.
        where: As a stage's.
        after: Names of the stages that it builds on.

    Raises:
        UserError: one of those is not finished.
    """
    import json

    paths = {stage: run.dir.manifest_path(stage) for stage in after}
    for stage, path in paths.items():
        if not path.exists():
            raise UserError(f"{stage} is not finished", file=run.dir.root, remedy=f"tutelage resume {run.dir.root}")
    made = [[stage, manifest_digest(json.loads(path.read_text()))] for stage, path in paths.items()]
    return _commit(body, 1, run, name, list(where), made)


def stage_name(body: str, *where: int | str) -> str:
    """`prepare`, `round-1/learn`, `round-1/teach-silo-0`."""
    rounds = [f"round-{part}/" for part in where if isinstance(part, int)]
    return "".join(rounds) + "-".join([body, *(part for part in where if isinstance(part, str))])


def _commit(body: Body, version: int, run: Run, name: str, where: list[int | str], after: list[list[str]]) -> Manifest:
    recipe = run.recipe.model_dump(mode="json")
    key = digest([name, version, run.id, recipe, [made for _, made in after]])
    log = custody.Custody(run.dir.root)
    run.dir.sweep()
    manifest = run.dir.finished(name, key)
    # A manifest is written after its statement, so one that the log doesn't know was not written by a stage.
    if manifest is not None and log.knows(name):
        _say(f"  {name:<28} done before")
        return manifest
    _say(f"  {name:<28} ...")
    with log.at_work() as begun:
        started = time.monotonic()
        files, facts = body(run, *where)
        seconds = time.monotonic() - started

        def witness(manifest: Manifest, sha256: str) -> None:
            log.add_stage(
                manifest,
                sha256,
                version=version,
                run_id=run.id,
                recipe_digest=digest(recipe),
                materials=[(stage, made) for stage, made in after],
                begun=begun,
            )

        manifest = run.dir.commit(name, key, files, facts, seconds, witness)
    _say(f"  {name:<28} {seconds:6.1f} s")
    return manifest


def _unsaid(run: Run, name: str) -> StageError:
    """What is told of an error at a silo that is elsewhere: a message that quotes nothing may still hold a count."""
    return StageError(f"the stage {name} stopped; silo {run.silo} is told why in its own log")


def _sealed(error: Exception, root: Path, name: str) -> StageError:
    """An error without its message, which may quote private text; the whole traceback goes into the vault."""
    log = root / "vault" / "errors" / f"{name.replace('/', '-')}.log"
    write_atomic(log, "".join(traceback.format_exception(error)), mode=0o600)
    return StageError(f"the stage {name} failed with {type(error).__name__}; details (private): {log}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def release_digests(run: Run) -> dict[str, str]:
    """sha256 of every released file that must repeat when a run is killed and resumed (all but the timed page)."""
    files = sorted(path for path in run.dir.release.rglob("*") if path.is_file() and path.name != "report.html")
    return {str(path.relative_to(run.dir.release)): file_digest(path) for path in files}
