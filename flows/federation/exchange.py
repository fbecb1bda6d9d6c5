"""The folder between a run and its silos, on a disk or on object storage: where recipes lie and lessons go.

    EXCHANGE/RUN_ID/
      run.json                  the recipe, signed by the coordinator, as the next is
      to/SILO.sealed            what only that silo can open: texts to be planted among its records
      round-1/begin.json        the round's topics, the run's public key: before that no silo begins it
      from/SILO/STAGE.json      what a silo hands over, signed (privacy/handed.py)
      from/SILO/release/...     the files that it names
      release/round-1/...       what the run gives everybody: what its student learns from, and in the end the report

Nothing in it is private, but for what is sealed. Whoever can write to it can keep a run from going on, and change the
last: all that is acted upon is checked against keys that were known beforehand, and every recipe by each silo against
what it agreed to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.schema import Recipe
from tutelage.configs.storage import is_local, opened
from tutelage.configs.store import file_digest, write_atomic
from tutelage.privacy import handed
from tutelage.privacy.handed import Handed
from tutelage.privacy.keys import SiloKey

_KEY = "exchange"
SECONDS_BETWEEN_LOOKS = 2.0
Found = TypeVar("Found")


class Exchange:
    """One run's part of an exchange.

    Args:
        address: Of the exchange, as a recipe or a silo names it.
        run_id: The run's.
    """

    def __init__(self, address: str, run_id: str) -> None:
        self.address, self.run_id = address, run_id

    def put(self, name: str, data: bytes | Path) -> None:
        """Write a file, so that nobody reads half of it. The same once more changes nothing.

        Raises:
            UserError: the exchange can't be reached or written.
        """
        content = data.read_bytes() if isinstance(data, Path) else data
        with opened(self.address, _KEY) as (fs, root):
            path = f"{root}/{self.run_id}/{name}"
            if is_local(fs):
                write_atomic(Path(path), content, mode=0o644)
            else:
                fs.pipe_file(path, content)

    def get(self, name: str) -> bytes | None:
        """A file's content; None: it isn't there (yet).

        Raises:
            UserError: the exchange can't be reached or read.
        """
        with opened(self.address, _KEY) as (fs, root):
            fs.invalidate_cache()
            try:
                content: bytes = fs.cat_file(f"{root}/{self.run_id}/{name}")
            except FileNotFoundError:
                return None
            return content

    def has(self, *names: str) -> bool:
        """Whether all of these files are there."""
        with opened(self.address, _KEY) as (fs, root):
            fs.invalidate_cache()
            return all(fs.exists(f"{root}/{self.run_id}/{name}") for name in names)

    def open_to_all(self, folder: str) -> None:
        """Let every user of this machine put files into a folder, and nobody remove another's: as in /tmp.

        On object storage its owner's rules say who may.
        """
        with opened(self.address, _KEY) as (fs, root):
            if is_local(fs):
                path = Path(f"{root}/{self.run_id}/{folder}")
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(0o1777)

    # ---- what the run says ---------------------------------------------------------------------------------------

    def say(self, name: str, key: SiloKey, facts: Mapping[str, Any]) -> None:
        """Say something to all silos, signed with the coordinator's key, as a file of that name."""
        statement = Handed(run_id=self.run_id, silo=_COORDINATOR, stage=name, facts=dict(facts), files={}, signature="")
        self.put(name, handed.sign(statement, key))

    def said(self, name: str, public_key: str) -> dict[str, Any] | None:
        """What the coordinator said in a file of that name; None: nothing yet.

        Raises:
            PrivacyError: it isn't signed with the coordinator's key.
        """
        data = self.get(name)
        if data is None:
            return None
        keys = {_COORDINATOR: public_key}
        return handed.verify(data, run_id=self.run_id, silo=_COORDINATOR, stage=name, public_keys=keys).facts

    # ---- what silos hand over ------------------------------------------------------------------------------------

    def hand(self, silo: str, key: SiloKey, root: Path, manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Hand over a finished stage of a silo: the files that it left below release/, then the signed statement.

        Args:
            silo: The silo's name.
            key: The silo's.
            root: The silo's folder of this run.
            manifest: The stage's.
            facts: Of the manifest's, those that may leave.
        """
        files = {name: sha256 for name, sha256 in manifest["files"].items() if name.startswith("release/round-")}
        for name in files:
            self.put(_from(silo, name), root / name)
        statement = Handed(
            run_id=self.run_id, silo=silo, stage=manifest["stage"], facts=dict(facts), files=files, signature=""
        )
        self.put(_from(silo, f"{manifest['stage']}.json"), handed.sign(statement, key))

    def handed(self, silo: str, stage: str) -> bool:
        """Whether a silo has handed over a stage; it may not be true, see `take`."""
        return self.has(_from(silo, f"{stage}.json"))

    def take(self, silo: str, stage: str, public_keys: Mapping[str, str]) -> Handed | None:
        """What a silo handed over as a stage, its signature verified; None: nothing yet.

        Raises:
            PrivacyError: it isn't signed by that silo's key.
        """
        data = self.get(_from(silo, f"{stage}.json"))
        if data is None:
            return None
        return handed.verify(data, run_id=self.run_id, silo=silo, stage=stage, public_keys=public_keys)

    def fetch(self, statement: Handed, name: str, path: Path) -> Path:
        """Write a file that a statement names to `path`, if its digest is the one stated.

        Raises:
            PrivacyError: the statement doesn't name it, or it was changed.
        """
        data = self.get(_from(statement.silo, name)) if name in statement.files else None
        if data is not None:
            write_atomic(path, data)
            if file_digest(path) == statement.files[name]:
                return path
            path.unlink()
        raise PrivacyError(f"{name}, of silo {statement.silo}, is missing or not what it signed")

    # ---- refusals ------------------------------------------------------------------------------------------------

    def refuse(self, silo: str, key: SiloKey, problem: str, remedy: str | None) -> None:
        """Say why a silo doesn't go on. The words are a `UserError`'s, which never quote data."""
        facts = {"problem": problem, "remedy": remedy}
        statement = Handed(run_id=self.run_id, silo=silo, stage=_REFUSED, facts=facts, files={}, signature="")
        self.put(_from(silo, f"{_REFUSED}.json"), handed.sign(statement, key))

    def refused(self, silo: str, public_keys: Mapping[str, str]) -> UserError | None:
        """Why a silo doesn't go on; None: it has not said so."""
        said = self.take(silo, _REFUSED, public_keys)
        if said is None or not said.facts:
            return None
        return UserError(f"silo {silo} stopped: {said.facts.get('problem')}", remedy=said.facts.get("remedy"))

    def go_on(self, silo: str, key: SiloKey) -> None:
        """Take a refusal back."""
        if self.handed(silo, _REFUSED):
            statement = Handed(run_id=self.run_id, silo=silo, stage=_REFUSED, facts={}, files={}, signature="")
            self.put(_from(silo, f"{_REFUSED}.json"), handed.sign(statement, key))


_COORDINATOR = "_run"
"""Who says what a run says. No silo can have this name."""
_REFUSED = "refused"


def patiently(look: Callable[[], Found | None], patience_s: float) -> Found | None:
    """What a look at an exchange finds, as soon as it finds something; None: it has not, for so long.

    Raises:
        UserError: from the look; or the exchange couldn't be reached, also at the last look. Until then that is borne.
    """
    until = time.monotonic() + patience_s
    while True:
        late, found = time.monotonic() > until, None
        try:
            found = look()
        except UserError as error:
            if late or not unreached(error):
                raise
        if late or found is not None:
            return found
        time.sleep(SECONDS_BETWEEN_LOOKS)


def unreached(error: UserError) -> bool:
    """Whether it says that an exchange could not be used, which may pass."""
    return error.key == _KEY


def runs_at(address: str) -> list[str]:
    """The ids of all runs in an exchange.

    Raises:
        UserError: it can't be reached.
    """
    with opened(address, _KEY) as (fs, root):
        fs.invalidate_cache()
        if not fs.exists(root):
            return []
        names = [str(path).rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)]
    return sorted(name for name in names if Exchange(address, name).has(RUN))


RUN = "run.json"


def begin(round: int) -> str:
    """A round's beginning."""
    return f"round-{round}/begin.json"


def taught(recipe: Recipe, round: int) -> list[str]:
    """What the round's student learns from: lessons, and pairs of them where the recipe asks for it."""
    names = ["lessons", "chosen", "rejected"] if recipe.student.dpo else ["lessons"]
    return [f"release/round-{round}/{name}.jsonl" for name in names]


def sealed(silo: str) -> str:
    """What only one silo can open."""
    return f"to/{silo}.sealed"


def about_planted(run_id: str, silo: str) -> str:
    """What the seal of `sealed` is bound to."""
    return f"planted texts of {run_id} for {silo}"


def handed_as(silo: str, stage: str) -> str:
    """Where a silo's statement about a stage lies."""
    return _from(silo, f"{stage}.json")


def place_of(silo: str) -> str:
    """The folder that a silo writes to."""
    return f"from/{silo}"


def _from(silo: str, name: str) -> str:
    return f"{place_of(silo)}/{name}"
