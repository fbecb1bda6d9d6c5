"""What the worlds of `audit power` are made of: mails, a base trained on others of them, and what it writes."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.configs.errors import UserError
from tutelage.configs.models import cache_dir, fetch_mail
from tutelage.configs.records import Example
from tutelage.configs.schema import ClassificationTask, DataConfig, GenerationTask
from tutelage.configs.store import canonical_json, digest, write_atomic
from tutelage.privacy import similarity
from tutelage.privacy.near_duplicates import near_duplicate_groups
from tutelage.privacy.sources import load_records
from tutelage.privacy.vault import PrivateRecord
from tutelage.students import pocket
from tutelage.teachers import prompts
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.engines.transformers import TransformersEngine

VERSION = 1
"""Raised when the base, or what it writes, would be another."""
MAX_CHARS = 160
_TOKENS, _WRITTEN, _DRAFTS = 64, 400, 16
"""Length of what the pocket model writes, and how many texts of each label a world may draw from."""


@dataclass(frozen=True)
class Ground:
    """The mails that worlds are made of, the base that was trained on others of them, and what it writes."""

    base: Path
    records: dict[str, list[PrivateRecord]]
    """By label; no two are near-duplicates."""
    written: dict[str, list[str]]
    embed: Callable[[Sequence[str]], np.ndarray]

    def draw(self, rng: random.Random, count: int) -> list[PrivateRecord]:
        """Different records in random order, as many of each label."""
        per_label = -(-count // len(self.records))
        drawn = [record for pool in self.records.values() for record in rng.sample(pool, min(per_label, len(pool)))]
        if len(drawn) < count:
            raise UserError(
                f"a world takes {count} mails, as many of each label; there are {len(drawn)}",
                key="attack.members",
                remedy="lower it, or attack.canaries, or privacy.batch_units",
            )
        rng.shuffle(drawn)
        return drawn[:count]

    def lessons(self, rng: random.Random, per_label: int) -> list[Example]:
        """What a teacher that never saw a silo might write."""
        drawn = [(label, text) for label, pool in self.written.items() for text in rng.sample(pool, per_label)]
        rng.shuffle(drawn)
        return [
            Example(id=f"lesson-{at}", prompt=ASKED[label], completion=text) for at, (label, text) in enumerate(drawn)
        ]


LABELS = {"spam": "unwanted", "ham": "wanted"}
ASKED = {label: f"Write a {label} e-mail." for label in LABELS}
STUDENT_TASK = GenerationTask(description="You write e-mails.", text_noun="e-mail")
"""Students learn texts here, not labels: what they could remember is then all of a record."""
INSTRUCTION = prompts.public_instruction(STUDENT_TASK)
TEACHER_TASK = ClassificationTask(description="Sort e-mails.", text_noun="e-mail", labels=LABELS)


def shown(records: Sequence[PrivateRecord]) -> list[PrivateRecord]:
    """Records as a teacher has them: a text and its label."""
    label_of = {asked: label for label, asked in ASKED.items()}
    return [PrivateRecord(record.id, record.completion, label_of[record.text]) for record in records]


@functools.lru_cache(maxsize=1)
def ground() -> Ground:
    """Load the mails, and the base that goes with them; the first time it is trained."""
    loaded = load_records(DataConfig(max_chars=MAX_CHARS), TEACHER_TASK, fetch_mail).records
    groups = near_duplicate_groups([record.text for record in loaded], threshold=0.5).tolist()
    one_each = {group: record for group, record in zip(reversed(groups), reversed(loaded), strict=True)}
    records = sorted(one_each.values(), key=lambda record: record.id)
    random.Random(0).shuffle(records)
    public, rest = records[::3], [record for at, record in enumerate(records) if at % 3]
    examples = [record.example() for record in public]
    version = digest([pocket.VERSION, VERSION, LABELS, [one.id for one in public]])[:16]
    base = cache_dir() / f"pocket-{version}"
    written = base / "written.json"
    if not written.exists():
        pocket.make_pocket_model(examples, base)
        texts = _write(TransformersEngine(base, batch_rows=64))
        write_atomic(written, canonical_json(texts) + "\n")
    by_label: dict[str, list[PrivateRecord]] = {label: [] for label in LABELS}
    for record in rest:
        by_label[record.completion].append(PrivateRecord(record.id, ASKED[record.completion], record.text))
    return Ground(base, by_label, json.loads(written.read_text()), _Remembered())


def _write(engine: TransformersEngine) -> dict[str, list[str]]:
    sampling = Sampling(_TOKENS, temperature=0.8, top_p=1.0, top_k=50, stop=prompts.STOP)
    texts = {}
    for label in LABELS:
        # drafts of one prompt are computed in one row, whose cost grows with the square of their number
        found = engine.generate([pocket.heading(label)] * (2 * _WRITTEN // _DRAFTS), _DRAFTS, sampling, seed=0)
        kept = (
            prompts.parse_example(TEACHER_TASK, label, one.text, one.finished) for drafts in found for one in drafts
        )
        texts[label] = [one[0] for one in kept if one and len(one[0].split()) >= 6][:_WRITTEN]
    return texts


class _Remembered:
    """Sentence embeddings, each computed once: worlds are made of the same texts again and again."""

    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        self.known |= dict(zip(new, similarity.embed(new), strict=True))
        return np.stack([self.known[text] for text in texts]) if texts else np.zeros((0, similarity.EMBEDDING_DIM))
