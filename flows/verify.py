"""`tutelage audit verify`: a run's folder against its custody log, offline. Reads only; no Prefect, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError
from tutelage.configs.store import file_digest
from tutelage.privacy.custody import RECIPE
from tutelage.privacy.custody_check import Checked, Finding, check
from tutelage.privacy.statements import Statement

_SHOWN = 6


def verify_run(root: Path, *, expect_head: str | None = None, released: bool = False) -> Checked:
    """Check a run's folder, and what it put into the registry; see `privacy.custody_check.check`.

    Raises:
        UserError: this is no run, nothing of it is finished, a process is working on it, or it can't be read.
    """
    checked = check(root, expect_head=expect_head, released=released)
    if not released:
        _check_registry(root, checked)
    return checked


def as_json(checked: Checked) -> dict[str, Any]:
    """For programs: `{"head": ..., "lines": ..., "files": ..., "findings": [...], "notes": [...], "stages": [...]}`."""
    return {
        "head": checked.chain.head,
        "lines": len(checked.chain.lines),
        "files": checked.files,
        "bytes": checked.bytes,
        "findings": [asdict(finding) for finding in checked.findings],
        "notes": checked.notes,
        "stages": [_stage(statement) for statement in checked.stages().values()],
    }


def _stage(statement: Statement) -> dict[str, Any]:
    return {
        "stage": statement.name,
        "line": statement.number,
        "from": [name for name, _ in statement.materials],
        "files": dict(statement.subjects),
    }


def print_checked(checked: Checked) -> None:
    """What was changed, what came of it, and the head to write down."""
    for finding in checked.findings:
        where = "".join(letter if letter.isprintable() else "?" for letter in finding.where)
        print(f"{finding.kind.upper():<10} {where}: {finding.problem}")
        if finding.stage:
            print(f"{'':<10} left by {finding.stage}")
        if finding.dependents:
            more = len(finding.dependents) - _SHOWN
            named = ", ".join(finding.dependents[-_SHOWN:])
            print(f"{'':<10} {len(finding.dependents)} came from it: {'..., ' if more > 0 else ''}{named}")
    for note in checked.notes:
        print(f"note: {note}")
    for line in _rounds(checked.digests):
        print(line)
    said = f"{checked.files} files ({checked.bytes / 1e6:.1f} MB) are as {len(checked.chain.lines)} statements say"
    print(f"{said}; {len(checked.findings) or 'no'} finding{'s' * (len(checked.findings) != 1)}")
    print(f"head {checked.chain.head}")
    if not checked.findings:
        print("Write the head down where nobody who can write here can: --expect-head then shows a log made anew.")


def _rounds(digests: Mapping[str, str]) -> Iterator[str]:
    """Round by round the sha256 of what came of the silos' records, shortened."""
    kept = {
        "lessons": "release/{}/lessons.jsonl",
        "adapter": "vault/{}/adapter/adapter_model.safetensors",
        "report": "release/{}/report.json",
    }
    silos = sum(name.startswith("vault/silos/") and name.endswith("/records.jsonl") for name in digests)
    for at in sorted({name.split("/")[1] for name in digests if name.startswith("release/round-")}, key=_number):
        shown = [
            f"{what} {digests[place.format(at)][:12]}" for what, place in kept.items() if place.format(at) in digests
        ]
        drafts = sum(name.startswith("vault/silos/") and name.endswith(f"{at}/drafts.jsonl") for name in digests)
        begun = [f"{silos} silos", f"{drafts} files of drafts"] if silos else []  # they are not passed on
        yield f"{at}: {' -> '.join([*begun, *shown])}"


def _number(at: str) -> int:
    return int(at.partition("-")[2]) if at.partition("-")[2].isdecimal() else 0


def _check_registry(root: Path, checked: Checked) -> None:
    """Students that this run's stages published, and others of this run that the registry's index names.

    Each must be the adapter that its round's `learn` left, with the files that the index says; what a stage published,
    with the report that was released.
    """
    published: dict[str, tuple[str, str | None]] = {}
    for stage in checked.stages():
        at, _, body = stage.rpartition("/")
        # manifests and the recipe are read only where they are as they were signed
        if body == "publish_student" and {RECIPE, f"stages/{stage}.json"} <= checked.digests.keys():
            version = _facts(root, stage)["published"]
            published |= {version: (stage, checked.digests.get(f"release/{at}/report.json"))} if version else {}
    registry = root.resolve().parent / "registry"
    if not registry.is_dir():
        for stage, _ in published.values():
            checked.notes.append(f"not checked: the student that {stage} published, since the registry is not here")
    elif RECIPE in checked.digests:
        written = json.loads((root / RECIPE).read_text())
        name, listed = written["recipe"]["name"], _index(registry / written["recipe"]["name"])
        others = {
            version: (f"round-{row.get('round')}/judge_round", None)
            for version, row in listed.items()
            if version not in published and row.get("run_id") == written["run_id"]
        }
        for version, (stage, report) in {**published, **others}.items():
            learn = f"{stage.rpartition('/')[0]}/learn"
            if f"stages/{learn}.json" in checked.digests:
                adapter = _facts(root, learn)["adapter_digest"]
                files = listed[version].get("files") if version in listed else None
                for file, problem in _version_problems(registry / name / version, files, adapter, report):
                    where = f"registry/{name}/{version}{f'/{file}' if file else ''}"
                    checked.findings.append(Finding("registry", where, problem, stage))


def _index(shelf: Path) -> dict[str, dict[str, Any]]:
    """Version -> what the registry's index says about it; nothing where there is none that can be read."""
    try:
        rows = json.loads((shelf / "index.json").read_text())["versions"]
        return {str(row["version"]): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _version_problems(folder: Path, files: Any, adapter: str, report: str | None) -> Iterator[tuple[str, str]]:
    """File (empty: the whole version), and what is wrong with it."""
    from tutelage.students.publish import adapter_digest

    try:
        if adapter_digest(folder) != adapter:
            yield "", "is not the adapter that was judged"
    except UserError:
        yield "", "holds no adapter any more"
        return
    if not isinstance(files, dict):
        yield "", "is not in the registry's index"
        return
    present = {path.name: file_digest(path) for path in folder.iterdir() if path.is_file()}
    for file in sorted(files.keys() | present.keys()):
        if files.get(file) != present.get(file):
            yield file, "is not as the registry's index says"
        elif file == "report.json" and report not in (None, present[file]):
            yield file, "is not the report that was released"


def _facts(root: Path, stage: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((root / f"stages/{stage}.json").read_text())["facts"]
    return facts
