"""Where a published version goes from the registry: a folder here or on object storage, or a model hub.

A folder (anything that fsspec opens: `/models`, `s3://bucket/models`) holds

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
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.errors import UserError, without_credentials
from tutelage.configs.store import file_digest, files_below

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

HUB = "hf://"
_VERSION = re.compile(r"v([1-9][0-9]*)")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def send(version: Path, target: str, name: str, about: dict[str, Any]) -> str:
    """Put a version where others get it, and make it the latest there. The same files twice are one version.

    Args:
        version: Its folder: adapter, tokenizer, card, report.
        target: A folder as fsspec writes it, or `hf://ORG/NAME`.
        name: What the student is called in a folder; on a hub the repository has a name.
        about: What the index says of it beside its files; in words on a hub.

    Returns:
        Where it is.

    Raises:
        UserError: the target can't be reached or written to, or is none.
    """
    if target.startswith(HUB):
        return _send_to_hub(version, _repo(target), about)
    with _opened(target) as (fs, root):
        shelf = f"{root}/{name}"
        with _held(fs, shelf):
            index = _index(fs, shelf, name)
            files = _digests(version)
            number = next((row["version"] for row in index["versions"] if row["files"] == files), None)
            if number is None:
                number = f"v{max((_number(row['version']) for row in index['versions']), default=0) + 1}"
                _put(fs, version, f"{shelf}/{number}")
                index["versions"].append({"version": number, **about, "files": files})
            _make_latest(fs, shelf, index, number)
        return fs.unstrip_protocol(f"{shelf}/{number}").removeprefix("file://")


def make_latest(target: str, name: str, version: str) -> str:
    """Make an earlier version the latest again.

    Args:
        target: As for `send`.
        name: As for `send`.
        version: E.g. `v3`.

    Returns:
        Where it is.

    Raises:
        UserError: there is no such version, or as for `send`.
    """
    if target.startswith(HUB):
        return _hub_again(_repo(target), version)
    with _opened(target) as (fs, root):
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


# ---- folders ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(target: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    import fsspec

    try:
        fs, root = fsspec.url_to_fs(target)
        yield fs, root.rstrip("/")
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"nothing here opens such a target ({error.name or 'a package is missing'})", key="--to",
            remedy="install the file system's package, e.g. s3fs for s3://",
        ) from None  # fmt: skip
    except Exception as error:  # each file system has errors of its own, and their messages may hold credentials
        raise UserError(
            f"the target could not be used ({type(error).__name__})", file=without_credentials(target), key="--to",
            remedy="check its address, its permissions and the credentials in the environment",
        ) from None  # fmt: skip


def _local(fs: AbstractFileSystem) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


@contextlib.contextmanager
def _held(fs: AbstractFileSystem, shelf: str) -> Iterator[None]:
    """Hold a shelf for this process where that is possible: elsewhere let one publish at a time."""
    if not _local(fs):
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
        [_number(row["version"]) for row in index["versions"]]
    except (ValueError, KeyError, TypeError):
        raise UserError("this index is damaged", file=path, remedy="restore it, or name another folder") from None
    return index


def _put(fs: AbstractFileSystem, version: Path, place: str) -> None:
    """All files of a version. What a killed publisher left there is in no index, and goes."""
    staged = f"{place}.part" if _local(fs) else place  # a rename on a disk, where also folders may be listed
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
    if _local(fs):
        link = Path(shelf) / "latest"
        new = link.with_name(f".latest.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(version)
        new.replace(link)


def _digests(version: Path) -> dict[str, str]:
    return {file.relative_to(version).as_posix(): file_digest(file) for file in files_below(version)}


def _number(version: str) -> int:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError
    return int(match[1])


# ---- a hub ------------------------------------------------------------------------------------------------------


def _repo(target: str) -> str:
    repo = target.removeprefix(HUB).rstrip("/")
    if not _REPO.fullmatch(repo):
        raise UserError("this names no repository of a hub", key="--to", remedy="hf://ORGANISATION/NAME")
    return repo


@contextlib.contextmanager
def _hub(repo: str) -> Iterator[Any]:
    """The hub's client. `HF_ENDPOINT` and `HF_TOKEN` say which hub and who."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        yield HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # as it is now, and not when something first imported it
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set", key="--to", remedy="unset it to publish to a hub") from None
    except HfHubHTTPError as error:  # its message may quote headers
        status = error.response.status_code
        remedy = "set HF_TOKEN to a token that may write there" if status in (401, 403) else "try again later"
        raise UserError(f"the hub answered {status}", file=f"{HUB}{repo}", key="--to", remedy=remedy) from None
    except UserError:
        raise
    except Exception as error:  # of the network, by whichever library the client speaks
        raise UserError(
            f"the hub can't be reached ({type(error).__name__})", file=f"{HUB}{repo}", key="--to",
            remedy="check the network, and HF_ENDPOINT",
        ) from None  # fmt: skip


def _send_to_hub(version: Path, repo: str, about: dict[str, Any]) -> str:
    """One commit, so that nobody sees half of it, and a tag for it. A new repository is private: opening it is a
    decision of its own."""
    with _hub(repo) as api:
        api.create_repo(repo, private=True, exist_ok=True)
        tags = [tag.name for tag in api.list_repo_refs(repo).tags]
        number = f"v{max((int(match[1]) for match in map(_VERSION.fullmatch, tags) if match), default=0) + 1}"
        said = f"{number}: " + ", ".join(f"{key} {value}" for key, value in about.items())
        commit = api.upload_folder(repo_id=repo, folder_path=version, commit_message=said, delete_patterns="*")
        api.create_tag(repo, tag=number, revision=commit.oid)
    return f"{HUB}{repo}@{number}"


def _hub_again(repo: str, version: str) -> str:
    import tempfile

    with _hub(repo) as api, tempfile.TemporaryDirectory() as folder:
        if version not in [tag.name for tag in api.list_repo_refs(repo).tags]:
            raise UserError(f"there is no {version} of {repo}", key="--latest", remedy="name a tag of it")
        api.snapshot_download(repo, revision=version, local_dir=folder)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"{version} again", delete_patterns="*",
            ignore_patterns=".cache/**",
        )  # fmt: skip
    return f"{HUB}{repo}@{version}"
