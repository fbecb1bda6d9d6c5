"""The chain of custody: every file answered for, whatever is killed, and a log that cannot be rewritten.

All of it runs on a small run (small_log.py); what the real stages write is checked in test_flow.py, on a real run.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from small_log import PAGES, SECRET, SILOS, begun, do, finished, go_on, prepare, teach
from small_run import files_below, recipe_for
from tampering import findings, found, log_lines, payload

from tutelage.configs.errors import UserError
from tutelage.configs.jsonl import write_jsonl
from tutelage.configs.load import parse_recipe
from tutelage.configs.store import canonical_json, digest, file_digest, manifest_digest, write_atomic
from tutelage.flows.stage import Run, create_run, open_run
from tutelage.flows.verify import as_json, verify_run
from tutelage.privacy import statements
from tutelage.privacy.custody import KEY, LOG, PUBLIC_KEY, Custody
from tutelage.privacy.keys import SiloKey


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return finished(tmp_path / "runs" / "one")


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
