"""A model hub: `hf://ORG/NAME`. One commit and one tag for each version."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError
from tutelage.students.targets.versions import numbers_in

SCHEME = "hf://"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def send(version: Path, target: str, name: str, about: dict[str, Any]) -> str:
    """As `targets.send`. One commit, so that nobody sees half of it, and a tag for it.

    A new repository is private: opening it is a decision of its own.
    """
    repo = _repo(target)
    with _hub(repo) as api:
        api.create_repo(repo, private=True, exist_ok=True)
        tags = [tag.name for tag in api.list_repo_refs(repo).tags]
        number = f"v{max(numbers_in(tags), default=0) + 1}"
        said = f"{number}: " + ", ".join(f"{key} {value}" for key, value in about.items())
        commit = api.upload_folder(repo_id=repo, folder_path=version, commit_message=said, delete_patterns="*")
        api.create_tag(repo, tag=number, revision=commit.oid)
    return f"{SCHEME}{repo}@{number}"


def make_latest(target: str, name: str, version: str) -> str:
    """As `targets.make_latest`."""
    repo = _repo(target)
    with _hub(repo) as api, tempfile.TemporaryDirectory() as folder:
        if version not in [tag.name for tag in api.list_repo_refs(repo).tags]:
            raise UserError(f"there is no {version} of {repo}", key="--latest", remedy="name a tag of it")
        api.snapshot_download(repo, revision=version, local_dir=folder)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"{version} again", delete_patterns="*",
            ignore_patterns=".cache/**",
        )  # fmt: skip
    return f"{SCHEME}{repo}@{version}"


def _repo(target: str) -> str:
    repo = target.removeprefix(SCHEME).rstrip("/")
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
        raise UserError(f"the hub answered {status}", file=f"{SCHEME}{repo}", key="--to", remedy=remedy) from None
    except UserError:
        raise
    except Exception as error:  # of the network, by whichever library the client speaks
        raise UserError(
            f"the hub can't be reached ({type(error).__name__})", file=f"{SCHEME}{repo}", key="--to",
            remedy="check the network, and HF_ENDPOINT",
        ) from None  # fmt: skip
