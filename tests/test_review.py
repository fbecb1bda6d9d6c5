"""The review file: nothing that was kept is lost, whatever happens to the one who writes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.configs.errors import UserError
from tutelage.privacy import review
from tutelage.privacy.review import Decision


def decision(lesson: str, verdict: review.Verdict, **more: str) -> Decision:
    return Decision(lesson=lesson, verdict=verdict, by="ann", at="2026-01-01T00:00:00+00:00", **more)


def test_the_last_decision_holds_and_can_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    assert review.read(path) == {}
    edit = decision("b", "edit", prompt="text\u2028with odd line ends\r\n", completion="ham")
    for one in (decision("a", "accept"), edit, decision("a", "reject"), decision("c", "accept"), decision("c", "open")):
        review.append(path, one)
    assert review.read(path) == {"a": decision("a", "reject"), "b": edit}
    assert review.counts(review.read(path)) == {"reject": 1, "edit": 1}


@given(cut=st.integers(0, 400))
def test_what_a_killed_writer_left_is_passed_over_and_nothing_else(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "review.jsonl"
    made = [decision(f"lesson-{i}", "reject") for i in range(4)]
    for one in made:
        review.append(path, one)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    kept = whole[:cut].count(b"}")  # a line without its end of line says all the same
    assert list(review.read(path).values()) == made[:kept]
    review.append(path, made[3])
    assert review.read(path) == {one.lesson: one for one in [*made[:kept], made[3]]}


def test_two_processes_write_into_one_file(tmp_path: Path) -> None:
    path, spawn = tmp_path / "review.jsonl", multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_many, args=(path, name)) for name in ("x", "y")]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert review.read(path).keys() == {f"{name}{i}" for name in ("x", "y") for i in range(50)}


def _many(path: Path, name: str) -> None:
    for i in range(50):
        review.append(path, decision(f"{name}{i}", "accept"))


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"lesson": "a"}', "verdict"),
        ('{"lesson": "a", "verdict": "maybe", "by": "b", "at": ""}', "verdict"),
        ('{"lesson": "a", "verdict": "accept", "by": "b", "at": "", "reason": "private words"}', "reason"),
        ('{"lesson": "a", "verdict": "edit", "by": "b", "at": "", "prompt": "private words"}', None),
        ("private words", None),
    ],
)
def test_a_line_that_is_no_decision_is_named_and_not_quoted(tmp_path: Path, line: str, key: str | None) -> None:
    path = tmp_path / "review.jsonl"
    review.append(path, decision("a", "accept"))
    with path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError) as caught:
        review.read(path)
    assert caught.value.row == 2
    assert key is None or key in (caught.value.key or "")
    assert "private words" not in str(caught.value)
