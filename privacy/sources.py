"""Read a user's data into private records: JSONL, CSV, Parquet, a saved `datasets` folder, or the mail corpus.

Files are streamed, one row in memory at a time, and nothing is copied to a cache on the disk but what a vault holds.
Every fault of the input becomes a `UserError` that names the file, the row, the key and the remedy and never quotes
the data. A row is a line of the file for JSONL and CSV (the header is line 1) and a record number, from 1, elsewhere.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import json
import re
import sys
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.configs.errors import UserError
from tutelage.configs.schema import ClassificationTask, DataConfig, FileData, SpamAssassinData, Task
from tutelage.privacy.vault import PrivateRecord, read_records, source_digest, write_records

Row = tuple[int, dict[str, Any]]

_COLUMN_NAME = re.compile(r"[A-Za-z_][\w.-]{0,31}", re.ASCII)
_SILO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_FORMATS = "a .jsonl, .ndjson, .csv or .parquet file, or a folder saved by datasets.Dataset.save_to_disk"


@dataclass(frozen=True)
class Loaded:
    """What was read."""

    records: Sequence[PrivateRecord]
    silo_of: dict[str, str]
    """Record id -> silo; empty where the data names no silos."""
    owner_of: dict[str, str] = field(default_factory=dict, repr=False)
    """Record id -> owner; empty where the data names no owners."""


def load_records(data: DataConfig, task: Task, fetch_mail: Callable[[], Path], spool: Path | None = None) -> Loaded:
    """Read the records a recipe asks for.

    Args:
        data: Where they lie and how long a text may be.
        task: Classification reads the columns text and label, generation prompt and completion.
        fetch_mail: Returns the folder of the unpacked mail package, fetching it if need be. Called for that source
            only.
        spool: A file in a vault to put a user's records on as they are checked, so that they need not fit into memory.
            It is gone from its folder when this returns, and from the disk with the records. None: hold them in memory.

    Returns:
        The records in the order of the file, texts cut to `data.max_chars`, and their silos.

    Raises:
        UserError: the first fault found in the input.
    """
    if isinstance(data.records, SpamAssassinData):
        from tutelage.privacy.mail import load_mails  # mail imports `cut` from here

        return Loaded(load_mails(fetch_mail(), data.max_chars), {})
    return _Reader(data, task, data.records).load(spool)


def cut(text: str, max_chars: int) -> str:
    """The text without outer white space, cut to at most `max_chars` characters, at a word boundary if it has one."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    if text[max_chars].isspace() or head[-1].isspace():
        return head.rstrip()
    whole, *rest = head.rsplit(maxsplit=1)
    return whole if rest else head


class _Reader:
    """Turns rows into records, checking each."""

    def __init__(self, data: DataConfig, task: Task, source: FileData) -> None:
        self.data, self.task, self.path, self.columns = data, task, source.path, source.columns
        labelled = isinstance(task, ClassificationTask)
        self.prompt_key = source.columns.text if labelled else source.columns.prompt
        self.completion_key = source.columns.label if labelled else source.columns.completion
        self.optional = tuple(
            name for name in (source.columns.id, source.columns.silo, source.columns.owner) if name is not None
        )
        self._silo_of: dict[str, str] = {}
        self._owner_of: dict[str, str] = {}
        self._labels: set[str] = set()
        # Of each record, where ids are the user's: its row, and its id's hash.
        self._row, self._id = array("q"), array("q")

    def load(self, spool: Path | None) -> Loaded:
        records: Sequence[PrivateRecord]
        if spool is None:
            records = list(self._records())
        else:
            records = read_records(write_records(spool, self._records()))
            spool.unlink()  # what is open stays until it is closed, and no longer, however this process ends
        self._check_ids(records)
        if not records:
            raise self._error("there are no rows", remedy="give it at least one record per label, silo and test slot")
        if isinstance(self.task, ClassificationTask) and len(self._labels) == 1:
            raise self._error(
                "only one label occurs", key=self.completion_key, remedy="add records of the task's other labels"
            )
        return Loaded(records, self._silo_of, self._owner_of)

    def _records(self) -> Iterator[PrivateRecord]:
        """The records, each checked; what there is to be known of them beside is noted."""
        labelled = isinstance(self.task, ClassificationTask)
        with contextlib.closing(self._rows()) as rows:
            for row, fields in rows:
                record = self._record(row, fields)
                if self.columns.id is not None:
                    self._row.append(row)
                    self._id.append(hash(record.id))
                if labelled:
                    self._labels.add(record.completion)
                if self.columns.silo is not None:
                    self._silo_of[record.id] = sys.intern(self._silo(row, fields[self.columns.silo]))
                if self.columns.owner is not None:
                    self._owner_of[record.id] = self._owner(row, fields[self.columns.owner])
                yield record

    def _check_ids(self, records: Sequence[PrivateRecord]) -> None:
        order = np.argsort(self._id, kind="stable")
        alike = np.flatnonzero(np.diff(np.asarray(self._id)[order]) == 0)
        for second, first in sorted(zip(order[alike + 1].tolist(), order[alike].tolist(), strict=True)):
            if records[first].id == records[second].id:
                found = f"the same id as in row {self._row[first]}"
                raise self._error(found, self._row[second], self.columns.id, "make ids unique")

    def _rows(self) -> Generator[Row, None, None]:
        readers = {".jsonl": self._jsonl, ".ndjson": self._jsonl, ".csv": self._csv, ".parquet": self._parquet}
        try:
            if self.path.is_dir():
                yield from self._saved_dataset()
            elif self.path.suffix.lower() in readers:
                yield from readers[self.path.suffix.lower()]()
            elif self.path.exists():
                raise self._error("this kind of file is not read", remedy=f"give {_FORMATS}")
            else:
                raise FileNotFoundError
        except FileNotFoundError:
            raise self._error("there is no such file", key="data.records.path", remedy=f"give {_FORMATS}") from None
        except OSError as error:
            reason = error.strerror or "read error"
            raise self._error(f"cannot be read ({reason})", remedy="check the file and its permissions") from None

    # Formats: each yields (row, fields) and has checked that the wanted columns are there.

    def _lines(self) -> Iterator[tuple[int, str]]:
        with self.path.open("rb") as stream:
            for row, raw in enumerate(stream, start=1):
                try:
                    yield row, raw.decode("utf-8-sig" if row == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise self._error(
                        f"byte {error.start + 1} of the line is not UTF-8", row, remedy="save the file as UTF-8"
                    ) from None

    def _jsonl(self) -> Iterator[Row]:
        for row, line in self._lines():
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                column = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                raise self._error(f"not valid JSON{column}", row, remedy="one JSON object per line") from None
            if not isinstance(fields, dict):
                raise self._error("this JSON is not an object", row, remedy="one JSON object per line")
            self._check_columns(fields, row)
            yield row, fields

    def _csv(self) -> Iterator[Row]:
        def lines() -> Iterator[str]:
            for row, line in self._lines():
                if "\0" in line:
                    raise self._error("the line holds a NUL byte", row, remedy="save the file as plain UTF-8 text")
                yield line

        reader = csv.reader(lines(), strict=True)
        header: list[str] | None = None
        row = 1
        # process-wide, so it is put back; its default of 128 KiB is less than a text may have
        usual_limit = csv.field_size_limit(self.data.max_record_bytes)
        try:
            for values in reader:
                blank = len(values) <= 1 and not "".join(values).strip()
                if header is None and not blank:
                    header = values
                    self._check_header(header, row)
                elif header is not None and not blank:
                    if len(values) != len(header):
                        raise self._error(
                            f"{len(values)} fields where the header has {len(header)}",
                            row,
                            remedy="put texts with commas, quotes or line breaks into double quotes",
                        )
                    yield row, dict(zip(header, values, strict=True))
                row = reader.line_num + 1
        except csv.Error as error:
            too_large = str(error).startswith("field larger")
            problem = f"a field is larger than {self.data.max_record_bytes} bytes" if too_large else "not valid CSV"
            raise self._error(problem, row, remedy="check for a double quote that is never closed") from None
        finally:
            csv.field_size_limit(usual_limit)

    def _check_header(self, header: list[str], row: int) -> None:
        self._check_columns(header, row)
        for name in self._wanted(header):
            if header.count(name) > 1:
                raise self._error("this column occurs twice", row, name, "rename one of them")

    def _parquet(self) -> Iterator[Row]:
        import pyarrow
        from pyarrow import parquet

        with self.path.open("rb") as stream:
            try:
                file = parquet.ParquetFile(stream)
                schema = file.schema_arrow
                self._check_columns(schema.names)
                names = None
                if b"huggingface" in (schema.metadata or {}):
                    from datasets import Features

                    names = _class_names(Features.from_arrow_schema(schema), self.completion_key)
                batches = file.iter_batches(batch_size=256, columns=self._wanted(schema.names))
                yield from self._numbered((row for batch in batches for row in batch.to_pylist()), names)
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError):  # arrow reports damaged pages as OSError
                raise self._error("not a readable Parquet file", remedy="write the file again") from None

    def _saved_dataset(self) -> Iterator[Row]:
        from datasets import DatasetDict, load_from_disk

        if not any((self.path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            raise self._error("this folder is not a saved dataset", remedy=f"give {_FORMATS}")
        try:
            dataset = load_from_disk(str(self.path))
        except Exception:  # whatever a damaged folder makes of json, arrow and datasets' own checks
            raise self._error("the saved dataset cannot be read", remedy="save it again") from None
        if isinstance(dataset, DatasetDict):
            if "train" not in dataset and len(dataset) != 1:
                raise self._error(
                    f"its {len(dataset)} splits leave open which to read",
                    remedy="save the split you mean, or name it 'train'",
                )
            dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
        self._check_columns(dataset.column_names)
        names = _class_names(dataset.features, self.completion_key)
        yield from self._numbered(dataset.select_columns(self._wanted(dataset.column_names)), names)

    def _numbered(self, rows: Iterable[dict[str, Any]], class_names: list[str] | None) -> Iterator[Row]:
        """Rows with their numbers, and `ClassLabel` integers as their names."""
        for row, fields in enumerate(rows, start=1):
            label = fields.get(self.completion_key)
            if class_names is not None and isinstance(label, int):
                # datasets writes -1 for "no label"
                fields[self.completion_key] = class_names[label] if 0 <= label < len(class_names) else None
            yield row, fields

    # Columns

    def _wanted(self, found: Iterable[str]) -> list[str]:
        """The columns to read: those mapped, or `messages` where the file has that instead."""
        own = [self.prompt_key, self.completion_key]
        if "messages" in found and not set(own) <= set(found):
            own = ["messages"]
        return list(dict.fromkeys([*own, *self.optional]))

    def _check_columns(self, found: Iterable[str], row: int | None = None) -> None:
        for name in self._wanted(found):
            if name in found:
                continue
            # A CSV without a header has a record where the names should be: show only what can be a name.
            names = [column for column in found if _COLUMN_NAME.fullmatch(column)]
            hidden = len(list(found)) - len(names)
            others = f" and {hidden} that do not look like column names" if hidden else ""
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? Set" if close else "set"
            raise self._error(
                f"this column is missing; found: {', '.join(names) or 'none'}{others}",
                row,
                name,
                f"{hint} data.records.columns to the names of your file (a CSV file needs a header line)",
            )

    # Values

    def _record(self, row: int, fields: dict[str, Any]) -> PrivateRecord:
        if self.prompt_key in fields and self.completion_key in fields:
            prompt, completion = fields[self.prompt_key], fields[self.completion_key]
            keys = (self.prompt_key, self.completion_key)
        else:
            prompt, completion = self._conversation(row, fields["messages"])
            keys = ("messages", "messages")
        labelled = isinstance(self.task, ClassificationTask)
        whole = prompt if labelled else f"{prompt}\0{completion}"  # as the silo has it, whatever a recipe cuts
        prompt = self._text(row, keys[0], prompt)
        completion = self._text(row, keys[1], completion)
        if isinstance(self.task, ClassificationTask) and completion not in self.task.labels:
            allowed = ", ".join(self.task.labels)
            raise self._error("the label is none of the task's", row, keys[1], f"labels of this recipe: {allowed}")
        id_key = self.columns.id
        return PrivateRecord(
            f"row-{row}" if id_key is None else self._name(row, id_key, fields[id_key]),
            prompt,
            completion,
            source_digest(whole),
        )

    def _text(self, row: int, key: str, value: Any) -> str:
        """A text that may be used, cut to length."""
        if value is None:
            raise self._error("the value is null", row, key, "fill it in or drop the row")
        if not isinstance(value, str):
            raise self._error(f"not a text but {type(value).__name__}", row, key, "write it as a string")
        try:
            size = len(value.encode("utf-8"))
        except UnicodeEncodeError:
            raise self._error("half of a surrogate pair is no character", row, key, "write valid Unicode") from None
        if size > self.data.max_record_bytes:
            raise self._error(
                f"{size} bytes, more than data.max_record_bytes ({self.data.max_record_bytes})",
                row,
                key,
                "split the record, or raise data.max_record_bytes if it is meant",
            )
        if not value.strip():
            raise self._error("the text is blank", row, key, "fill it in or drop the row")
        return cut(value, self.data.max_chars)

    def _name(self, row: int, key: str, value: Any) -> str:
        """An id or a silo: a text, or an integer."""
        integer = isinstance(value, int) and not isinstance(value, bool)
        return self._text(row, key, str(value) if integer else value)

    def _silo(self, row: int, value: Any) -> str:
        key = str(self.columns.silo)
        name = self._name(row, key, value)
        if not _SILO_NAME.fullmatch(name):
            # it becomes a folder's name and stands in every report
            remedy = "use up to 64 letters, digits, '_', '-' and '.', beginning with a letter or digit"
            raise self._error("not usable as a silo's name", row, key, remedy)
        return name

    def _owner(self, row: int, value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)  # account numbers
        if not isinstance(value, str) or not value.strip():
            remedy = "name an owner in every row; rows that nobody owns need a name of their own each"
            raise self._error("names no owner", row, self.columns.owner, remedy)
        return value.strip()

    def _conversation(self, row: int, turns: Any) -> tuple[str, str]:
        """The user turns before the last assistant turn, and that turn."""
        remedy = "a list of {'role': 'user' | 'assistant' | 'system', 'content': text}"
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict)
            and turn.get("role") in ("system", "user", "assistant")
            and isinstance(turn.get("content"), str)
            for turn in turns
        ):
            raise self._error("not a list of messages", row, "messages", remedy)
        last = max((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
        asked = [turn["content"] for turn in turns[:last] if turn["role"] == "user"]
        if not asked:
            raise self._error("no user message with an answer after it", row, "messages", remedy)
        return "\n".join(asked), turns[last]["content"]

    def _error(
        self, problem: str, row: int | None = None, key: str | None = None, remedy: str | None = None
    ) -> UserError:
        return UserError(problem, file=self.path, row=row, key=key, remedy=remedy)


def _class_names(features: Any, key: str) -> list[str] | None:
    """The names of a `datasets.ClassLabel` column; None for any other column."""
    from datasets import ClassLabel

    feature = features.get(key)
    return feature.names if isinstance(feature, ClassLabel) else None
