"""A small run whose stages write a few lines each, by the real stage machinery: what custody is tried on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_run import recipe_for

from tutelage.configs.jsonl import write_jsonl
from tutelage.configs.load import parse_recipe
from tutelage.configs.store import canonical_json, manifest_digest, write_atomic
from tutelage.flows.stage import Manifest, Run, _commit, create_run, open_run, stage_name
from tutelage.privacy import release
from tutelage.privacy.custody import Custody
from tutelage.privacy.drafts import Draft
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.release import LessonSet

SILOS = ("silo-0", "silo-1")
SECRET = "zq7Secret"
PAGES = ("vault/report.html", "release/report.html")


def prepare(run: Run) -> tuple[list[Path], dict[str, Any]]:
    keys, files = {}, []
    for silo in SILOS:
        path = run.dir.silo(silo) / "key.pem"
        path.unlink(missing_ok=True)
        keys[silo] = SiloKey.create(path).public_hex
        records = write_jsonl(run.dir.silo(silo) / "records.jsonl", [{"text": f"{SECRET} {silo}"}])
        files += [path, records]
    return [*files, write_atomic(run.dir.release / "public_keys.json", canonical_json(keys))], {"silos": len(SILOS)}


def teach(run: Run, round: int, silo: str) -> tuple[list[Path], dict[str, Any]]:
    folder = run.dir.silo(silo) / f"round-{round}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "written.jsonl").open("a") as journal:
        journal.write(f'"{SECRET}"\n')
    return [write_jsonl(folder / "drafts.jsonl", [{"draft": f"{SECRET} {silo}"}])], {"prompts": 7}


def screen(run: Run, round: int, silo: str) -> tuple[list[Path], dict[str, Any]]:
    draft = Draft("0", "example", f"lesson of {silo}", "spam", "1")
    lesson = release._Candidate(draft, (draft.prompt,), draft.prompt, draft.completion)
    key = SiloKey.load(run.dir.silo(silo) / "key.pem")
    lessons = LessonSet([release._sign(lesson, silo, round, run.id, key)], run.id, release._SEAL)
    return [lessons.save(run.dir.release / f"round-{round}" / "silos" / f"{silo}.jsonl")], {}


def learn(run: Run, round: int) -> tuple[list[Path], dict[str, Any]]:
    out = run.dir.vault / f"round-{round}" / "adapter"
    write_atomic(out / "adapter_model.safetensors", bytes(range(256)))
    write_atomic(out / "adapter_config.json", "{}")
    return [out], {"curve": [1.5, 0.5]}


def publish_student(run: Run, round: int) -> tuple[list[Path], dict[str, Any]]:
    return [], {"published": None}


def do(root: Path, body: Callable[..., Any], *where: int | str, after: list[Manifest]) -> Manifest:
    """A stage as the flow calls it, without Prefect."""
    came_from = [[manifest["stage"], manifest_digest(manifest)] for manifest in after]
    return _commit(body, 1, open_run(root), stage_name(body.__name__, *where), list(where), came_from)


def go_on(root: Path) -> None:
    """Run it through, from wherever it is."""
    run = open_run(root)
    prepared = do(root, prepare, after=[])
    taught = [do(root, teach, 1, silo, after=[prepared]) for silo in SILOS]
    screened = [do(root, screen, 1, silo, after=[prepared, one]) for silo, one in zip(SILOS, taught, strict=True)]
    student = do(root, learn, 1, after=screened)
    published = do(root, publish_student, 1, after=[student])
    pages = {name: f"<p>{name} of {published['stage']}</p>" for name in PAGES}
    Custody(root).add_pages(pages, after=["round-1/publish_student"])
    for name, text in pages.items():
        write_atomic(run.dir.root / name, text)


def begun(root: Path) -> Run:
    return create_run(parse_recipe(recipe_for(Path("/mails.jsonl"), Path("/model"))), root)


def finished(root: Path) -> Path:
    """The run from its beginning to its end."""
    begun(root)
    go_on(root)
    (root / "lock").touch()
    return root
