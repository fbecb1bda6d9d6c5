"""Canaries: texts like the silos' own, each with a random secret, planted by independent coins.

A canary is a record that no silo holds, with one short sentence put in, e.g. `The amber lantern is kept in the cellar
beside nine kettles.` Which of several equally likely sentences it was is the secret. If nothing of the canary
reaches what is released, the true sentence is no likelier there than its alternatives, and its rank among them is
exactly uniform: `attacks/exposure.py` measures the departure from that.

The sentence holds no name, address or number in digits. Screening replaces those, so a canary made of them would
vanish on the way out and show the PII detector at work; one made of plain words goes the whole way that a private
fact in plain words would go.
"""

from __future__ import annotations

import random
import re
import secrets
from array import array
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Literal, NoReturn

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.jsonl import read_jsonl, write_jsonl
from tutelage.configs.schema import AttackConfig, Task
from tutelage.privacy.vault import Chosen, PrivateRecord, inside_vault

_THINGS = (
    "basket", "blanket", "bottle", "bucket", "candle", "carpet", "compass", "cushion", "drum", "envelope", "feather",
    "flute", "hammer", "helmet", "kettle", "ladder", "lantern", "mirror", "necklace", "needle", "parcel", "pillow",
    "pitcher", "puppet", "ribbon", "saddle", "spoon", "stool", "suitcase", "teapot", "trumpet", "umbrella",
)  # fmt: skip
_SLOTS: dict[str, tuple[str, ...]] = {
    "colour": (
        "amber", "beige", "black", "blue", "bronze", "brown", "copper", "cream", "crimson", "golden", "gray", "green",
        "indigo", "ivory", "orange", "pink", "purple", "red", "scarlet", "silver", "turquoise", "violet", "white",
        "yellow",
    ),
    "thing": _THINGS,
    "place": (
        "attic", "bakery", "balcony", "barn", "basement", "bathroom", "cabin", "cellar", "classroom", "corridor",
        "courtyard", "garage", "garden", "gym", "hallway", "kitchen", "laundry", "library", "lobby", "office",
        "pantry", "stable", "theater", "workshop",
    ),
    "number": (
        "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "twenty",
    ),
    "things": tuple(f"{thing}s" for thing in _THINGS),
}  # fmt: skip
_FORMS = (
    "The {colour} {thing} is kept in the {place} beside {number} {things}",
    "Please bring {number} {things} and the {colour} {thing} to the {place}",
    "We left {number} {things} in the {place} and took the {colour} {thing}",
    "Remember that the {colour} {thing} in the {place} goes with {number} {things}",
)
SPACE = prod(len(words) for words in _SLOTS.values())
"""How many secrets there are of each form: about 9.4 million, 23 bits."""


class Canary:
    """One canary. Its carrier is a private text, so like a `PrivateRecord` it hides its content and isn't pickled.

    Args:
        id: Name of the canary.
        silo: The silo whose record carries it.
        member: Whether its coin put it into the silo.
        kind: The task's kind. In `classification` the secret stands in the text; in `generation` in the completion,
            which is the part a student learns to write.
        before: The carrier up to the secret.
        after: The carrier after the secret.
        other: The carrier record's other half: the label, or the prompt.
        candidates: Equally likely secrets, all different, the true one among them.
        index: Which candidate is the true one, 0-based.
    """

    __slots__ = ("_after", "_before", "_other", "candidates", "id", "index", "kind", "member", "silo")

    def __init__(
        self,
        id: str,
        silo: str,
        member: bool,
        kind: Literal["classification", "generation"],
        before: str,
        after: str,
        other: str,
        candidates: Sequence[str],
        index: int,
    ) -> None:
        self.id, self.silo, self.member, self.kind = id, silo, member, kind
        self._before, self._after, self._other = before, after, other
        self.candidates, self.index = tuple(candidates), index

    @property
    def secret(self) -> str:
        """The candidate that was drawn, without its full stop."""
        return self.candidates[self.index]

    @property
    def label(self) -> str:
        """The carrier's label; empty for `generation`."""
        return self._other if self.kind == "classification" else ""

    def record(self, id: str) -> PrivateRecord:
        """The record that a member's silo is given."""
        carrier = self._carrier(self.secret)
        if self.kind == "classification":
            return PrivateRecord(id, carrier, self._other)
        return PrivateRecord(id, self._other, carrier)

    def texts(self) -> list[str]:
        """The carrier up to and with each candidate in turn, in the candidates' order: what an attack scores.

        What follows the secret is the same for all candidates and would cost as much again to score. For
        `generation` the prompt stands before it, two line ends between.
        """
        opening = "" if self.kind == "classification" else f"{self._other}\n\n"
        return [opening + " ".join(filter(None, (self._before, f"{candidate}."))) for candidate in self.candidates]

    def _carrier(self, candidate: str) -> str:
        return " ".join(part for part in (self._before, f"{candidate}.", self._after) if part)

    def _row(self) -> dict[str, object]:
        return {
            "id": self.id,
            "silo": self.silo,
            "member": self.member,
            "kind": self.kind,
            "before": self._before,
            "after": self._after,
            "other": self._other,
            "candidates": list(self.candidates),
            "index": self.index,
        }

    def __repr__(self) -> str:
        return f"<Canary among {len(self.candidates)} candidates, redacted>"

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("a canary must not be pickled: pass the path of its file in the vault instead")

    def __getstate__(self) -> NoReturn:
        raise PrivacyError("a canary must not be pickled: pass the path of its file in the vault instead")


def plant(
    silos: Mapping[str, Sequence[PrivateRecord]],
    carriers: Sequence[PrivateRecord],
    config: AttackConfig,
    task: Task,
    rng: random.Random | None = None,
    *,
    max_chars: int,
) -> tuple[dict[str, Sequence[PrivateRecord]], list[Canary]]:
    """Make canaries and put the members among their silos' records.

    The silos take turns as homes. A canary whose coin says out is planted nowhere and calibrates the attack: its rank
    is uniform whatever the pipeline does. The coins stay independent, so with probability 2^-canaries none is a
    member; the attack then measures nothing, its metrics are NaN and the gate refuses.

    Args:
        silos: Each silo's records; left unchanged.
        carriers: Records of no silo, to put secrets into. A silo's own would be there once more with every copy, and
            what is measured on them would be a figure about private text.
        config: How many canaries, copies and candidates.
        task: Decides which half of a record carries the secret.
        rng: Source of coins, secrets, carriers and positions; None: the operating system's randomness. A seeded one
            lets anybody who knows the seed tell the secrets, so it is for tests only.
        max_chars: No canary's text is longer than this, with any of its candidates.

    Returns:
        The silos with `canary_copies` copies of every member at random places, under fresh ids, and all canaries.

    Raises:
        UserError: there is no silo or no carrier, `max_chars` leaves no room, or too many candidates are asked.
    """
    rng = rng or secrets.SystemRandom()
    if config.canary_candidates > SPACE:
        raise UserError(
            f"there are only {SPACE} secrets", key="attack.canary_candidates", remedy="ask for fewer candidates"
        )
    names = sorted(silos)
    if not names:
        raise UserError("without a silo there is nowhere to plant canaries", key="data.silos", remedy="ask for one")
    if not carriers:
        raise UserError(
            "canaries are put into records of no silo, and there are none",
            key="data.nonmember_records",
            remedy="ask for as many as attack.canaries, and some for the attacks",
        )
    homes = [names[i % len(names)] for i in range(config.canaries)]
    chosen = _draw(carriers, config.canaries, rng)
    canaries = [
        _make(f"canary-{i}", home, carrier, config.canary_candidates, task, rng, max_chars)
        for i, (home, carrier) in enumerate(zip(homes, chosen, strict=True))
    ]
    rows = {name: array("q", range(len(records))) for name, records in silos.items()}
    copies: list[tuple[Canary, str]] = []
    for canary in canaries:
        for _ in range(config.canary_copies if canary.member else 0):
            places = rows[canary.silo]
            places.insert(rng.randrange(len(places) + 1), len(places))
            copies.append((canary, _fresh_id(rng)))
    ids = _told_apart([id for _, id in copies], silos, rng)
    more: dict[str, list[PrivateRecord]] = {name: [] for name in silos}
    for (canary, _), id in zip(copies, ids, strict=True):
        more[canary.silo].append(canary.record(id))
    return {name: Chosen(records, rows[name], more[name]) for name, records in silos.items()}, canaries


def write_canaries(path: Path, canaries: list[Canary]) -> Path:
    """Write canaries below a vault.

    Raises:
        PrivacyError: the path is not inside a `vault` folder.
    """
    inside_vault(path)
    return write_jsonl(path, [canary._row() for canary in canaries])


def read_canaries(path: Path) -> list[Canary]:
    """Read back what `write_canaries` wrote.

    Raises:
        PrivacyError: the path is not inside a `vault` folder.
    """
    inside_vault(path)
    return [Canary(**row) for row in read_jsonl(path)]


def _draw(records: Sequence[PrivateRecord], count: int, rng: random.Random) -> list[PrivateRecord]:
    """Different records while there are enough of them."""
    return rng.sample(records, count) if count <= len(records) else rng.choices(records, k=count)


def _make(
    id: str, silo: str, carrier: PrivateRecord, count: int, task: Task, rng: random.Random, max_chars: int
) -> Canary:
    form = rng.choice(_FORMS)
    # different secrets, and the true one any of them with equal chance: without a leak its rank is exactly uniform
    candidates = [_secret(form, number) for number in rng.sample(range(SPACE), count)]
    # room for the longest candidate, not for the true one: the carrier must not depend on which one is true
    room = max_chars - max(map(len, candidates)) - len(".") - 2 * len(" ")
    if room < 0:
        raise UserError("a canary does not fit", key="data.max_chars", remedy="allow at least 120 characters")
    text, other = carrier.text, carrier.completion
    if task.kind == "generation":
        text, other = other, text
    before, after = _split(_cut(text, room), rng)
    return Canary(
        id=id,
        silo=silo,
        member=rng.random() < 0.5,
        kind=task.kind,
        before=before,
        after=after,
        other=other,
        candidates=candidates,
        index=rng.randrange(count),
    )


def _secret(form: str, number: int) -> str:
    """The `number`-th way to fill a form, 0-based."""
    chosen = {}
    for slot, words in _SLOTS.items():
        number, position = divmod(number, len(words))
        chosen[slot] = words[position]
    return form.format(**chosen)


def _cut(text: str, room: int) -> str:
    """The text cut to `room` characters at a word boundary."""
    if len(text) <= room:
        return text
    # one character more is looked at, so that a word ending exactly at the border stays
    return next((text[: m.start()] for m in reversed(list(re.finditer(r"\s", text[: room + 1])))), text[:room])


def _split(text: str, rng: random.Random) -> tuple[str, str]:
    """The text in two at the end of a random sentence or line, the last included."""
    ends = [m.end() for m in re.finditer(r"[.!?]\s+|\n+", text)]
    end = rng.choice([*ends, len(text)])
    return text[:end].rstrip(), text[end:].lstrip()


def _fresh_id(rng: random.Random) -> str:
    """An id that doesn't tell a canary from a record."""
    return f"{rng.getrandbits(64):016x}"


def _told_apart(ids: list[str], silos: Mapping[str, Sequence[PrivateRecord]], rng: random.Random) -> list[str]:
    """The ids, with others for those that are there twice or that a record has."""
    taken: set[str] = set()
    while True:
        found = set(ids)
        met = {record.id for records in silos.values() for record in records if record.id in found}
        if not met and len(found) == len(ids):
            return ids
        taken |= met
        kept: dict[str, None] = {}
        for id in ids:
            while id in taken or id in kept:
                id = _fresh_id(rng)
            kept[id] = None
        ids = list(kept)
