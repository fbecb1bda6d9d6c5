"""Drafts: what a teacher wrote, before the screen. They lie in the vault and go nowhere but to `release`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.jsonl import read_jsonl, write_jsonl
from tutelage.configs.records import Mechanism
from tutelage.privacy.vault import inside_vault


@dataclass(frozen=True, slots=True, repr=False)
class Draft:
    """What a teacher wrote, not yet screened: as private as the records behind it."""

    id: str
    kind: Literal["example", "instruction"]
    prompt: str
    completion: str
    prompt_version: str
    mechanism: Mechanism = "screened"
    """How it was written: `screened` is with no formal protection, so `release` must compare it with the records."""

    def __repr__(self) -> str:
        return f"<Draft {len(self.prompt) + len(self.completion)} chars, redacted>"

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("a draft must not be pickled: pass its file's path instead")

    def __getstate__(self) -> NoReturn:
        raise PrivacyError("a draft must not be pickled: pass its file's path instead")


def write_drafts(path: Path, drafts: Sequence[Draft]) -> Path:
    """Write drafts as JSONL.

    Raises:
        PrivacyError: the path is not inside a `vault` folder.
    """
    inside_vault(path)
    return write_jsonl(path, [asdict(draft) for draft in drafts])


def read_drafts(path: Path) -> list[Draft]:
    """Read back what `write_drafts` wrote.

    Raises:
        PrivacyError: the path is not inside a `vault` folder.
        UserError: a line is not a draft.
    """
    inside_vault(path)
    drafts = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            drafts.append(Draft(**row))
        except TypeError:
            raise UserError(
                "this is not a draft", file=path, row=number, remedy="remove the file, then resume"
            ) from None
    return drafts
