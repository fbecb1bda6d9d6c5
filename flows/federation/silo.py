"""A silo at a place of its own: its folder, its keys, and what it agrees to.

SILO/
  silo.yaml     what the silo agrees to (configs/schema/silo.py)
  vault/        its keys (mode 0600)
  ledgers/      what it has spent, all runs together
  runs/RUN_ID/  its part of each run: a run folder like any other, with its own vault and custody log
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.configs.adapters import check_adapter
from tutelage.configs.errors import UserError
from tutelage.configs.load import load_silo
from tutelage.configs.models import check_model
from tutelage.configs.schema import FederationConfig, FileData, OpenAIConfig, Recipe, SiloConfig, TeachConfig
from tutelage.configs.store import write_atomic
from tutelage.flows.federation.exchange import Exchange
from tutelage.privacy.keys import SealingKey, SiloKey

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9_-]*-[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True)
class Silo:
    """A silo's folder, what it agrees to, and its keys."""

    home: Path
    config: SiloConfig
    key: SiloKey
    sealing: SealingKey

    @classmethod
    def open(cls, home: Path) -> Silo:
        """Open a silo's folder.

        Raises:
            UserError: it is none, or its settings are faulty.
        """
        home = home.resolve()
        config = load_silo(home)
        return cls(home, config, SiloKey.load(home / KEY), SealingKey.load(home / _SEALING_KEY))

    def exchange(self, run_id: str) -> Exchange:
        """A run's part of the silo's exchange."""
        return Exchange(self.config.exchange, run_id)

    def said(self, run_id: str, name: str) -> dict[str, Any] | None:
        """What the coordinator said to all silos of a run in a file of that name; None: nothing yet.

        Raises:
            PrivacyError: it is not signed with the coordinator's key.
        """
        return self.exchange(run_id).said(name, self.config.coordinator)

    def folder(self, run_id: str) -> Path:
        """The silo's own folder of a run.

        Raises:
            UserError: that is no run's id.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise UserError("this is no run's id", key="run_id", remedy="as `tutelage list` shows it there")
        return self.home / "runs" / run_id


def create(home: Path, name: str, exchange: str, coordinator: str, records: Path, epsilon: float | None) -> Silo:
    """Make a silo's folder: its settings and its keys.

    Raises:
        UserError: there is one already, or a setting is faulty.
    """
    settings = home / "silo.yaml"
    if settings.exists():
        raise UserError("there is a silo already", file=settings, remedy="edit it, or name another folder")
    write_atomic(settings, _settings(name, exchange, coordinator, records, epsilon), mode=0o600)
    try:
        load_silo(home)
    except UserError:
        settings.unlink()
        raise
    for made, path in ((SiloKey, home / KEY), (SealingKey, home / _SEALING_KEY)):
        if not path.exists():
            made.create(path)
    (home / "vault").chmod(0o700)
    return Silo.open(home)


# ---- what a silo agrees to ---------------------------------------------------------------------------------------


def agreed(silo: Silo, recipe: Recipe) -> Recipe:
    """A recipe as this silo runs it: on its own records, behind its own screen, out of its own budget.

    Raises:
        UserError: it asks for more than the silo agrees to.
    """
    config, federation = silo.config, federation_of(recipe)
    here = {"signing": silo.key.public_hex, "sealing": silo.sealing.public_hex}
    if config.name not in federation.silos or federation.silos[config.name].model_dump() != here:
        raise _more(silo, "names other public keys for this silo", "name", "`tutelage silo keys` prints those it has")
    privacy = recipe.privacy
    if config.epsilon is not None:
        asked = recipe.formal
        if asked is None:
            raise _more(silo, "promises no ε, and this silo asks for one", "epsilon", "null allows screened lessons")
        if asked.epsilon > config.epsilon:
            found = f"asks for an ε of {asked.epsilon:g}, more than this silo's {config.epsilon:g}"
            raise _more(silo, found, "epsilon", "raise it for good, or ask for less")
        if config.unit == "owner" and asked.unit != "owner":
            raise _more(silo, "protects single records, and this silo asks for owners", "unit", "ask for owners")
        if asked.label_counts == "public" and not config.public_label_counts:
            found = "treats this silo's label counts as public, which they are not"
            raise _more(silo, found, "public_label_counts", "privacy.label_counts: noised")
    elif recipe.formal is None and not recipe.defended:
        raise _more(silo, "compares lessons with nothing", "epsilon", "screen.compare: true")
    if recipe.formal:
        if recipe.formal.unit == "owner" and _owner_column(config) is None:
            raise _more(silo, "protects owners, and records.columns.owner names no column here", "records", "name it")
        own = {"ledgers": silo.home / "ledgers"}
        privacy = recipe.formal.model_copy(update=own if config.epsilon is None else {**own, "budget": config.epsilon})
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"records": config.records}),
            "privacy": privacy,
            "screen": config.screen,
            "teach": _teach(silo, recipe),
        }
    )


def _teach(silo: Silo, recipe: Recipe) -> TeachConfig:
    """The recipe's teachers, or the silo's own in place of them all."""
    config, teach = silo.config, recipe.teach
    if config.model or config.engine:
        one = teach.only(config.name) if teach.routed is None else teach.teachers[-1]
        own = {"model": config.model or one.model, "engine": config.engine or one.engine, "adapter": one.adapter}
        teach = teach.model_copy(update={**own, "teachers": (), "route": None})
    if config.adapter and teach.adapter:
        teach = teach.model_copy(update={"adapter": config.adapter})
    for one in teach.staff:
        check_model(one.model)
        if one.adapter:
            check_adapter(one.adapter, one.model)
            if recipe.formal and not config.adapter_is_public:
                found = "promises an ε and gives teachers an adapter, and no ε covers what that was tuned on"
                raise _more(silo, found, "adapter_is_public", "true here, if it was tuned on no secret of this silo's")
        if config.engine is None and isinstance(one.engine, OpenAIConfig):
            found = "has teachers ask a server, which would see this silo's records"
            raise _more(silo, found, "engine", "name it here")
        try:
            recipe.check_teacher(one)
        except ValueError as error:
            raise UserError(str(error), file=silo.home / "silo.yaml", key="engine", remedy="name another") from None
    return teach


# ---- helpers ----------------------------------------------------------------------------------------------------


def federation_of(recipe: Recipe) -> FederationConfig:
    if recipe.federation is None:
        raise UserError("this recipe has no silos elsewhere", key="federation", remedy="ask whoever runs it")
    return recipe.federation


def _owner_column(config: SiloConfig) -> str | None:
    return config.records.columns.owner if isinstance(config.records, FileData) else None


def _more(silo: Silo, found: str, key: str, remedy: str) -> UserError:
    return UserError(f"the recipe {found}", file=f"silo.yaml of {silo.config.name}", key=key, remedy=remedy)


def _settings(name: str, exchange: str, coordinator: str, records: Path, epsilon: float | None) -> str:
    shown = json.dumps
    return f"""# What this silo agrees to. No recipe can ask for more: what it asks for is checked against this, here.
name: {shown(name)}

# Where recipes lie and lessons go: a folder, or object storage (s3://bucket/folder).
exchange: {shown(exchange)}

# Who may ask: the public key that `tutelage silo coordinator` prints there.
coordinator: {shown(coordinator)}

# Private, and never leaves. `columns:` says which is which where they are not called text and label.
records: {{source: files, path: {shown(str(records))}}}

# The most that all runs together may give away about one unit. null: screened lessons may leave, with no such bound.
epsilon: {"null" if epsilon is None else f"{epsilon:g}"}

# record, or owner: then records.columns.owner names the column that says whose a record is.
unit: record
"""


KEY, _SEALING_KEY = "vault/key.pem", "vault/sealing-key.pem"
