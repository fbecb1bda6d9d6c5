"""A folder, on a disk or on object storage; anything that fsspec opens: `/models`, `s3://bucket/models`.

    NAME/v1/          a version, once and for good
    NAME/index.json   every version with its files' digests, and which is the latest: written last
    NAME/latest       on a disk: a link to the latest version's folder

A version that isn't in the index yet is not there: who goes by the index, or by `latest`, never sees half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.errors import UserError, without_credentials
from tutelage.configs.storage import is_local, opened
from tutelage.configs.store import file_digest, files_below
from tutelage.students.targets.versions import number_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def send(version: Path, target: str, name: str, about: dict[str, Any]) -> str:
    """As `targets.send`. The same files twice are one version."""
    with opened(target, "--to") as (fs, root):
        shelf = f"{root}/{name}"
        with _held(fs, shelf):
            index = _index(fs, shelf, name)
            files = _digests(version)
            number = next((row["version"] for row in index["versions"] if row["files"] == files), None)
            if number is None:
                number = f"v{max((number_of(row['version']) for row in index['versions']), default=0) + 1}"
                _put(fs, version, f"{shelf}/{number}")
                index["versions"].append({"version": number, **about, "files": files})
            _make_latest(fs, shelf, index, number)
        return fs.unstrip_protocol(f"{shelf}/{number}").removeprefix("file://")


def make_latest(target: str, name: str, version: str) -> str:
    """As `targets.make_latest`."""
    with opened(target, "--to") as (fs, root):
        shelf = f"{root}/{name}"
        with _held(fs, shelf):
            index = _index(fs, shelf, name)
            known = [row["version"] for row in index["versions"]]
            if version not in known:
                raise UserError(
                    f"there is no {version} of {name}",
                    file=without_credentials(target),
                    remedy=f"one of: {', '.join(known) or 'none'}",
                )
            _make_latest(fs, shelf, index, version)
        return fs.unstrip_protocol(f"{shelf}/{version}").removeprefix("file://")


@contextlib.contextmanager
def _held(fs: AbstractFileSystem, shelf: str) -> Iterator[None]:
    """Hold a shelf for this process where that is possible: elsewhere let one publish at a time."""
    if not is_local(fs):
        yield
        return
    Path(shelf).mkdir(parents=True, exist_ok=True)
    with (Path(shelf) / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _index(fs: AbstractFileSystem, shelf: str, name: str) -> dict[str, Any]:
    fs.invalidate_cache()
    path = f"{shelf}/index.json"
    if not fs.exists(path):
        return {"name": name, "latest": None, "versions": []}
    try:
        index: dict[str, Any] = json.loads(fs.cat_file(path))
        [number_of(row["version"]) for row in index["versions"]]
    except (ValueError, KeyError, TypeError):
        raise UserError("this index is damaged", file=path, remedy="restore it, or name another folder") from None
    return index


def _put(fs: AbstractFileSystem, version: Path, place: str) -> None:
    """All files of a version. What a killed publisher left there is in no index, and goes."""
    staged = f"{place}.part" if is_local(fs) else place  # a rename on a disk, where also folders may be listed
    for leftover in {staged, place}:
        if fs.exists(leftover):
            fs.rm(leftover, recursive=True)
    for file in files_below(version):
        remote = f"{staged}/{file.relative_to(version).as_posix()}"
        fs.makedirs(remote.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(file), remote)
    if staged != place:
        Path(staged).rename(place)


def _make_latest(fs: AbstractFileSystem, shelf: str, index: dict[str, Any], version: str) -> None:
    index["latest"] = version
    with fs.transaction, fs.open(f"{shelf}/index.json", "wb") as stream:
        stream.write((json.dumps(index, indent=1) + "\n").encode())
    if is_local(fs):
        link = Path(shelf) / "latest"
        new = link.with_name(f".latest.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(version)
        new.replace(link)


def _digests(version: Path) -> dict[str, str]:
    return {file.relative_to(version).as_posix(): file_digest(file) for file in files_below(version)}
