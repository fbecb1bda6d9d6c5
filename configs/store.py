"""The run directory: what lies where, and how a stage commits.

    RUN/
      vault/      mode 0700: private records, drafts, keys, unreleased adapters. Never leaves.
      release/    signed lessons, reports, and the adapter once its gate has passed. May leave.
      stages/     one manifest per finished stage: counts, settings and sha256 digests, no texts
      custody.jsonl  what each stage left and what that came from, signed (see privacy/custody.py)
      run.json, lock

A stage writes its files first and its manifest last, each by write-to-temp, fsync, rename. So a manifest
that exists and whose digests still hold means the stage is complete; anything else means it is not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tutelage.configs.errors import HeldError, UserError


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare white space, the form that is digested and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes | str | Iterable[str], *, mode: int | None = None) -> Path:
    """Write a file so that readers see either the old content or the whole new one, also after a crash.

    `data` may be given in parts, which are written as they come.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for part in (data,) if isinstance(data, bytes | str) else data:
                stream.write(part.encode() if isinstance(part, str) else part)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if disk_is_full(error):
            raise UserError("the disk is full", file=path, remedy="free some space, then `tutelage resume`") from None
        raise
    return path


def disk_is_full(error: BaseException) -> bool:
    """Whether that is what the error says."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order. Folders may come and go meanwhile: another stage may be at work."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))


_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)
"""The name that `write_atomic` gives to a file until it is whole."""


class RunDir:
    """One run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vault = root / "vault"
        self.release = root / "release"
        self.stages = root / "stages"

    def create(self) -> None:
        """Make the folders; all but release/ is closed to everybody but its owner."""
        for folder in (self.root, self.release, self.stages):
            folder.mkdir(parents=True, exist_ok=True)
        self.vault.mkdir(exist_ok=True)
        for closed in (self.vault, self.stages):  # manifests hold internal figures, and digests of private files
            closed.chmod(0o700)

    def silo(self, silo: str) -> Path:
        """A silo's private folder."""
        return self.vault / "silos" / silo

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. The lock dies with the process, SIGKILL included.

        Raises:
            UserError: another process holds it, or it cannot be a folder.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            opened = (self.root / "lock").open("a")
        except OSError as error:
            raise UserError(
                f"cannot be used as a run folder ({error.strerror})",
                file=self.root,
                remedy="name another folder with --run-dir",
            ) from None
        with opened as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HeldError(
                    "another process holds this run folder",
                    file=self.root,
                    remedy="wait for it, stop it, or name another folder with --run-dir",
                ) from None
            yield

    def manifest_path(self, stage: str) -> Path:
        return self.stages / f"{stage}.json"

    def finished(self, stage: str, key: str) -> dict[str, Any] | None:
        """The stage's manifest if it is complete, was made from the same inputs, and its files are unchanged."""
        path = self.manifest_path(stage)
        try:
            manifest: dict[str, Any] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        if manifest.get("key") != key:
            return None
        for name, expected in manifest["files"].items():
            target = self.root / name
            if not target.is_file() or file_digest(target) != expected:
                return None
        return manifest

    def sweep(self) -> None:
        """Remove what `write_atomic` left in this folder when its process was killed."""
        for path in files_below(self.root):
            named = _TEMPORARY.fullmatch(path.name)
            if named and not _runs(int(named[1])):
                path.unlink(missing_ok=True)

    def commit(
        self,
        stage: str,
        key: str,
        files: list[Path],
        facts: Mapping[str, Any],
        seconds: float,
        witness: Callable[[dict[str, Any], str], None] | None = None,
    ) -> dict[str, Any]:
        """Declare a stage complete: digest its files, then write its manifest.

        Args:
            stage: The stage's name, e.g. `round-1/teach-silo-0`.
            key: Digest of everything that went in.
            files: What it wrote, anywhere below the run folder; folders are taken file by file.
            facts: Counts and figures (never texts) that later stages and reports need.
            seconds: How long it took; shown in the report, and no part of any digest.
            witness: Called with the manifest and the sha256 (hex) of its file, before that is written.

        Raises:
            FileNotFoundError: the stage did not write what it says.
        """
        every = sorted(
            file for path in files for file in (filter(Path.is_file, path.rglob("*")) if path.is_dir() else [path])
        )
        manifest = {
            "stage": stage,
            "key": key,
            "files": {str(path.relative_to(self.root)): file_digest(path) for path in every},
            "facts": dict(facts),
            "seconds": round(seconds, 3),
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        if witness is not None:
            witness(manifest, hashlib.sha256(text.encode()).hexdigest())
        write_atomic(self.manifest_path(stage), text)
        return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """What stages after it take as their input: all of a manifest that would repeat, so not its seconds."""
    return digest([manifest["key"], manifest["files"], manifest["facts"]])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's, or no number of a process at all: leave it alone
    return True


def free_disk_gib(path: Path) -> float:
    """Free space in GiB where `path` will lie."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 2**30
