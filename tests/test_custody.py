"""The chain of custody: every file answered for, whatever is killed; every change found, and said where it came from.

All of it runs on a small run whose stages write a few lines each, by the real stage machinery; what the real stages
write is checked in test_flow.py, on a real run.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from small_run import call, files_below, recipe_for
from tampering import findings, flips, found, log_lines, named, payload

from tutelage.configs.errors import UserError
from tutelage.configs.load import parse_recipe
from tutelage.configs.records import Certificate
from tutelage.configs.store import canonical_json, digest, file_digest, manifest_digest, write_atomic, write_jsonl
from tutelage.flows.stage import Manifest, Run, _commit, create_run, open_run, stage_name
from tutelage.flows.verify import as_json, verify_run
from tutelage.privacy import certificate, release, statements
from tutelage.privacy.custody import KEY, LOG, PUBLIC_KEY, Custody
from tutelage.privacy.custody_check import Finding
from tutelage.privacy.drafts import Draft
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.ledger import Ledger, Terms
from tutelage.privacy.release import LessonSet

SILOS = ("silo-0", "silo-1")
SECRET = "zq7Secret"
PAGES = ("vault/report.html", "release/report.html")


# ---- a small run ------------------------------------------------------------------------------------------------


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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A finished small run."""
    root = tmp_path / "runs" / "one"
    begun(root)
    go_on(root)
    (root / "lock").touch()
    return root


def begun(root: Path) -> Run:
    return create_run(parse_recipe(recipe_for(Path("/mails.jsonl"), Path("/model"))), root)


# ---- what is written --------------------------------------------------------------------------------------------


def test_a_finished_run_is_as_it_was_signed(root: Path) -> None:
    checked = verify_run(root)
    assert checked.findings == []
    assert checked.notes == []
    named = {str(path.relative_to(root)) for path in files_below(root)}
    assert set(checked.digests) == named - {LOG, "lock"}, "every file is answered for"
    assert checked.chain.head == hashlib.sha256(log_lines(root)[-1]).hexdigest()
    before = (root / LOG).read_bytes()
    go_on(root)
    assert (root / LOG).read_bytes() == before, "a finished run says nothing new"


def test_lines_are_signed_envelopes_of_in_toto_statements(root: Path) -> None:
    """Checked by the specifications' own words, without the library that wrote them."""
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex((root / PUBLIC_KEY).read_text()))
    previous = "0" * 64
    for number, line in enumerate(log_lines(root), 1):
        row = json.loads(line)
        assert set(row) == {"payload", "payloadType", "signatures"}
        body = base64.b64decode(row["payload"])
        kind = b"application/vnd.in-toto+json"
        signed = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(body), body])
        [signature] = row["signatures"]
        public.verify(base64.b64decode(signature["sig"]), signed)
        statement = json.loads(body)
        assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
        assert statement["_type"] == "https://in-toto.io/Statement/v1"
        scheme, _, rest = statement["predicateType"].partition(":")
        assert scheme == "tutelage"
        assert rest.endswith("/v1")
        assert statement["subject"]
        assert all(set(one) == {"name", "digest"} and len(one["digest"]) == 1 for one in statement["subject"])
        assert (statement["predicate"]["line"], statement["predicate"]["previous"]) == (number, previous)
        previous = hashlib.sha256(line).hexdigest()
    assert payload(log_lines(root)[0])["predicate"]["public_key"] == (root / PUBLIC_KEY).read_text().strip()


def test_every_stage_names_what_it_came_from(root: Path) -> None:
    stages = {row["stage"]: row for row in as_json(verify_run(root))["stages"]}
    assert stages["prepare"]["from"] == []
    assert stages["round-1/teach-silo-0"]["from"] == ["prepare"]
    assert stages["round-1/screen-silo-1"]["from"] == ["prepare", "round-1/teach-silo-1"]
    assert stages["round-1/learn"]["from"] == ["round-1/screen-silo-0", "round-1/screen-silo-1"]
    assert "vault/silos/silo-0/records.jsonl" in stages["prepare"]["files"], "the silo's fingerprint"
    assert "vault/silos/silo-0/round-1/written.jsonl" in stages["round-1/teach-silo-0"]["files"], "beside its results"
    [learnt] = [payload(line) for line in log_lines(root) if payload(line)["predicate"]["name"] == "round-1/learn"]
    assert {"tutelage", "torch", "python"} <= set(learnt["predicate"]["made_with"])
    assert learnt["predicate"]["recipe"]["sha256"] == digest(open_run(root).recipe.model_dump(mode="json"))


def test_the_log_lets_nobody_guess_what_is_in_the_vault(root: Path) -> None:
    """Neither text, nor a plain digest of anything that is not released: files, manifests, their keys and facts."""
    data = b"".join(canonical_json(payload(line)).encode() for line in log_lines(root))
    assert SECRET.encode() not in data
    hidden = [path for path in files_below(root) if (root / "release") not in path.parents and path.name != LOG]
    manifests = [json.loads(path.read_text()) for path in files_below(root / "stages")]
    guesses = [file_digest(path) for path in hidden]
    guesses += [value for one in manifests for value in (one["key"], digest(one["facts"]), manifest_digest(one))]
    assert not [guess for guess in guesses if guess.encode() in data]
    released = [path for path in files_below(root / "release")]
    assert all(file_digest(path).encode() in data for path in released)
    # and equal files are not seen to be equal
    tags = [value for line in log_lines(root) for one in payload(line)["subject"] for value in one["digest"].values()]
    assert len(tags) == len(set(tags))
    assert (root / KEY).stat().st_mode & 0o777 == 0o600


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


# ---- the log itself ---------------------------------------------------------------------------------------------


def put(root: Path, lines: list[bytes]) -> None:
    (root / LOG).write_bytes(b"".join(lines))


def test_lines_removed_swapped_repeated_or_put_in(root: Path) -> None:
    lines = log_lines(root)
    for wrong, first in (
        ([*lines[:3], *lines[4:]], 4),
        ([*lines[:2], lines[3], lines[2], *lines[4:]], 3),
        ([*lines, lines[-1]], len(lines) + 1),
        (lines[1:], 1),
        ([*lines[:4], b"{}\n", *lines[4:]], 5),
        ([*lines[:4], b"[" * 9999 + b"\n", *lines[4:]], 5),
        ([*lines[:4], b"\n", *lines[4:]], 5),
    ):
        put(root, wrong)
        kinds = [(one.kind, one.where) for one in findings(root)]
        assert kinds[0] == ("log", f"{LOG}, line {first}")
        with pytest.raises(UserError, match=f"row {first}: this line of the custody log") as caught:
            go_on(root)
        assert "tutelage audit verify" in (caught.value.remedy or "")


def test_a_truncated_log_no_longer_answers_for_what_came_after(root: Path) -> None:
    lines = log_lines(root)
    head = hashlib.sha256(lines[-1]).hexdigest()
    for kept in range(1, len(lines)):
        put(root, lines[:kept])
        assert "added" in {kind for kind, _ in found(root)}
        assert ("head", LOG) in found(root, expect_head=head)
    put(root, [])
    assert ("log", LOG) in found(root)
    (root / LOG).unlink()
    assert ("log", LOG) in found(root)
    assert verify_run(root).files == 0


def test_a_log_that_was_deleted_and_begun_again_says_so(root: Path) -> None:
    head = verify_run(root).chain.head
    (root / LOG).unlink()
    (root / "vault/round-1/adapter/adapter_config.json").write_text("{ }")
    go_on(root)
    [one] = findings(root)
    assert (one.kind, one.where) == ("found", LOG)
    assert "prepare" in one.dependents
    assert "round-1/learn" not in one.dependents, "that one was done again"
    assert ("head", LOG) in found(root, expect_head=head)


def test_a_log_of_another_run(root: Path) -> None:
    other = root.parent / "other"
    begun(other)
    go_on(other)
    shutil.copy(other / LOG, root / LOG)
    assert ("log", LOG) in found(root)
    # with that run's keys, too, nothing of this one is what it says
    shutil.copy(other / PUBLIC_KEY, root / PUBLIC_KEY)
    assert ("changed", KEY) in found(root)
    shutil.copy(other / KEY, root / KEY)
    assert {("changed", "run.json"), ("changed", "vault/silos/silo-0/key.pem")} <= found(root)
    with pytest.raises(UserError, match="is of another run"):
        do(root, teach, 2, "silo-0", after=[])


def resigned(root: Path, key: SiloKey) -> bytes:
    """The whole log once more, under another key."""
    data = b""
    for line in log_lines(root):
        row = payload(line)
        chain = statements.read_chain(data, key.public_hex)
        predicate = row["predicate"]
        where = {name: predicate.pop(name) for name in ("line", "previous", "run", "name")}
        if "public_key" in predicate:
            predicate["public_key"] = key.public_hex
        subjects = dict(map(statements._read_descriptor, row["subject"]))
        data += statements.write_line(
            chain, key, row["predicateType"], where["name"], where["run"], subjects, predicate
        )
    return data


def test_a_log_signed_again_with_another_key(root: Path, tmp_path: Path) -> None:
    key = SiloKey.create(tmp_path / "vault" / "other.pem")
    (root / LOG).write_bytes(resigned(root, key))
    assert ("log", LOG) in found(root)
    write_atomic(root / PUBLIC_KEY, key.public_hex + "\n")
    assert ("changed", KEY) in found(root)
    with pytest.raises(UserError):
        go_on(root)


def test_whoever_has_the_vault_can_make_it_all_anew_and_only_a_head_tells(root: Path) -> None:
    head = verify_run(root).chain.head
    assert findings(root, expect_head=head) == []
    for path in (root / LOG, root / KEY, root / "stages"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    go_on(root)
    assert findings(root) == []
    assert found(root, expect_head=head) == {("head", LOG)}


@pytest.mark.parametrize("spoilt", ["gone", "other", "torn"])
def test_a_key_that_is_gone_or_another(spoilt: str, root: Path, tmp_path: Path) -> None:
    path = root / KEY
    if spoilt == "other":
        SiloKey.create(tmp_path / "vault" / "other.pem")
        shutil.copy(tmp_path / "vault" / "other.pem", path)
    elif spoilt == "torn":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    kinds = {kind for kind, _ in found(root)}
    assert kinds == {"missing" if spoilt == "gone" else "changed", "unchecked"}
    with pytest.raises(UserError):
        go_on(root)


# ---- killed, resumed, done again ----------------------------------------------------------------------------------


def dies(work: Callable[[], None], step: int) -> bool:
    """Do something in a process that ends, as by SIGKILL, before its n-th write becomes lasting; whether it did."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [step]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def then(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return real(*arguments, **options)

        return then

    try:
        os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)  # type: ignore[method-assign]
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_killed_before_any_write_and_resumed_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SILOS", ("silo-0",))
    step, kinds = 0, set()
    while True:
        step += 1
        root = tmp_path / f"run-{step}"
        begun(root)
        if not dies(lambda root=root: go_on(root), step):
            break
        log = Custody(root)
        complete = {path: path.read_bytes() for path in files_below(root / "stages") if not path.name.startswith(".")}
        assert all(log.knows(json.loads(text)["stage"]) for text in complete.values()), (
            "no manifest but has a statement"
        )
        if (root / LOG).exists():
            kinds |= {kind for kind, _ in found(root)}
        go_on(root)
        assert findings(root) == [], step
        assert all(path.read_bytes() == text for path, text in complete.items()), "a finished stage was done again"
        assert not [path for path in files_below(root) if path.suffix == ".tmp"]
        shutil.rmtree(root)
    assert step > 35
    # what a killed process leaves is named while it lies there, and nothing else is
    assert kinds == {"added", "missing"}
    assert findings(root) == []


def test_a_line_torn_at_any_byte_is_done_again(root: Path) -> None:
    run = open_run(root)
    lines = log_lines(root)
    at = next(i for i, line in enumerate(lines) if payload(line)["predicate"]["name"] == "round-1/learn")
    for name in ("round-1/learn", "round-1/publish_student"):
        run.dir.manifest_path(name).unlink()
    for page in PAGES:
        (root / page).unlink()
    whole = root.parent / "whole"
    for kept in (0, 1, 2, *range(7, len(lines[at]), 97), len(lines[at]) - 1):
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(root, whole)
        put(whole, [*lines[:at], lines[at][:kept]])
        if kept:
            assert ("log", f"{LOG}, line {at + 1}") in found(whole)
        go_on(whole)
        assert findings(whole) == []
        assert log_lines(whole)[:at] == lines[:at]


def test_a_stage_done_again_takes_its_own_place_and_the_history_stays(root: Path) -> None:
    before = verify_run(root)
    path = root / "vault/silos/silo-0/round-1/drafts.jsonl"
    good = path.read_bytes()
    path.write_bytes(b"{}\n")
    go_on(root)
    assert path.read_bytes() == good
    after = verify_run(root, expect_head=before.chain.head)
    assert after.findings == []
    names = [statement.name for statement in after.chain.statements]
    assert names.count("round-1/teach-silo-0") == 2
    assert names.count("round-1/screen-silo-0") == 1, "it was made of the same"


def test_a_manifest_that_the_log_does_not_know_counts_for_nothing(root: Path) -> None:
    """Lessons and their manifest were changed together: without the log, that would pass for a finished stage."""
    lessons, manifest = root / "release/round-1/silos/silo-0.jsonl", root / "stages/round-1/screen-silo-0.json"
    good = lessons.read_bytes()
    lessons.write_bytes(good.replace(b"spam", b"ham"))
    manifest.write_text(manifest.read_text().replace(hashlib.sha256(good).hexdigest(), file_digest(lessons)))
    assert found(root) == {("changed", str(path.relative_to(root))) for path in (lessons, manifest)}
    go_on(root)
    assert lessons.read_bytes() == good
    assert findings(root) == []


def test_what_was_made_of_something_else_than_what_is_there(root: Path) -> None:
    prepared = json.loads((root / "stages/prepare.json").read_text())

    def teach(run: Run, round: int, silo: str) -> tuple[list[Path], dict[str, Any]]:
        return [write_jsonl(run.dir.silo(silo) / "round-1" / "drafts.jsonl", [{"draft": "another"}])], {}

    (root / "vault/silos/silo-0/round-1/drafts.jsonl").unlink()
    do(root, teach, 1, "silo-0", after=[prepared])
    assert found(root) == {("stale", "round-1/screen-silo-0")}
    go_on(root)
    assert findings(root) == []


def test_a_mended_recipe_begins_anew(tmp_path: Path) -> None:
    root = tmp_path / "run"
    begun(root)

    def prepare(run: Run) -> NoReturn:
        write_atomic(run.dir.vault / "half", "x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        do(root, prepare, after=[])
    # and once more, killed when the log was begun and its manifest was not written
    real = globals()["prepare"]
    assert any(dies(lambda: do(root, real, after=[]), step) and (root / LOG).exists() for step in range(1, 60))
    assert not (root / "stages/prepare.json").exists()
    create_run(parse_recipe(recipe_for(Path("/mails.jsonl"), Path("/model"), seed=9)), root)
    go_on(root)
    assert findings(root) == []


def test_files_that_a_later_stage_removes_or_goes_on_with(root: Path) -> None:
    """A checkpoint that a killed attempt had left is signed with whatever stage comes next, and goes with its own."""
    checkpoint = write_atomic(root / "vault/round-1/adapter.checkpoint", "x")

    def other(run: Run) -> tuple[list[Path], dict[str, Any]]:
        return [], {}

    do(root, other, after=[])
    assert findings(root) == []

    def learn(run: Run, round: int) -> tuple[list[Path], dict[str, Any]]:
        checkpoint.unlink()
        with (run.dir.silo("silo-0") / "round-1" / "written.jsonl").open("a") as journal:
            journal.write("more\n")
        return [], {}

    do(root, learn, 2, after=[])
    assert findings(root) == []
    checkpoint.write_text("x")
    assert found(root) == {("added", "vault/round-1/adapter.checkpoint")}


def test_stages_at_work_side_by_side_answer_for_their_own_files(tmp_path: Path) -> None:
    """A journal is claimed by whichever stage ends alone: not while it may still be written, and it is not lost."""
    root = tmp_path / "runs" / "one"
    begun(root)
    prepared = do(root, prepare, after=[])
    wrote, go = threading.Event(), threading.Event()

    def slow(run: Run, round: int, silo: str) -> tuple[list[Path], dict[str, Any]]:
        written = teach(run, round, silo)
        wrote.set()
        assert go.wait(30)
        with (run.dir.silo(silo) / f"round-{round}" / "written.jsonl").open("a") as journal:
            journal.write('"more"\n')
        return written

    slow.__name__ = "teach"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(do, root, slow, 1, "silo-0", after=[prepared])
        assert wrote.wait(30)
        do(root, teach, 1, "silo-1", after=[prepared])
        [named] = [payload(line) for line in log_lines(root)[-1:]]
        assert named["predicate"]["beside"] == []
        assert {one["name"] for one in named["subject"]} == {
            "vault/silos/silo-1/round-1/drafts.jsonl",
            "stages/round-1/teach-silo-1.json",
        }
        go.set()
        first.result()
    assert payload(log_lines(root)[-1])["predicate"]["beside"] == [
        f"vault/silos/{silo}/round-1/written.jsonl" for silo in SILOS
    ]
    go_on(root)
    (root / "lock").touch()
    assert findings(root) == []
    (root / "vault/silos/silo-1/round-1/written.jsonl").write_text("changed")
    assert found(root) == {("changed", "vault/silos/silo-1/round-1/written.jsonl")}


def test_the_pages_are_signed_once_and_before_they_are_written(root: Path) -> None:
    lines = len(log_lines(root))
    pages = dict.fromkeys(PAGES, "<p>another</p>")
    Custody(root).add_pages(pages, after=["round-1/publish_student"])
    assert len(log_lines(root)) == lines + 1
    assert found(root) == {("changed", name) for name in PAGES}
    for name, text in pages.items():
        write_atomic(root / name, text)
    assert findings(root) == []
    Custody(root).add_pages(pages, after=["round-1/publish_student"])
    assert len(log_lines(root)) == lines + 1


def test_a_disk_that_fills_leaves_a_log_to_go_on_with(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fail(file: int) -> None:
        if Path(f"/proc/self/fd/{file}").readlink().name == LOG:
            raise OSError(errno.ENOSPC, "no space")
        real(file)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="the disk is full"):
        do(root, teach, 2, "silo-0", after=[])
    monkeypatch.undo()
    assert not (root / "stages/round-2/teach-silo-0.json").exists()
    do(root, teach, 2, "silo-0", after=[])
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
