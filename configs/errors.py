"""The errors a person can mend.

`UserError` is shown without a traceback and ends the program with exit code 2. It names the file, the row
and the key, and says what to do next. It never carries a value: a value may be private text.
"""

from __future__ import annotations

from pathlib import Path


def without_credentials(address: str) -> str:
    """An address without user, password and query, which may hold secrets."""
    scheme, found, rest = address.partition("?")[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{found}{host.rpartition('@')[2] if found else host}{slash}{path}"


class UserError(Exception):
    """Something in the input, the recipe or the machine that the user can mend.

    Args:
        problem: What is wrong, in one sentence, without any text from the data.
        file: The file at fault.
        row: Its 1-based line or record number.
        key: The column, or the dotted path of the recipe key.
        remedy: What to do next.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        row: int | None = None,
        key: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.file, self.row, self.key, self.remedy = problem, file, row, key, remedy
        where = ", ".join(
            part
            for part in (
                str(file) if file is not None else "",
                f"row {row}" if row is not None else "",
                f"key {key!r}" if key is not None else "",
            )
            if part
        )
        super().__init__(f"{where}: {problem}" if where else problem)

    def __reduce__(self) -> tuple[object, ...]:
        return (
            _rebuild,
            (self.problem, str(self.file) if self.file else None, self.row, self.key, self.remedy),
        )


class HeldError(UserError):
    """Another process works on this run folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_held, (str(self.file), self.remedy))


def _rebuild_held(file: str, remedy: str | None) -> HeldError:
    return HeldError("another process holds this run folder", file=file, remedy=remedy)


def _rebuild(problem: str, file: str | None, row: int | None, key: str | None, remedy: str | None) -> UserError:
    return UserError(problem, file=file, row=row, key=key, remedy=remedy)


class PrivacyError(Exception):
    """A guarantee would be broken: a forged lesson, a missing signature, private text about to leave.

    Never caught to carry on: the run stops. Like `UserError` it carries no text from the data.
    """

    exit_code = 4
