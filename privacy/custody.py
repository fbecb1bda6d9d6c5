"""A run's chain of custody: which files each stage left, and what they came from, in one signed log.

    RUN/custody.jsonl            a statement a line (privacy/statements.py)
    RUN/vault/custody-key.pem    the run's key: signs them (mode 0600)
    RUN/release/custody-key.txt  its public half, 64 hex digits

A stage writes its files, then its statement, then its manifest (configs/store.py). So wherever a process is killed, a
manifest has its statement; one that has none, or another, was not written by a stage, and counts for nothing. A
statement without its manifest, or a line that was cut short, is of a stage that is done again: its next statement takes
the former's place, and the former, if it was whole, stays in the log.

Stages may be at work side by side. Each states what it returned; what else is new in the vault, journals and the like,
is stated by whichever stage ends while no other is at work.

Every line holds the sha256 of the line before it, so the last one's, the log's head, stands for the whole log.

The log holds names, counts and digests, and no text; it may be passed on with release/. What lies elsewhere is named by
keyed digests (`Tags`): a silo's fingerprint here is that of its records file.

What it proves: that nothing changed since it was signed, to whoever trusts the key or wrote a head down back then. The
key lies in the vault, beside the data: who can write to the vault can make all of it anew, and only a head that was
kept elsewhere tells. It doesn't prove that a stage did what the code says, and not who held the key.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from tutelage.configs.errors import UserError
from tutelage.configs.store import disk_is_full, file_digest, files_below, manifest_digest, write_atomic
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.statements import (
    BEGUN,
    FOUND,
    REPORT,
    RUN,
    SHOWN,
    STAGE,
    Chain,
    Tags,
    descriptor,
    digest_set,
    read_chain,
    write_line,
)

LOG = "custody.jsonl"
KEY = "vault/custody-key.pem"
PUBLIC_KEY = "release/custody-key.txt"
RECIPE = "run.json"
ERRORS = "vault/errors/"
"""Tracebacks: written when a stage fails, so none answers for them."""

Seen = Mapping[str, tuple[int, int]]
"""File, named from the run's folder -> size (bytes) and time of change (ns)."""


@dataclass(frozen=True)
class Begun:
    """How a stage found the run when it began."""

    vault: Seen
    """Every file of the vault."""
    lines: int
    """Whole lines of the log."""
    at_work: int
    """A descriptor that holds the vault's lock, shared by all stages at work."""


_LIBRARIES = (
    "tutelage", "cryptography", "dp-accounting", "mimesis", "numpy", "peft", "phonenumbers", "prefect", "scikit-learn",
    "spacy", "tldextract", "torch", "transformers",
)  # fmt: skip
_REMEDY = "`tutelage audit verify RUN` says what was changed; restore it, or take a new run folder"


class Custody:
    """A run's log, to be written. Nothing is added to a log that is damaged, or whose key is gone.

    Args:
        root: The run's folder. The log is begun with its first stage.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / LOG

    def knows(self, stage: str) -> bool:
        """Whether a stage's manifest is that of its last statement. True where a run has no log, or none yet.

        Raises:
            UserError: the log is damaged.
        """
        if not self.path.exists():
            return True
        with self._held() as (_, chain, key):
            statement, name = chain.latest().get(stage), _manifest(stage)
            found = Tags.of(key).file(name, file_digest(self.root / name))
            return statement is not None and statement.subjects.get(name) == found

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Begun]:
        """What a stage must know of the moment it begins. Hold this until it is stated."""
        at_work = os.open(self.root / "vault", os.O_RDONLY)
        try:
            fcntl.flock(at_work, fcntl.LOCK_SH)
            lines = self.path.read_bytes().count(b"\n") if self.path.exists() else 0
            yield Begun(self._vault_files(), lines, at_work)
        finally:
            os.close(at_work)

    def _vault_files(self) -> Seen:
        found = {}
        for path in files_below(self.root / "vault"):
            name = path.relative_to(self.root).as_posix()
            named = not any("\ud800" <= letter <= "\udfff" for letter in name)  # else no JSON can name it
            if name != KEY and named and not name.startswith(ERRORS):
                with contextlib.suppress(FileNotFoundError):  # another stage's, for a moment
                    if path.is_file():
                        found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
        return found

    def add_stage(
        self,
        manifest: Mapping[str, Any],
        sha256: str,
        *,
        version: int,
        run_id: str,
        recipe_digest: str,
        materials: Sequence[tuple[str, str]],
        begun: Begun,
    ) -> None:
        """State what a stage left, and be sure that it is on the disk. Call before its manifest is written.

        Args:
            manifest: The stage's.
            sha256: Of the manifest's file, hex.
            version: The stage's.
            run_id: The run's.
            recipe_digest: sha256 (hex) of the recipe.
            materials: Stages it came from, each with its `manifest_digest`.
            begun: From `at_work`.

        Raises:
            UserError: the log is damaged, or the disk is full.
        """
        if not self.path.exists():
            self._begin(run_id, recipe_digest)
        stage = manifest["stage"]
        with self._held() as (stream, chain, key):
            if chain.statements[0].run_id != run_id:
                raise self._damaged(1, "is of another run")
            tags, before = Tags.of(key), begun.vault
            alone = _alone(begun.at_work)
            after = self._vault_files()
            files = {**manifest["files"], _manifest(stage): sha256}
            others = {name: by.number for name, by in chain.answers().items() if by.name != stage}

            def left_by_it(name: str) -> bool:
                # A new file may be that of a stage still at work. Nothing is lost: whichever ends alone answers for it.
                if name not in others:
                    return alone
                return after[name] != before.get(name) and others[name] <= begun.lines

            # Journals and the like: its own, which are no results of it, or what a killed attempt left.
            beside = [name for name in after if name not in files and left_by_it(name)]
            files |= {name: file_digest(self.root / name) for name in beside}
            predicate = {
                "version": version,
                "recipe": {"sha256": recipe_digest},
                "materials": [descriptor(name, tags.stage(name, made)) for name, made in materials],
                "made": digest_set(tags.stage(stage, manifest_digest(manifest))),
                "beside": beside,
                "gone": sorted(name for name in before if name in others and name not in after),
                "made_with": versions(),
            }
            subjects = {name: tags.file(name, one) for name, one in files.items()}
            self._append(stream, write_line(chain, key, STAGE, stage, run_id, subjects, predicate))

    def add_pages(self, pages: Mapping[str, str], after: Iterable[str]) -> None:
        """State what the pages made of a run's reports hold; nothing if that is known, or if there is no log.

        Args:
            pages: File, named from the run's folder -> its text. Call before they are written.
            after: The stages they came from.

        Raises:
            UserError: the log is damaged, or the disk is full.
        """
        if not self.path.exists():
            return
        with self._held() as (stream, chain, key):
            tags, latest = Tags.of(key), chain.latest()
            subjects = {
                name: tags.file(name, hashlib.sha256(text.encode()).hexdigest()) for name, text in pages.items()
            }
            predicate = {"materials": [descriptor(name, latest[name].made) for name in after if name in latest]}
            said = latest.get(REPORT)
            materials = [descriptor(*material) for material in said.materials] if said else None
            if said is None or said.subjects != subjects or materials != predicate["materials"]:
                run_id = chain.statements[0].run_id
                self._append(stream, write_line(chain, key, SHOWN, REPORT, run_id, subjects, predicate))

    def _begin(self, run_id: str, recipe_digest: str) -> None:
        """Make the key and the first line. Stages that are complete already are taken as they are found."""
        path = self.root / KEY
        key = SiloKey.load(path) if path.exists() else SiloKey.create(path)  # one, if a process was killed right here
        write_atomic(self.root / PUBLIC_KEY, key.public_hex + "\n")
        tags = Tags.of(key)
        files = {name: file_digest(self.root / name) for name in (RECIPE, KEY, PUBLIC_KEY)}
        lines = [(BEGUN, RUN, files, {"recipe": {"sha256": recipe_digest}, "public_key": key.public_hex})]
        for found in sorted((self.root / "stages").rglob("*.json")):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # one that is torn counts for nothing
                manifest = json.loads(found.read_text())
                stage, made = manifest["stage"], manifest_digest(manifest)
                files = {**manifest["files"], _manifest(stage): file_digest(found)}
                lines.append((FOUND, stage, files, {"made": digest_set(tags.stage(stage, made))}))
        data = b""
        for kind, name, files, predicate in lines:
            subjects = {file: tags.file(file, sha256) for file, sha256 in files.items()}
            data += write_line(read_chain(data, key.public_hex), key, kind, name, run_id, subjects, predicate)
        write_atomic(self.path, data)

    @contextlib.contextmanager
    def _held(self) -> Iterator[tuple[BinaryIO, Chain, SiloKey]]:
        """Hold the log for this process, checked and without a line that was cut short."""
        if not (self.root / KEY).exists():
            raise UserError("the key of this run's custody log is gone", file=self.root / KEY, remedy=_REMEDY)
        key = SiloKey.load(self.root / KEY)
        with self.path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            data = stream.read()
            whole = data.rfind(b"\n") + 1
            chain = read_chain(data[:whole], key.public_hex)
            if not whole:
                raise self._damaged(1, "is gone")
            for row, problem in chain.problems:
                raise self._damaged(row, problem)
            if len(data) > whole:
                stream.truncate(whole)  # no manifest was written after it: its stage is done again
            stream.seek(whole)
            yield stream, chain, key

    def _append(self, stream: BinaryIO, line: bytes) -> None:
        try:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError as error:
            if disk_is_full(error):
                raise UserError("the disk is full", file=self.path, remedy="free some space, then resume") from None
            raise

    def _damaged(self, row: int, problem: str) -> UserError:
        return UserError(f"this line of the custody log {problem}", file=self.path, row=row, remedy=_REMEDY)


def _alone(at_work: int) -> bool:
    """Whether no other stage is at work. The vault is this process's alone from then on, until it closes it."""
    try:
        fcntl.flock(at_work, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _manifest(stage: str) -> str:
    return f"stages/{stage}.json"


@functools.cache
def versions() -> dict[str, str]:
    """Of Python, and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
