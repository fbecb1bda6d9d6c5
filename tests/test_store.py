"""The run folder's promises: whole files or none, a manifest only for what is complete, one process at a time."""

from __future__ import annotations

import errno
import json
import operator
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.configs.errors import UserError
from tutelage.configs.jsonl import Rows, read_jsonl, write_jsonl
from tutelage.configs.store import RunDir, digest, write_atomic

KEY = digest("inputs")
HOLD = """
import sys, time
from pathlib import Path
from tutelage.configs.store import RunDir
with RunDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- atomic writes ------------------------------------------------------------------------------------------------


def test_write_atomic_makes_folders_replaces_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    assert write_atomic(path, "old") == path
    write_atomic(path, b"new\n", mode=0o600)
    assert path.read_bytes() == b"new\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(files_below(tmp_path)) == ["a/b/file"]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod"])
@pytest.mark.parametrize(
    "failure", [OSError(errno.EIO, "I/O error"), OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_the_old_content_and_no_more(
    call: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomic(tmp_path / "file", "old")

    def fail(*_: object) -> NoReturn:
        raise failure

    monkeypatch.setattr(call, fail)
    full = isinstance(failure, OSError) and failure.errno == errno.ENOSPC
    with pytest.raises(UserError if full else type(failure)) as caught:
        write_atomic(path, "new", mode=0o600)
    if isinstance(caught.value, UserError):
        assert "the disk is full" in str(caught.value)
        assert caught.value.file == path
        assert "tutelage resume" in (caught.value.remedy or "")
    assert files_below(tmp_path) == {"file": b"old"}


def test_a_text_that_is_no_unicode_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "file", "\ud800")
    assert files_below(tmp_path) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(small_disk: Path) -> None:
    path = write_jsonl(small_disk / "rows.jsonl", [{"n": 1}])
    before = files_below(small_disk)
    with pytest.raises(UserError, match="the disk is full"):
        write_jsonl(path, [{"text": "x" * 1000}] * 1000)
    assert files_below(small_disk) == before
    # and there is room again for what comes next
    assert write_atomic(small_disk / "other", b"y" * 60_000).stat().st_size == 60_000


# ---- JSON lines ---------------------------------------------------------------------------------------------------

TEXT = st.text() | st.text(st.sampled_from('a\u2028\u2029\x85\x0b\x0c\x1c\r\n\\"\0\ufeff\U0001f600e\u0301'))
ROWS = st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.none() | st.lists(TEXT, max_size=2), max_size=3))


@given(ROWS)
def test_jsonl_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = write_jsonl(tmp_path_factory.getbasetemp() / "rows.jsonl", iter(rows))
    found = read_jsonl(path)
    assert list(found) == rows
    assert [found[at] for at in range(len(found))] == rows
    assert path.read_bytes().count(b"\n") == len(rows)


@given(rows=st.integers(0, 600), at=st.slices(600))
def test_rows_are_a_sequence(tmp_path_factory: pytest.TempPathFactory, rows: int, at: slice) -> None:
    path = write_jsonl(tmp_path_factory.getbasetemp() / "numbers.jsonl", ({"n": n} for n in range(rows)))
    numbers, found = range(rows), Rows(path, operator.itemgetter("n"))
    path.unlink()  # what is open is read to its end
    assert (list(found), found[at], len(found)) == (list(numbers), list(numbers[at]), rows)
    assert list(reversed(found)) == list(reversed(numbers))
    with pytest.raises(IndexError):
        found[rows]


@pytest.mark.parametrize("line", [b"[1]", b'{"n": ', b"\xff{}", b"", b"null"])
def test_a_damaged_row_is_named_and_not_quoted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": "secret"}\n' + line + b'\n{"n": 3}\n')
    found = read_jsonl(path)
    assert (found[0], found[2]) == ({"n": "secret"}, {"n": 3})
    for read in (list, lambda rows: rows[1]):
        with pytest.raises(UserError, match=r"row 2.*not a JSON object") as caught:
            read(found)
        assert "secret" not in str(caught.value)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_jsonl(tmp_path / "rows.jsonl")


# ---- manifests ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run folder with one finished stage of two files, one of them in a folder."""
    made = RunDir(tmp_path / "run")
    made.create()
    one = write_atomic(made.vault / "one", "1")
    write_atomic(made.release / "folder" / "two", "2")
    made.commit("round-1/learn", KEY, [one, made.release / "folder"], {"count": 3}, 1.23456)
    return made


def test_a_finished_stage_is_recognised(run: RunDir) -> None:
    manifest = run.finished("round-1/learn", KEY)
    assert manifest is not None
    assert sorted(manifest["files"]) == ["release/folder/two", "vault/one"]
    assert manifest["facts"] == {"count": 3}
    assert manifest == RunDir(run.root).finished("round-1/learn", KEY)


def test_it_is_not_finished_for_other_inputs_or_another_name(run: RunDir) -> None:
    assert run.finished("round-1/learn", digest("others")) is None
    assert run.finished("round-2/learn", KEY) is None


@pytest.mark.parametrize("name", ["vault/one", "release/folder/two"])
def test_it_is_not_finished_when_a_file_changed_or_is_gone(run: RunDir, name: str) -> None:
    path = run.root / name
    good = path.read_bytes()
    for bad in (b"", good + b"\n", b"x"):
        path.write_bytes(bad)
        assert run.finished("round-1/learn", KEY) is None
    path.unlink()
    assert run.finished("round-1/learn", KEY) is None
    path.mkdir()
    assert run.finished("round-1/learn", KEY) is None
    path.rmdir()
    path.write_bytes(good)
    assert run.finished("round-1/learn", KEY) is not None


def test_a_manifest_torn_at_any_byte_counts_for_nothing(run: RunDir) -> None:
    path = run.manifest_path("round-1/learn")
    whole = path.read_bytes()
    for kept in range(len(whole.rstrip())):
        path.write_bytes(whole[:kept])
        assert run.finished("round-1/learn", KEY) is None, kept
        path.write_bytes(whole[:kept] + b"\0" * (len(whole) - kept))  # as some file systems leave it
        assert run.finished("round-1/learn", KEY) is None, kept
    path.write_bytes(whole)
    assert run.finished("round-1/learn", KEY) is not None


def test_a_stage_whose_file_is_missing_is_not_committed(run: RunDir) -> None:
    with pytest.raises(FileNotFoundError):
        run.commit("prepare", KEY, [run.vault / "nothing", run.vault / "one"], {}, 0)
    assert run.finished("prepare", KEY) is None


def test_the_vault_is_closed_and_stays_so(run: RunDir) -> None:
    run.vault.chmod(0o755)
    run.create()
    assert run.vault.stat().st_mode & 0o777 == 0o700


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert digest(value) == digest(backwards)
    assert digest(value) == digest(json.loads(json.dumps(value)))
    assert digest(value) != digest({**value, "one more\0": 1})


# ---- the lock -----------------------------------------------------------------------------------------------------


def test_one_process_holds_a_run_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    root = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process holds this run folder") as caught, RunDir(root).locked():
            pytest.fail("two held it")
        assert caught.value.file == root
        assert "--run-dir" in (caught.value.remedy or "")
        with RunDir(tmp_path / "other").locked():
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with RunDir(root).locked():
        pass
    with RunDir(root).locked():
        pass


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), RunDir(tmp_path).locked():
        raise BlockingIOError
    with RunDir(tmp_path).locked():
        pass


def test_a_file_cannot_be_a_run_folder(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "file", "mine")
    for root in (path, path / "below"):
        with pytest.raises(UserError, match="cannot be used as a run folder"), RunDir(root).locked():
            pytest.fail("a file was locked")
    assert path.read_bytes() == b"mine"
