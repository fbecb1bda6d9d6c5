"""Reading users' files: every format, every fault named by file, row, key and remedy, and no value in any message."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.configs.errors import UserError
from tutelage.configs.schema import ClassificationTask, Columns, DataConfig, FileData, GenerationTask, Task
from tutelage.privacy.sources import Loaded, cut, load_records

MAIL = ClassificationTask(description="sort", labels={"ham": "wanted", "spam": "unwanted"})
ASK = GenerationTask(description="answer")
GOOD: list[dict[str, Any]] = [
    {"text": "see you at noon", "label": "ham", "who": "a"},
    {"text": "buy now, cheap", "label": "spam", "who": "b"},
    {"text": 'line one\nline "two"', "label": "ham", "who": "c"},
]
SECRET = "zyxwv-4711"


def never() -> Path:
    raise AssertionError("the mail corpus must not be fetched for files")


def load(path: Path, task: Task = MAIL, columns: Columns | None = None, **settings: Any) -> Loaded:
    """In memory and by a spool, which make no difference."""
    data = DataConfig(records=FileData(path=path, columns=columns or Columns()), **settings)
    kinds = []
    with tempfile.TemporaryDirectory() as folder:
        vault = Path(folder) / "vault"
        vault.mkdir()
        for spool in (None, vault / "spool.jsonl"):
            try:
                kinds.append(load_records(data, task, never, spool))
            except UserError as error:
                kinds.append(error)
        assert list(vault.iterdir()) == []
    held, spooled = kinds
    if isinstance(held, UserError):
        assert str(spooled) == str(held)
        raise held
    assert isinstance(held, Loaded)
    assert isinstance(spooled, Loaded)
    rows = [[(r.id, r.text, r.completion, r.source) for r in one.records] for one in (held, spooled)]
    assert rows[0] == rows[1]
    assert (held.silo_of, held.owner_of) == (spooled.silo_of, spooled.owner_of)
    return held


def refused(path: Path, task: Task = MAIL, columns: Columns | None = None, **settings: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load(path, task, columns, **settings)
    error = caught.value
    assert error.file == path
    assert error.remedy
    assert SECRET not in f"{error} {error.remedy}"
    assert error.__suppress_context__ or error.__context__ is None
    return error


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_folder(path: Path, rows: list[dict[str, Any]]) -> Path:
    from datasets import Dataset

    folder = path.with_suffix("")
    Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "folder": write_folder,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_records(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / f"mails.{kind}", GOOD)
    loaded = load(path, columns=Columns(id="who"))
    assert [(r.id, r.text, r.completion) for r in loaded.records] == [
        (row["who"], row["text"], row["label"]) for row in GOOD
    ]
    assert loaded.silo_of == {}


def test_ids_are_the_rows_where_none_are_mapped(tmp_path: Path) -> None:
    jsonl = load(write_jsonl(tmp_path / "a.jsonl", GOOD)).records
    assert [r.id for r in jsonl] == ["row-1", "row-2", "row-3"]
    rows = [GOOD[2], GOOD[0], GOOD[1]]  # the first record takes two lines
    assert [r.id for r in load(write_csv(tmp_path / "a.csv", rows)).records] == ["row-2", "row-4", "row-5"]


def test_silos_and_renamed_columns(tmp_path: Path) -> None:
    rows = [{"body": row["text"], "kind": row["label"], "nr": i, "site": i % 2} for i, row in enumerate(GOOD)]
    columns = Columns(text="body", label="kind", id="nr", silo="site")
    assert load(write_jsonl(tmp_path / "a.jsonl", rows), columns=columns).silo_of == {"0": "0", "1": "1", "2": "0"}


def test_generation_and_messages(tmp_path: Path) -> None:
    turns = [("system", "Be kind."), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    rows = [{"prompt": "q", "completion": "a"}, {"messages": [{"role": r, "content": c} for r, c in turns]}]
    records = load(write_jsonl(tmp_path / "a.jsonl", rows), ASK).records
    assert [(r.text, r.completion) for r in records] == [("q", "a"), ("q1\nq2", "a2")]
    records = load(write_parquet(tmp_path / "a.parquet", rows[1:]), ASK).records
    assert [(r.text, r.completion) for r in records] == [("q1\nq2", "a2")]


@pytest.mark.parametrize(
    "messages",
    [
        SECRET,
        None,
        [SECRET],
        [],
        [{"role": "user", "content": SECRET}],
        [{"role": "assistant", "content": SECRET}],
        [{"role": "user", "content": None}, {"role": "assistant", "content": SECRET}],
        [{"role": SECRET, "content": "q"}, {"role": "assistant", "content": "a"}],
    ],
)
def test_bad_messages(messages: Any, tmp_path: Path) -> None:
    error = refused(write_jsonl(tmp_path / "a.jsonl", [{"messages": messages}]), ASK)
    assert (error.row, error.key) == (1, "messages")


@pytest.mark.parametrize("suffix", ["parquet", "folder"])
def test_class_labels_become_their_names(suffix: str, tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["spam", "ham"])})
    table = Dataset.from_dict({"text": ["a b", "c d", "e f"], "label": [1, 0, 1]}, features=features)
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        table.to_parquet(path)
    else:
        table.save_to_disk(str(path))
    assert [r.completion for r in load(path).records] == ["ham", "spam", "ham"]


def test_class_label_minus_one_is_no_label(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["spam", "ham"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features).save_to_disk(str(tmp_path / "d"))
    assert (refused(tmp_path / "d").row, refused(tmp_path / "d").key) == (2, "label")


def test_dataset_dict_uses_train_or_the_only_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    full, part = Dataset.from_list(GOOD), Dataset.from_list(GOOD[:1])
    DatasetDict(train=full, test=part).save_to_disk(str(tmp_path / "two"))
    DatasetDict(all=full).save_to_disk(str(tmp_path / "one"))
    DatasetDict(x=full, y=full).save_to_disk(str(tmp_path / "unclear"))
    assert len(load(tmp_path / "two").records) == len(load(tmp_path / "one").records) == 3
    assert "2 splits" in refused(tmp_path / "unclear").problem


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in GOOD), encoding="utf-8-sig")
    assert [r.id for r in load(path).records] == ["row-1", "row-3", "row-5"]
    path = tmp_path / "a.csv"
    path.write_text("text,label\r\n\r\nhi,ham\r\nyo,spam\r\n", encoding="utf-8-sig", newline="")
    assert [r.id for r in load(path).records] == ["row-3", "row-4"]


# Faults


def test_missing_file_and_unknown_kind(tmp_path: Path) -> None:
    for name in ("no.jsonl", "no.csv", "no.parquet", "no"):
        assert "no such file" in refused(tmp_path / name).problem
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    assert ".csv" in str(refused(tmp_path / "a.xlsx").remedy)
    (tmp_path / "folder").mkdir()
    assert "not a saved dataset" in refused(tmp_path / "folder").problem


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", ""), ("a.csv", "\n \n"), ("a.csv", "text,label\n")],
)
def test_no_rows(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert "no rows" in refused(tmp_path / name).problem


def test_wrong_columns_suggest(tmp_path: Path) -> None:
    rows = [{"txt": SECRET, "label": "ham", "when": "x"}]
    for kind, row in (("jsonl", 1), ("csv", 1), ("parquet", None), ("folder", None)):
        error = refused(WRITERS[kind](tmp_path / f"a.{kind}", rows))
        assert (error.row, error.key) == (row, "text")
        assert "txt, label, when" in error.problem
        assert "did you mean 'txt'" in str(error.remedy)


def test_a_csv_without_header_shows_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"call me on {SECRET},ham\nother,spam\n")
    error = refused(tmp_path / "a.csv")
    assert "1 that do not look like column names" in error.problem
    assert "header" in str(error.remedy)


def test_a_column_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,text\na,ham,b\n")
    assert (refused(tmp_path / "a.csv").row, refused(tmp_path / "a.csv").key) == (1, "text")


@pytest.mark.parametrize(
    "line", [f'{{"text": "{SECRET}"', f'"{SECRET}"', "[1]", "NaN", SECRET, "[" * 100_000, "1" * 5000, "null"]
)
def test_bad_json_lines(line: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", GOOD)
    path.write_text(path.read_text() + line + "\n")
    assert refused(path).row == 4


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_bytes_that_are_not_utf8(name: str, tmp_path: Path) -> None:
    path = WRITERS[name[2:]](tmp_path / name, GOOD[:2])
    path.write_bytes(path.read_bytes() + SECRET.encode() + b"\xe9\n")
    error = refused(path)
    assert error.row == len(path.read_bytes().splitlines())
    assert "UTF-8" in error.problem


def test_nul_bytes_in_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\nhi,ham\ny\0o,spam\n")
    assert (refused(tmp_path / "a.csv").row, "NUL" in refused(tmp_path / "a.csv").problem) == (3, True)


@pytest.mark.parametrize("bad", [f"{SECRET},ham,more", SECRET, f'"{SECRET},ham', f'"{SECRET}"x,ham'])
def test_broken_csv_names_the_first_line_of_the_record(bad: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'text,label\n"two\nlines",ham\n{bad}\nyo,spam\n')
    assert refused(tmp_path / "a.csv").row == 4


@pytest.mark.parametrize("value", [None, 7, True, ["x"], {"a": SECRET}, "", " \n", "\ud800"])
@pytest.mark.parametrize("key", ["text", "label"])
def test_values_that_are_no_text(key: str, value: Any, tmp_path: Path) -> None:
    error = refused(write_jsonl(tmp_path / "a.jsonl", [*GOOD, {**GOOD[0], key: value}]))
    assert (error.row, error.key) == (4, key)


def test_a_null_in_parquet_is_named_by_record(tmp_path: Path) -> None:
    error = refused(write_parquet(tmp_path / "a.parquet", [*GOOD, {**GOOD[0], "text": None}]))
    assert (error.row, error.key) == (4, "text")


def test_integer_labels_without_names_are_refused(tmp_path: Path) -> None:
    error = refused(write_parquet(tmp_path / "a.parquet", [{"text": "a", "label": 0}, {"text": "b", "label": 1}]))
    assert (error.row, error.key, "int" in error.problem) == (1, "label", True)


def test_a_label_of_no_task_lists_the_allowed(tmp_path: Path) -> None:
    error = refused(write_csv(tmp_path / "a.csv", [*GOOD, {"text": "x", "label": SECRET, "who": "d"}]))
    assert (error.row, error.key) == (6, "label")
    assert "ham, spam" in str(error.remedy)


def test_one_label_only(tmp_path: Path) -> None:
    error = refused(write_csv(tmp_path / "a.csv", [GOOD[0], GOOD[2]]))
    assert (error.key, "one label" in error.problem) == ("label", True)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_text_too_large(kind: str, tmp_path: Path) -> None:
    rows = [*GOOD, {**GOOD[0], "text": "é" * 500_001}]
    error = refused(WRITERS[kind](tmp_path / f"a.{kind}", rows))
    assert error.row == (6 if kind == "csv" else 4)
    assert error.key == "text"
    assert "max_record_bytes" in error.problem


def test_a_csv_field_too_large_before_it_is_whole(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("text,label\nhi,ham\n" + "x" * 1_000_001 + ",ham\n")
    assert refused(tmp_path / "a.csv").row == 3
    assert csv.field_size_limit() == limit
    assert refused(write_csv(tmp_path / "c.csv", [{"text": "x", "label": SECRET}])).row == 2
    assert csv.field_size_limit() == limit
    rows = [{"text": "x" * 999_999, "label": "ham"}, {"text": "y", "label": "spam"}]
    assert len(load(write_csv(tmp_path / "b.csv", rows)).records[0].text) == 400


def test_duplicate_ids_name_both_rows(tmp_path: Path) -> None:
    rows = [{**row, "who": SECRET if i != 1 else "b"} for i, row in enumerate(GOOD)]
    error = refused(write_jsonl(tmp_path / "a.jsonl", rows), columns=Columns(id="who"))
    assert (error.row, error.key, "row 1" in error.problem) == (3, "who", True)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "  ", ".hidden", "x" * 65, "a b", None, 1.5])
def test_a_silo_that_cannot_be_a_folder(name: Any, tmp_path: Path) -> None:
    rows = [*GOOD, {**GOOD[0], "who": name}]
    error = refused(write_jsonl(tmp_path / "a.jsonl", rows), columns=Columns(silo="who"))
    assert (error.row, error.key) == (4, "who")


@pytest.mark.parametrize("damage", ["head", "middle", "foot", "empty"])
def test_a_damaged_parquet(damage: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"text": f"{SECRET} {i}", "label": "ham"} for i in range(2000)])
    raw = bytearray(path.read_bytes())
    where = {"head": slice(0, 300), "middle": slice(40, 400), "foot": slice(-60, None), "empty": slice(0, None)}[damage]
    raw[where] = b"" if damage == "empty" else b"\xff" * len(raw[where])
    path.write_bytes(raw)
    assert "Parquet" in refused(path).problem


def test_a_damaged_dataset(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a.folder", GOOD)
    next(folder.glob("*.arrow")).write_bytes(SECRET.encode() * 9)
    assert "cannot be read" in refused(folder).problem
    (folder / "state.json").write_text("{")
    assert "cannot be read" in refused(folder).problem


def test_only_the_mail_source_fetches_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="must not be fetched"):
        load_records(DataConfig(), MAIL, never)


# Properties


@given(st.text(), st.integers(1, 40))
def test_cut_is_a_short_prefix_that_ends_at_a_word(text: str, max_chars: int) -> None:
    whole, part = text.strip(), cut(text, max_chars)
    assert len(part) <= max_chars
    assert whole.startswith(part)
    assert part == part.strip()
    assert bool(part) == bool(whole)
    if part != whole and not whole[len(part)].isspace():
        assert len(part) == max_chars
        assert not any(character.isspace() for character in part)


def test_cut_keeps_a_word_that_just_fits() -> None:
    assert (cut("one two three", 7), cut("one two three", 6), cut("abcdef", 3)) == ("one two", "one", "abc")


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=6), kind=st.sampled_from(["jsonl", "csv"]))
def test_any_unicode_text_comes_back(
    rows: list[tuple[str, str]], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a.{kind}"
    loaded = load(WRITERS[kind](path, [{"prompt": p, "completion": c} for p, c in rows]), ASK, max_chars=20_000)
    assert [(r.text, r.completion) for r in loaded.records] == [(p.strip(), c.strip()) for p, c in rows]
