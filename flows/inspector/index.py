"""A run's released texts, held in memory so that 100,000 of them can be filtered, sorted and searched at once."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tutelage.configs.records import Lesson
from tutelage.privacy.pii import PLACEHOLDER
from tutelage.privacy.review import Decision
from tutelage.privacy.similarity import words

Sort = Literal["release", "shortest", "longest", "fit"]
_ORDER: dict[Sort, str] = {
    "release": "place",
    "shortest": "words, place",
    "longest": "words DESC, place",
    "fit": "fit IS NULL, fit, place",
}
_TABLES = """
CREATE TABLE lesson (
    place INTEGER PRIMARY KEY, id TEXT UNIQUE, kind TEXT, silo TEXT, round INTEGER, label TEXT, prompt TEXT,
    completion TEXT, words INTEGER, learned INTEGER, replaced TEXT, fit REAL, twins INTEGER, decision TEXT NOT NULL
);
CREATE VIRTUAL TABLE found USING fts5(prompt, completion, content='lesson', content_rowid='place', prefix='1 2 3');
"""
_KEPT = 16
"""Lists of places, for the filters asked for last."""


class Filters(BaseModel):
    """Which texts to show, as an address gives them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    q: str = Field("", max_length=200)
    """Words that all occur, each at the beginning of a word."""
    silo: str | None = None
    round: int | None = None
    label: str | None = None
    kind: Literal["example", "instruction"] | None = None
    decision: Literal["open", "accept", "reject", "edit"] | None = None
    replaced: str | None = None
    """What the screen replaced in it: a kind of personal data."""
    learned: bool | None = None
    """Whether the last round's student learned from it."""
    twins: bool | None = None
    """Whether there are near-duplicates of it."""
    words_min: int | None = Field(None, ge=0)
    words_max: int | None = Field(None, ge=0)
    fit_max: float | None = None
    sort: Sort = "release"

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, asked: Any) -> Any:
        """A form sends every field, also those that were left empty."""
        return {name: value for name, value in asked.items() if value != ""} if isinstance(asked, dict) else asked

    def where(self) -> tuple[str, list[Any]]:
        """An SQL condition on `lesson`, and its parameters."""
        parts, values = ["1"], list[Any]()
        asked: list[tuple[str, Any]] = [
            ("silo = ?", self.silo), ("round = ?", self.round), ("label = ?", self.label), ("kind = ?", self.kind),
            ("decision = ?", self.decision), ("learned = ?", self.learned), ("(twins > 1) = ?", self.twins),
            ("words >= ?", self.words_min), ("words <= ?", self.words_max), ("fit <= ?", self.fit_max),
            ("' ' || replaced || ' ' LIKE '% ' || ? || ' %'", self.replaced),
        ]  # fmt: skip
        for condition, value in asked:
            if value is not None:
                parts.append(condition)
                values.append(value)
        terms = [f'"{term}"*' for term in self.q.replace('"', " ").split()]
        if terms:
            parts.append("place IN (SELECT rowid FROM found WHERE found MATCH ?)")
            values.append(" ".join(terms))
        return " AND ".join(parts), values


@dataclass(frozen=True)
class Shown:
    """A released text, as pages show it."""

    place: int
    """From 0, in the order of rounds, silos and release."""
    id: str
    kind: str
    silo: str
    round: int
    label: str
    """Of a classification; else empty."""
    prompt: str
    completion: str
    words: int
    learned: bool
    replaced: tuple[str, ...]
    fit: float | None
    """Cosine to the middle of its own label's texts, minus that to the nearest other label's; None: not computed."""
    twins: int | None
    """How many texts nearly repeat each other here, itself among them; None: not computed."""
    decision: str


class Index:
    """The texts of a run.

    Args:
        lessons: All that was released, in order.
        labels: Of a classification; empty for generation.
        learned: Ids of those the last round's student learned from.
        decisions: What people decided about them so far.
    """

    def __init__(
        self,
        lessons: Sequence[Lesson],
        labels: frozenset[str],
        learned: frozenset[str],
        decisions: Mapping[str, Decision],
    ) -> None:
        # One connection for all threads, one at a time: what is asked of it takes milliseconds.
        self._lock = threading.Lock()
        self._base = sqlite3.connect(":memory:", check_same_thread=False)
        self._base.executescript(_TABLES)
        rows = [
            (
                place, one.id, one.kind, one.silo, one.round, one.completion if one.completion in labels else "",
                one.prompt, one.completion, len(words(one.prompt)), one.id in learned,
                " ".join(sorted({match[1:-1] for match in PLACEHOLDER.findall(f"{one.prompt} {one.completion}")})),
                decisions[one.id].verdict if one.id in decisions else "open",
            )
            for place, one in enumerate(lessons)
        ]  # fmt: skip
        self._base.executemany("INSERT INTO lesson VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, ?)", rows)
        self._base.execute("INSERT INTO found(found) VALUES ('rebuild')")
        for column in ("silo", "round", "label", "decision", "words"):
            self._base.execute(f"CREATE INDEX by_{column} ON lesson({column})")
        self._base.commit()
        self.total = len(rows)
        # what was asked, with how often anything had changed by then -> what was found
        self._learned, self._decided = 0, 1
        self._kept = OrderedDict[Any, np.ndarray]()
        self._tables: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}

    def count(self, filters: Filters) -> int:
        """How many texts the filters leave."""
        return len(self._places(filters))

    def page(self, filters: Filters, offset: int, limit: int) -> list[Shown]:
        """Some of the texts that the filters leave, in the order they ask for."""
        return self.at(self._places(filters)[offset : offset + limit].tolist())

    def _places(self, filters: Filters) -> np.ndarray:
        """(found,): places of all texts that the filters leave, in order. Kept, for the next page will ask again."""
        key = (filters, self._learned, self._decided if filters.decision else 0)
        with self._lock:
            if key not in self._kept:
                where, values = filters.where()
                query = f"SELECT place FROM lesson WHERE {where} ORDER BY {_ORDER[filters.sort]}"
                self._kept[key] = np.fromiter((row[0] for row in self._base.execute(query, values)), dtype=np.int64)
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def one(self, lesson: str) -> Shown | None:
        """The text of that id, or None."""
        return next((_shown(row) for row in self._ask("SELECT * FROM lesson WHERE id = ?", [lesson])), None)

    def at(self, places: Sequence[int]) -> list[Shown]:
        """The texts at these places, in the order given."""
        marks = ",".join("?" * len(places))
        rows = {
            row[0]: _shown(row) for row in self._ask(f"SELECT * FROM lesson WHERE place IN ({marks})", list(places))
        }
        return [rows[place] for place in places]

    def facets(self) -> dict[str, list[tuple[str, int]]]:
        """What can be filtered by: name -> (value, how many texts have it)."""
        found = {
            name: [(str(value), count) for value, count in self.table(name) if value != ""]
            for name in ("kind", "silo", "round", "label", "decision")
        }
        replaced: dict[str, int] = {}
        for names, count in self.table("replaced"):
            for name in names.split():
                replaced[name] = replaced.get(name, 0) + count
        return {**found, "replaced": sorted(replaced.items())}

    def table(self, columns: str, condition: str = "1") -> list[tuple[Any, ...]]:
        """Counts of texts by some columns: (values..., how many), in order."""
        key = (columns, condition, self._learned, self._decided if "decision" in columns + condition else 0)
        if key not in self._tables:
            query = f"SELECT {columns}, COUNT(*) FROM lesson WHERE {condition} GROUP BY {columns} ORDER BY {columns}"
            self._tables[key] = self._ask(query, [])
        return self._tables[key]

    def decide(self, lesson: str, verdict: str) -> None:
        """Note what was decided about a text."""
        with self._lock, self._base:
            self._base.execute("UPDATE lesson SET decision = ? WHERE id = ?", [verdict, lesson])
            self._decided += 1
            self._tables = {key: kept for key, kept in self._tables.items() if key[-1] in (0, self._decided)}

    def learn(self, fit: np.ndarray | None, twins: np.ndarray) -> None:
        """Take in what was computed of all texts.

        Args:
            fit: (texts,); NaN where a text has none. None: of no text.
            twins: (texts,), sizes of the groups of near-duplicates.
        """
        fits = [None] * self.total if fit is None else [None if np.isnan(one) else float(one) for one in fit]
        with self._lock, self._base:
            rows = zip(fits, twins.tolist(), range(self.total), strict=True)
            self._base.executemany("UPDATE lesson SET fit = ?, twins = ? WHERE place = ?", rows)
            self._learned += 1

    def _ask(self, query: str, values: list[Any]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._base.execute(query, values).fetchall()


def _shown(row: tuple[Any, ...]) -> Shown:
    place, id, kind, silo, round, label, prompt, completion, count, learned, replaced, fit, twins, decision = row
    return Shown(
        place, id, kind, silo, round, label, prompt, completion, count, bool(learned), tuple(replaced.split()),
        fit, twins, decision,
    )  # fmt: skip
