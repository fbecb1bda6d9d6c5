"""What a run released so far, read from release/ and from nowhere below it that a link leads to."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.records import Lesson, RoundReport
from tutelage.configs.schema.structure import Structure
from tutelage.privacy import review
from tutelage.privacy.custody import PUBLIC_KEY
from tutelage.privacy.release import LessonSet

_ROUND = re.compile(r"round-([1-9][0-9]*)")


@dataclass(frozen=True)
class Released:
    """The texts of all rounds, every signature verified, and what was measured of them."""

    run_id: str
    name: str
    lessons: tuple[Lesson, ...]
    labels: frozenset[str]
    """Of a classification; empty for generation."""
    structure: Structure | None
    """What every answer must be, as far as this folder tells; None: any text."""
    learned: frozenset[str]
    """Ids of those the last round's student learned from."""
    reports: tuple[RoundReport, ...]
    """Of the rounds that were judged, without internal figures."""
    page: Path | None
    """The report to pass on, where it has been made."""


def read_released(root: Path) -> Released:
    """Read what a run released.

    Args:
        root: The run's folder, or one that holds its release/ only, as it is passed on.

    Raises:
        UserError: nothing is released there.
        PrivacyError: a lesson's signature doesn't hold, or a file of release/ lies elsewhere.
    """
    release = root / "release"
    if not release.is_dir():
        raise UserError("there is no release/ in this folder", file=root, remedy="`tutelage list` shows the runs")
    matches = [(_ROUND.fullmatch(path.name), path) for path in release.iterdir()]
    rounds = [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]
    texts = [file for folder in rounds for file in sorted((folder / "silos").glob("*.jsonl"))]
    if not texts:
        raise UserError("no round has released a lesson yet", file=root, remedy=f"tutelage resume {root}")
    reports = tuple(
        RoundReport.model_validate_json(_inside(release, folder / "report.json").read_text())
        for folder in rounds
        if (folder / "report.json").exists()
    )
    run_id, name, labels = _described(root, reports)
    keys = json.loads(_inside(release, release / "public_keys.json").read_text())
    run_key = _inside(release, root / PUBLIC_KEY)
    if run_key.exists():  # it signs what reviewers edited
        keys[review.SILO] = run_key.read_text().strip()
    every = LessonSet.combine([LessonSet.load(_inside(release, file), run_id, keys) for file in texts])
    chosen = [folder / "lessons.jsonl" for folder in rounds if (folder / "lessons.jsonl").exists()]
    last = LessonSet.load(_inside(release, chosen[-1]), run_id, keys) if chosen else ()
    page = release / "report.html"
    return Released(
        run_id=run_id,
        name=name,
        lessons=every.lessons,
        labels=labels,
        structure=_structure(root),
        learned=frozenset(lesson.id for lesson in last),
        reports=reports,
        page=_inside(release, page) if page.exists() else None,
    )


def _described(root: Path, reports: tuple[RoundReport, ...]) -> tuple[str, str, frozenset[str]]:
    """A run's id, its recipe's name and its labels, from run.json, or from a report where there is only release/."""
    if reports:
        return reports[-1].run_id, reports[-1].recipe_name, frozenset(reports[-1].lessons_per_class)
    try:
        written = json.loads((root / "run.json").read_text())
        recipe = written["recipe"]
        return written["run_id"], recipe["name"], frozenset(recipe["task"].get("labels", ()))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "which run this is stands in run.json, or in the report of a finished round: neither is here",
            file=root,
            remedy="name the run's folder",
        ) from None


def _structure(root: Path) -> Structure | None:
    """From run.json. Where there is only release/, what a round learns from is checked all the same."""
    try:
        asked = json.loads((root / "run.json").read_text())["recipe"]["task"].get("completion")
        return None if asked is None else Structure.model_validate(asked)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _inside(release: Path, file: Path) -> Path:
    if not file.resolve().is_relative_to(release.resolve()):
        raise PrivacyError(f"{file} is a link out of release/: it is not shown")
    return file
