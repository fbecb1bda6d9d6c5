"""`audit verify`: every change is found, and said where it came from; on the same small run as test_custody.py."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_log import SECRET, begun, do, finished, publish_student
from small_run import call, files_below
from tampering import findings, flips, found, log_lines, named

from tutelage.configs.records import Certificate
from tutelage.configs.store import canonical_json, file_digest, write_atomic
from tutelage.flows.stage import Run, open_run
from tutelage.flows.verify import verify_run
from tutelage.privacy import certificate, statements
from tutelage.privacy.custody import LOG, PUBLIC_KEY
from tutelage.privacy.custody_check import Finding
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.ledger import Ledger, Terms


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return finished(tmp_path / "runs" / "one")


# ---- what was changed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stage", "came"),
    [
        ("release/round-1/silos/silo-0.jsonl", "round-1/screen-silo-0", ["learn", "publish_student"]),
        ("vault/silos/silo-1/records.jsonl", "prepare",
         ["teach-silo-0", "teach-silo-1", "screen-silo-0", "screen-silo-1", "learn", "publish_student"]),
        ("vault/silos/silo-1/round-1/written.jsonl", "round-1/teach-silo-1",
         ["screen-silo-1", "learn", "publish_student"]),
        ("vault/round-1/adapter/adapter_model.safetensors", "round-1/learn", ["publish_student"]),
        ("stages/round-1/learn.json", "round-1/learn", ["publish_student"]),
        ("release/report.html", "report", None),
    ],
)  # fmt: skip
def test_it_says_which_stage_left_a_file_and_what_came_of_it(
    name: str, stage: str, came: list[str] | None, root: Path
) -> None:
    (root / name).write_bytes((root / name).read_bytes() + b" ")
    dependents = () if came is None else (*(f"round-1/{one}" for one in came), "report")
    assert findings(root) == [Finding("changed", name, "is not as it was signed", stage, dependents)]
    (root / name).unlink()
    assert findings(root) == [Finding("missing", name, "is gone", stage, dependents)]
    (root / name).mkdir()
    assert found(root) == {("missing", name)}
    (root / name).rmdir()
    (root / name).symlink_to(root / "run.json")
    assert found(root) == {("changed", name)}


def test_the_recipe_is_what_everything_came_from(root: Path) -> None:
    recipe = root / "run.json"
    recipe.write_text(recipe.read_text().replace('"rounds": 1', '"rounds": 2'))
    [one] = findings(root)
    assert (one.kind, one.where, len(one.dependents)) == ("changed", "run.json", 8)
    recipe.write_text("{")
    assert found(root) == {("changed", "run.json")}


@pytest.mark.parametrize(
    "name",
    ["note.txt", "vault/note.txt", "release/round-1/more.jsonl", "stages/round-2/learn.json", "release/.x.1.tmp",
     "vault/silos/silo-0/link"],
)  # fmt: skip
def test_whatever_was_added_is_named(name: str, root: Path) -> None:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    if path.name == "link":
        path.symlink_to(root / "vault")
    else:
        path.write_text("x")
    assert found(root) == {("added", name)}


def test_a_name_cannot_write_on_the_terminal(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "x\n\x1b[2Jno findings").touch()
    Path(os.fsdecode(os.fsencode(root / "vault") + b"/\xff")).touch()
    do(root, publish_student, 2, after=[])
    assert len(findings(root)) == 2
    assert call(monkeypatch, "audit", "verify", str(root)) == 4
    assert "ADDED      x??[2Jno findings: no statement names it\n" in capsys.readouterr().out


def test_the_lock_must_be_empty_and_tracebacks_are_noted(root: Path) -> None:
    write_atomic(root / "vault" / "errors" / "prepare.log", SECRET)
    checked = verify_run(root)
    assert checked.findings == []
    assert checked.notes == ["not covered: vault/errors/prepare.log, what happened when a stage failed"]
    (root / "lock").write_text("x")
    assert found(root) == {("added", "lock")}


def test_every_bit_of_a_line_counts(root: Path) -> None:
    """The last line has none after it that would hold its digest: its signature and its one spelling must do."""
    data, public_key = (root / LOG).read_bytes(), (root / PUBLIC_KEY).read_text().strip()
    first, last = log_lines(root)[0], log_lines(root)[-1]
    for at in [*range(len(first)), *range(len(data) - len(last), len(data))]:
        bit = 1 << (at % 8) if at < len(first) else 1 << random.Random(at).randrange(8)
        wrong = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
        assert statements.read_chain(wrong, public_key).problems, at
    assert not statements.read_chain(data, public_key).problems
    signature = json.loads(last)
    signature["signatures"][0]["comment"] = "not signed"
    assert statements.read_chain(data[: -len(last)] + canonical_json(signature).encode() + b"\n", public_key).problems
    # base64 ends in bits that mean nothing
    spelt = last.replace(b'=="', b'="') if b'=="' in last else last
    assert spelt != last
    assert statements.read_chain(data[: -len(last)] + spelt, public_key).problems


def test_a_flipped_bit_is_found_wherever_it_is(root: Path) -> None:
    draw = random.Random(2)
    files = [path for path in files_below(root) if path.stat().st_size]
    for path in files:
        size = path.stat().st_size
        places = [(path, at) for at in {0, size - 1, *(draw.randrange(size) for _ in range(8))}]
        for name, checked in flips(root, places, draw):
            assert named(name, checked), name
    assert findings(root) == []


# ---- what silos signed ------------------------------------------------------------------------------------------


def certify(run: Run, round: int, silo: str) -> tuple[list[Path], dict[str, Any]]:
    ledgers = run.dir.root.parent / "ledgers"
    ledger = Ledger.begin(ledgers / f"of-{silo}.jsonl", Terms(silo, "record", 100, 1e-3, 4.0))
    ledger.internal(run=run.id)
    lessons = run.dir.release / f"round-{round}" / "silos" / f"{silo}.jsonl"
    made = Certificate(
        run_id=run.id, silo=silo, round=round, mechanism="private_prediction", unit="record", units=100,
        adjacency="replace-by-null", delta=1e-3, epsilon=0, epsilon_asked=4, epsilon_ledger=0, spends=(),
        not_charged=(), ledger=f"of-{silo}", ledger_head=ledger.head, lessons_digest=file_digest(lessons),
        version="0", signature="",
    )  # fmt: skip
    signed = certificate.sign(made, SiloKey.load(run.dir.silo(silo) / "key.pem"))
    path = run.dir.release / f"round-{round}" / "certificates" / f"{silo}.json"
    ledger.internal(run="a later one")
    return [write_atomic(path, signed.model_dump_json())], {}


def test_what_a_silo_did_not_sign_is_found_though_the_log_answers_for_it(root: Path) -> None:
    """Whoever has the run's key, and not the silo's."""
    path = root / "release/round-1/silos/silo-0.jsonl"

    def screen(run: Run, round: int, silo: str) -> tuple[list[Path], dict[str, Any]]:
        return [write_atomic(path, path.read_text().replace("lesson of", "lessons of"))], {}

    do(root, screen, 1, "silo-0", after=[])
    [one] = [one for one in findings(root) if one.kind != "stale"]
    assert (one.kind, one.where, one.problem) == (
        "signature", "release/round-1/silos/silo-0.jsonl", "row 1: the signature does not hold",
    )  # fmt: skip


def test_certificates_and_their_ledgers(root: Path) -> None:
    do(root, certify, 1, "silo-0", after=[])
    assert verify_run(root).findings == []
    assert verify_run(root).notes == []
    path = "release/round-1/certificates/silo-0.json"
    ledger = root.parent / "ledgers" / "of-silo-0.jsonl"
    good = ledger.read_bytes()
    for wrong in (good.replace(b"4.0", b"8.0"), b"", b"".join(good.splitlines(keepends=True)[:1]), b"{"):
        ledger.write_bytes(wrong)
        assert found(root) == {("ledger", path)}
    ledger.write_bytes(good)
    ledger.parent.rename(ledger.parent.with_name("elsewhere"))
    assert verify_run(root).notes == ["not checked: the silos' ledgers, which are not here"]

    def other(run: Run) -> tuple[list[Path], dict[str, Any]]:
        claim = json.loads((root / path).read_text())
        return [write_atomic(root / path, canonical_json(claim | {"epsilon": 1.0}))], {}

    do(root, other, after=[])
    assert found(root) == {("signature", path)}


# ---- passed on, and the command ---------------------------------------------------------------------------------


def test_log_and_release_can_be_passed_on(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "passed-on"
    shutil.copytree(root / "release", copy / "release")
    shutil.copy(root / LOG, copy / LOG)
    for place in (copy, root):
        checked = verify_run(place, released=True, expect_head=verify_run(root).chain.head)
        assert checked.findings == []
        assert set(checked.digests) == {
            f"release/{path.relative_to(root / 'release')}" for path in files_below(root / "release")
        }
    middles = [(path, path.stat().st_size // 2) for path in files_below(copy)]
    for name, checked in flips(copy, middles, random.Random(3), released=True):
        assert named(name, checked)
    (copy / "release" / "new").touch()
    assert found(copy, released=True) == {("added", "release/new")}
    assert {kind for kind, _ in found(copy)} == {"added", "missing"}


def test_the_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "audit", "verify", str(root)) == 0
    said = capsys.readouterr().out
    head = verify_run(root).chain.head
    assert "no findings" in said
    assert f"head {head}" in said
    assert "round-1: 2 silos -> 2 files of drafts -> adapter " in said
    assert call(monkeypatch, "audit", "verify", str(root), "--expect-head", head, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["findings"], shown["head"], shown["lines"]) == ([], head, 9)
    assert call(monkeypatch, "audit", "verify", str(root), "--expect-head", "0" * 64) == 4
    capsys.readouterr()
    (root / "release/round-1/silos/silo-0.jsonl").write_text(SECRET)
    assert call(monkeypatch, "audit", "verify", str(root)) == 4
    said = capsys.readouterr().out
    assert "CHANGED    release/round-1/silos/silo-0.jsonl: is not as it was signed" in said
    assert "left by round-1/screen-silo-0" in said
    assert "3 came from it: round-1/learn, round-1/publish_student, report" in said
    assert SECRET not in said
    for arguments, message in (
        ([str(tmp_path)], "this is not a run folder"),
        ([str(root), "--expect-head", "abc"], "this is no head of a log"),
        ([], "Missing argument"),
    ):
        assert call(monkeypatch, "audit", "verify", *arguments) == 2
        assert message in capsys.readouterr().err
    begun(tmp_path / "new")
    assert call(monkeypatch, "audit", "verify", str(tmp_path / "new")) == 2
    assert "no stage of this run is finished yet" in capsys.readouterr().err
    with open_run(root).dir.locked():
        assert call(monkeypatch, "audit", "verify", str(root)) == 2
    assert "another process holds this run folder" in capsys.readouterr().err


def test_it_changes_nothing_and_needs_no_right_to(root: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files_below(root.parent)}
    (root / "lock").unlink()
    verify_run(root)
    assert not (root / "lock").exists()
    del before[root / "lock"]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files_below(root.parent)} == before


def test_fifty_megabytes_in_two_seconds_without_anything_heavy(root: Path) -> None:
    def learn(run: Run, round: int) -> tuple[list[Path], dict[str, Any]]:
        return [write_atomic(run.dir.vault / f"round-{round}" / "adapter" / "big", os.urandom(50_000_000))], {}

    do(root, learn, 2, after=[])
    heavy = {"torch", "transformers", "prefect", "peft", "sklearn", "matplotlib", "scipy", "spacy", "dp_accounting"}
    code = f"""
import sys
sys.argv = ["tutelage", "audit", "verify", {str(root)!r}]
from tutelage.flows.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("heavy:", sorted({heavy!r} & set(sys.modules)))
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "heavy: []" in done.stdout
    assert "(50.0 MB)" in done.stdout
    # of the processor: a loaded machine is no failure
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 2
