"""Pieces of a text that are personal data: which there are, how they go together, and a text without them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tutelage.configs.errors import UserError

ENTITIES = (
    "EMAIL_ADDRESS", "PHONE_NUMBER", "URL", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "PERSON",
    "STREET_ADDRESS",
)  # fmt: skip
PLACEHOLDER = re.compile(f"<(?:{'|'.join(ENTITIES)})>")


class Span(NamedTuple):
    """A piece of a text, `text[start:end]`, with what it is and how sure that is (0 to 1)."""

    start: int
    end: int
    entity: str
    score: float


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A text with its personal data replaced, and how many spans of each entity were."""

    text: str
    replaced: dict[str, int]
    spans: tuple[Span, ...] = ()
    """What was replaced, by its place in the text as it came, in order."""

    def __repr__(self) -> str:
        return f"<Scrubbed {len(self.text)} chars, redacted>"


def check_entities(entities: Iterable[str]) -> None:
    """Refuse what no detector finds: left out silently, it would stay in the lessons.

    Raises:
        UserError: an entity that is not one of `ENTITIES`, with the nearest of those.
    """
    for entity in entities:
        if entity not in ENTITIES:
            close = difflib.get_close_matches(entity, ENTITIES, n=1)
            raise UserError(
                f"no detector finds the entity {entity!r}; known are {', '.join(ENTITIES)}",
                key="screen.entities",
                remedy=f"did you mean {close[0]!r}?" if close else "take it from that list",
            )


def replace(text: str, spans: Sequence[Span]) -> str:
    """The text with placeholders for the spans, which are disjoint and in order."""
    pieces, position = [], 0
    for span in spans:
        pieces += [text[position : span.start], f"<{span.entity}>"]
        position = span.end
    return "".join(pieces) + text[position:]


def moved_back(spans: Sequence[Span], done: Sequence[Span]) -> list[Span]:
    """Where spans of a partly scrubbed text stood in the text as it came.

    Args:
        spans: In the text in which `done` is replaced, in order; none lies in a placeholder.
        done: In the text as it came, in order.
    """
    moved, shift, rest = [], 0, list(done)
    for span in spans:
        while rest and rest[0].start < span.start + shift:
            shift += rest[0].end - rest[0].start - len(f"<{rest[0].entity}>")
            rest.pop(0)
        moved.append(span._replace(start=span.start + shift, end=span.end + shift))
    return moved


def resolve(text: str, spans: Iterable[Span]) -> list[Span]:
    """Make detections disjoint: never inside a placeholder, and where they overlap, their union under one label.

    The label is that of the longest detection, then of the surest; the union is replaced, so no part is left over.
    """
    taken = [match.span() for match in PLACEHOLDER.finditer(text)]
    cut = [part for span in spans for part in _outside(taken, text, span)]
    merged: list[tuple[Span, Span]] = []  # (union, the detection that labels it)
    for span in sorted(cut):
        if merged and span.start < merged[-1][0].end:
            union, label = merged[-1]
            label = max(label, span, key=lambda one: (one.end - one.start, one.score))
            merged[-1] = (union._replace(end=max(union.end, span.end)), label)
        else:
            merged.append((span, span))
    return [union._replace(entity=label.entity, score=label.score) for union, label in merged]


def _outside(taken: Sequence[tuple[int, int]], text: str, span: Span) -> list[Span]:
    """The parts of a detection that lie outside placeholders and hold something, without white space around them."""
    borders = [span.start]
    for start, end in taken:
        if start < span.end and end > span.start:
            borders += [start, end]
    borders.append(span.end)
    parts = []
    for start, end in zip(borders[::2], borders[1::2], strict=True):
        inner = text[start:end].strip()
        if any(map(str.isalnum, inner)):
            start += text[start:end].index(inner)
            parts.append(span._replace(start=start, end=start + len(inner)))
    return parts
