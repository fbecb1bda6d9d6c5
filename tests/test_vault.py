"""Private records are hard to let slip."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.configs.errors import PrivacyError
from tutelage.privacy.vault import Chosen, Joined, PrivateRecord, read_records, write_records

SECRET = "Meet Anna Karenina at the station"
RECORD = PrivateRecord("mail-7", SECRET, "secret-label")


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format, ascii], ids=lambda f: f.__name__)
@pytest.mark.parametrize("thing", [RECORD, [RECORD], (RECORD,), {"x": RECORD}], ids=["one", "list", "tuple", "dict"])
def test_no_way_of_showing_a_record_shows_its_text(show: Callable[[Any], str], thing: Any) -> None:
    shown = show(thing)
    assert "redacted" in shown
    assert "Anna" not in shown
    assert "secret-label" not in shown


def test_a_log_and_a_traceback_show_none_either(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").warning("record %s, %r", RECORD, {"records": [RECORD]})
    assert "Anna" not in caplog.text
    with pytest.raises(TypeError) as caught:
        len(RECORD)  # type: ignore[arg-type]
    assert "Anna" not in "".join(traceback.format_exception(caught.value))
    lines = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    assert "Anna" not in "".join(lines)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused(protocol: int) -> None:
    for thing in (RECORD, [RECORD], {"x": (RECORD,)}):
        with pytest.raises(PrivacyError) as caught:
            pickle.dumps(thing, protocol)
        assert "Anna" not in str(caught.value)


@pytest.mark.parametrize("leak", [copy.copy, copy.deepcopy, vars], ids=lambda f: f.__name__)
def test_other_ways_to_its_state_are_closed(leak: Callable[[Any], Any]) -> None:
    with pytest.raises((PrivacyError, TypeError)):
        leak(RECORD)


def test_cloudpickle_is_refused_too() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")  # what a task queue would use
    with pytest.raises(PrivacyError):
        cloudpickle.dumps(lambda: RECORD)


def test_the_deliberate_ways_in() -> None:
    assert (RECORD.text, RECORD.completion) == (SECRET, "secret-label")
    example = RECORD.example()
    assert (example.id, example.prompt, example.completion) == ("mail-7", SECRET, "secret-label")


@given(rows=st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=20)] * 3), max_size=5))
def test_records_come_back_as_they_were(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "vault" / "records.jsonl"
    write_records(path, [PrivateRecord(*row) for row in rows])
    assert [(r.id, r.text, r.completion) for r in read_records(path)] == rows


def test_records_chosen_and_joined() -> None:
    some = [PrivateRecord(str(n), f"text {n}", "") for n in range(5)]
    more = [PrivateRecord("more", "text", "")]
    chosen = Chosen(some, [4, 5, 0], more)
    assert [record.id for record in chosen] == ["4", "more", "0"]
    joined = Joined([chosen, [], some[:2]])
    assert [record.id for record in joined] == [record.id for record in joined[:]] == ["4", "more", "0", "0", "1"]
    assert joined[-1].id == "1"
    assert "text" not in f"{chosen!r} {joined!r}"


@pytest.mark.parametrize("place", ["records.jsonl", "release/records.jsonl", "vaults/r.jsonl", "vault/../r.jsonl"])
def test_records_are_kept_in_a_vault_only(tmp_path: Path, place: str) -> None:
    (tmp_path / "vault").mkdir()
    with pytest.raises(PrivacyError):
        write_records(tmp_path / place, [RECORD])
    with pytest.raises(PrivacyError):
        read_records(tmp_path / place)
    assert [path.name for path in tmp_path.rglob("*")] == ["vault"]


def test_a_link_out_of_the_vault_is_no_vault(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "open").mkdir()
    (tmp_path / "vault" / "link").symlink_to(tmp_path / "open")
    with pytest.raises(PrivacyError):
        write_records(tmp_path / "vault" / "link" / "records.jsonl", [RECORD])
    assert not list((tmp_path / "open").iterdir())
