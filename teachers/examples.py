"""A silo's teacher writes synthetic examples from a few private references at a time.

Small teachers wander off the label they were asked for, some labels far more than others, so each prompt is sampled
several times, again while too few drafts fit, and only the drafts most typical of their label are kept. "Typical" is
the opinion of a TF-IDF + logistic regression classifier fitted on the silo's own records: far cheaper than asking the
language model under every label's prompt. It looks at private data, so it is fine for screened lessons and has no
place in a formal mechanism.
"""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tutelage.configs.progress import Bar
from tutelage.configs.schema import ClassificationTask, Task, TeachConfig
from tutelage.privacy.drafts import Draft
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers import prompts
from tutelage.teachers.answers import Request, steps
from tutelage.teachers.engines.base import Generation, Sampling
from tutelage.teachers.teacher import Teacher

_MOST_FITTED = 20_000
"""Records that a classifier is fitted on at most, dealt over the labels: so many take some 60 MiB."""


@dataclass(frozen=True)
class Written:
    """What a teacher wrote, and how much went wrong on the way."""

    drafts: tuple[Draft, ...]
    prompts: int
    """Distinct prompts sampled."""
    sampled: int
    """Texts sampled, retries included."""
    malformed: int
    off_label: int
    """Well formed, but the silo's classifier takes them for another label."""
    not_kept: int
    """Beyond `keep_per_prompt`."""


@dataclass(frozen=True)
class _Slot:
    """One prompt to be sampled."""

    id: str
    label: str | None
    prompt: str = field(repr=False)


def write_examples(
    teacher: Teacher,
    records: Sequence[PrivateRecord],
    *,
    task: Task,
    config: TeachConfig,
    topics: dict[str, float],
    silo: str,
    round: int,
    seed: int,
) -> Written:
    """Write a silo's drafts for one round.

    Args:
        teacher: Who continues the prompts.
        records: The silo's private records.
        task: The task.
        config: The recipe's `teach` section.
        topics: Share of the prompts each label gets; empty for equal shares (and for generation tasks).
        silo: Its name.
        round: The round, from 1.
        seed: The recipe's seed.
    """
    # Seeding with a string is stable across processes; the silo and round keep the streams apart.
    draw = random.Random(f"{seed}/{silo}/{round}/references")
    slots = _slots(records, task, config, topics, silo, round, draw)
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.top_k, prompts.STOP)
    typical = typicality(records, task)
    found: dict[str, list[Draft]] = {slot.id: [] for slot in slots}
    fitting: dict[str, list[Draft]] = {}
    tried = dict.fromkeys(found, 0)
    pending = slots
    with Bar(len(slots) * config.drafts_per_prompt * steps(task), f"teach {silo}", "draft") as bar:
        for attempt in range(config.max_retries + 1):
            generations = teacher.write(
                [Request(slot.label, slot.prompt) for slot in pending],
                config.drafts_per_prompt,
                sampling,
                random.Random(f"{seed}/{silo}/{round}/{attempt}").getrandbits(48),
                bar.update,
            )
            for slot, texts in zip(pending, generations, strict=True):
                found[slot.id] += _parse(task, slot, texts, tried[slot.id])
                tried[slot.id] += len(texts)
                fitting[slot.id] = _fitting(found[slot.id], slot.label, typical)
            pending = [slot for slot in pending if len(fitting[slot.id]) < config.keep_per_prompt]
            if not pending or attempt == config.max_retries:
                break
            bar.grow(len(pending) * config.drafts_per_prompt * steps(task))
    sampled = sum(tried.values())
    parsed, fits = sum(map(len, found.values())), sum(map(len, fitting.values()))
    drafts = tuple(draft for slot in slots for draft in fitting[slot.id][: config.keep_per_prompt])
    return Written(drafts, len(slots), sampled, sampled - parsed, parsed - fits, fits - len(drafts))


def _slots(
    records: Sequence[PrivateRecord],
    task: Task,
    config: TeachConfig,
    topics: dict[str, float],
    silo: str,
    round: int,
    draw: random.Random,
) -> list[_Slot]:
    """The prompts of one silo and round, each with its own sample of references."""
    labels: list[str | None] = list(task.labels) if isinstance(task, ClassificationTask) else [None]
    slots = []
    for label in labels:
        pool = array("q", (row for row, one in enumerate(records) if label is None or one.completion == label))
        share = topics.get(label or "", 1 / len(labels))
        count = min(config.references_per_prompt, len(pool))
        deck: list[int] = []
        for i in range(max(1, round_half_up(config.prompts_per_label * len(labels) * share))):
            if len(deck) < count:  # every record serves once before any serves twice
                deck += sorted(draw.sample(pool, len(pool)), key=lambda row: row in deck)
            references, deck = deck[:count], deck[count:]
            prompt = prompts.example_prompt(task, label, [records[row].example() for row in references])
            slots.append(_Slot(f"{silo}-r{round}-{label or 'example'}-{i}", label, prompt))
    return slots


def round_half_up(value: float) -> int:
    """Round to the nearest whole number, halves up (Python's own `round` sends 2.5 to 2)."""
    return int(value + 0.5)


def _parse(task: Task, slot: _Slot, texts: Sequence[Generation], first: int) -> list[Draft]:
    """The well-formed drafts among a slot's texts, numbered from `first`."""
    drafts = []
    for j, generation in enumerate(texts, first):
        parsed = prompts.parse_example(task, slot.label, generation.text, generation.finished)
        if parsed is not None:
            drafts.append(Draft(f"{slot.id}-{j}", "example", parsed[0], parsed[1], prompts.VERSION))
    return drafts


class Typicality:
    """Probability of a label given a text, by a classifier fitted on the silo's own records."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self.model = make_pipeline(
            TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)),
            LogisticRegression(C=10, max_iter=1000, class_weight="balanced"),
        ).fit(list(texts), list(labels))

    def __call__(self, drafts: Sequence[tuple[str, str]]) -> list[float]:
        """See `scoring.Scorer`. A label that the silo has no record of scores 0."""
        known = list(self.model.classes_)
        if not drafts:
            return []
        rows = self.model.predict_proba([text for text, _ in drafts])
        shares = [dict(zip(known, row, strict=True)) for row in rows]
        return [float(share.get(own, 0.0)) for share, (_, own) in zip(shares, drafts, strict=True)]


def typicality(records: Sequence[PrivateRecord], task: Task) -> Typicality | None:
    """A silo's own classifier, fitted on some thousands of its records; None of no two labels to tell apart."""
    if not isinstance(task, ClassificationTask):
        return None
    rows: dict[str, array[int]] = defaultdict(lambda: array("q"))
    for row, record in enumerate(records):
        rows[record.completion].append(row)
    if len(rows) < 2:
        return None
    draw, most = random.Random(0), _MOST_FITTED // len(rows)
    chosen = sorted(row for some in rows.values() for row in (draw.sample(some, most) if len(some) > most else some))
    fitted = [records[row] for row in chosen]
    return Typicality([record.text for record in fitted], [record.completion for record in fitted])


def _fitting(drafts: list[Draft], label: str | None, typical: Typicality | None) -> list[Draft]:
    """The drafts the classifier takes for their own label, the most typical first."""
    if typical is None or label is None or label not in typical.model.classes_ or not drafts:
        return drafts
    chance = 1 / len(typical.model.classes_)
    scores = typical([(draft.prompt, label) for draft in drafts])
    ranked = sorted(zip(scores, drafts, strict=True), key=lambda pair: -pair[0])
    return [draft for score, draft in ranked if score > chance]
