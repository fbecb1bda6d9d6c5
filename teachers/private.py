"""A silo's teacher under private prediction: an instruction and examples, each text drawn over many records.

The silo's units are dealt out by a draw that never looks at them: some behind the instruction, the others in batches
of the same size. A batch makes one text per label; a unit stands behind its own label's text, so its label is
protected like its text, and all texts of a batch cost what one costs. The instruction is written first, and is then
part of every later prompt: it is the mechanism's output, so it may be shown to anybody.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tutelage.configs.errors import UserError
from tutelage.configs.progress import Bar
from tutelage.configs.records import Example
from tutelage.configs.schema import ClassificationTask, PrivatePredictionPrivacy, Task, TeachConfig
from tutelage.configs.store import canonical_json, write_atomic
from tutelage.privacy.drafts import Draft
from tutelage.privacy.ledger import Allowance
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.privacy.units import Units, split
from tutelage.privacy.vault import PrivateRecord, inside_vault
from tutelage.teachers import prompts
from tutelage.teachers.engines.base import Generation
from tutelage.teachers.engines.private import Batch, Member, PrivateDecoder, PrivateEngine, Public
from tutelage.teachers.instructions import sentences

INSTRUCTION_PART = 0
"""The instruction's number among the parts of a silo; batches of examples are counted from 1."""
_INSTRUCTION_TOKENS = 48
_HEADING_TOKENS = 12
"""Room in a prompt for the heading of the one more example that a record is."""


@dataclass(frozen=True)
class Deal:
    """Which record stands behind what, as ids. Made before anything is read, and kept: no resumed run may deal anew."""

    instruction: tuple[str, ...]
    batches: tuple[tuple[str, ...], ...]

    @classmethod
    def draw(cls, units: Units, batches: int, privacy: PrivatePredictionPrivacy) -> Deal:
        """Deal a silo's units out by the operating system's randomness; an owner is dealt out as one of its records.

        Raises:
            UserError: the silo has too few units.
        """
        batch_units, instruction_units = privacy.batch_units, privacy.instruction_units
        used = units_used(len(units), batches, privacy)
        order = split(units, len(units))[0][:used] if used else []
        ids = [unit.one().id for unit in order]
        rest = ids[instruction_units:]
        starts = range(0, batches * batch_units, batch_units)
        return cls(tuple(ids[:instruction_units]), tuple(tuple(rest[at : at + batch_units]) for at in starts))

    def save(self, path: Path) -> Path:
        """Write it into the vault."""
        inside_vault(path)
        return write_atomic(path, canonical_json(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> Deal:
        """Read back what `save` wrote."""
        inside_vault(path)
        row = json.loads(path.read_text())
        return cls(tuple(row["instruction"]), tuple(map(tuple, row["batches"])))


def units_used(units: int, batches: int, privacy: PrivatePredictionPrivacy) -> int:
    """How many of a silo's units one round takes.

    Raises:
        UserError: it has fewer.
    """
    used = batches * privacy.batch_units + privacy.instruction_units
    if used > units:
        raise UserError(
            f"a round takes {used} units of a silo ({batches} batches of {privacy.batch_units}, and "
            f"{privacy.instruction_units} for the instruction); this one has {units}",
            key="privacy.batch_units",
            remedy="lower it, or teach.prompts_per_label, or privacy.instruction_units",
        )
    return used


class Journal:
    """Texts in the vault as they are written, so that what a killed process had finished is not lost.

    A line per part; a last line that was cut short is dropped, and its part with it.
    """

    def __init__(self, path: Path) -> None:
        inside_vault(path)
        self.path = path

    def add(self, part: int, texts: Sequence[Generation]) -> None:
        """Append a part's texts, and be sure that they are on the disk."""
        line = canonical_json({"part": part, "texts": [[text.text, text.finished] for text in texts]})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as stream:
            torn = stream.tell() > 0 and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n"
            stream.write(b"\n" * torn + line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def read(self) -> dict[int, list[Generation]]:
        """Part -> its texts."""
        found = {}
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n") if self.path.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
                found[int(row["part"])] = [Generation(str(text), bool(finished)) for text, finished in row["texts"]]
            except (ValueError, KeyError, TypeError):
                continue  # cut short
        return found


@dataclass(frozen=True)
class Written:
    """What a teacher wrote under private prediction."""

    drafts: tuple[Draft, ...]
    texts: int
    malformed: int
    lost: int
    """Batches that a killed process had begun: they are spent, and nothing of them is kept."""


def divisors(task: Task, shares: Mapping[str, float], batch_units: int) -> list[float]:
    """B of each of a batch's texts: how many of its units are expected to have that label, at least 1.

    Args:
        task: The task.
        shares: Label -> share of the silo's units, from noised or public counts; empty for equal shares.
        batch_units: Units in a batch.
    """
    if not isinstance(task, ClassificationTask):
        return [float(batch_units)]
    equal = 1 / len(task.labels)
    return [max(1.0, batch_units * shares.get(label, equal)) for label in task.labels]


def mechanisms(rho: float, teach: TeachConfig) -> tuple[PrivatePrediction, PrivatePrediction]:
    """The mechanism of the instruction and that of the examples, each at a cost of ρ for a unit behind it."""
    top_k = teach.top_k or _TOP_K
    instruction, examples = (
        PrivatePrediction.calibrated(rho, temperature=teach.temperature, top_k=top_k, max_tokens=tokens)
        for tokens in (_INSTRUCTION_TOKENS, teach.max_new_tokens)
    )
    return instruction, examples


_TOP_K = 100
"""Where the recipe sets none: so few that what is drawn stays sensible, so many that it stays varied (InvisibleInk)."""


def write_lessons(
    engine: PrivateEngine,
    records: Sequence[PrivateRecord],
    *,
    task: Task,
    teach: TeachConfig,
    privacy: PrivatePredictionPrivacy,
    rho: float,
    shares: Mapping[str, float],
    deal: Deal,
    allowance: Allowance,
    unused: Sequence[int],
    journal: Journal,
    silo: str,
    round: int,
) -> Written:
    """Write a silo's instruction and examples for one round, or finish what a killed process began.

    Args:
        engine: The model.
        records: The silo's.
        task: The task.
        teach: Length, temperature, top-k and the number of batches.
        privacy: Sizes.
        rho: What this may cost any one unit (zCDP); 0: public prompts alone; infinity: nothing is clipped.
        shares: Label -> share of the silo's units, for the divisors.
        deal: Which record stands behind what.
        allowance: Budget for as many parts as there are batches, and one for the instruction.
        unused: The parts of it that are left; the others were written before, or are lost.
        journal: Where texts are kept as they come.
        silo: The silo's name.
        round: 1-based.
    """
    by_id = {record.id: record for record in records}
    instruction, examples = mechanisms(rho, teach)
    left = set(unused)
    if deal.instruction and INSTRUCTION_PART in left:
        behind = [by_id[id] for id in deal.instruction] if rho else []
        _write_instruction(engine, behind, task, privacy, instruction, allowance, journal)
    wordings = [sentences(text.text) for text in journal.read().get(INSTRUCTION_PART, [])]
    advice = next((wording for wording in wordings if wording), None)

    asked = _Asked(engine, task, privacy, shares, advice)
    labels = asked.labels
    work = [
        Batch(part, tuple(asked.member(by_id[id]) for id in ids) if rho else ())
        for part, ids in enumerate(deal.batches, INSTRUCTION_PART + 1)
        if part in left
    ]
    with Bar(len(work) * len(labels), f"  {silo}", "text", leave=False) as bar:

        def keep(part: int, texts: list[Generation]) -> None:
            journal.add(part, texts)
            bar.update(len(texts))

        decoder = _decoder(engine, asked.publics, privacy)
        decoder.write(asked.publics, work, examples, allowance, stop=prompts.STOP, on_written=keep)

    written = journal.read()
    drafts, texts = [], 0
    for part in range(1, len(deal.batches) + 1):
        for label, text in zip(labels, written.get(part, []), strict=False):
            texts += 1
            parsed = prompts.parse_example(task, label, text.text, text.finished)
            if parsed is not None:
                id = f"{silo}-r{round}-{label or 'example'}-{part}"
                drafts.append(Draft(id, "example", *parsed, prompts.VERSION, "private_prediction"))
    malformed = texts - len(drafts)
    if advice:
        id = f"{silo}-r{round}-instruction"
        drafts.append(Draft(id, "instruction", advice, "", prompts.VERSION, "private_prediction"))
    lost = len(deal.batches) - sum(part in written for part in range(1, len(deal.batches) + 1))
    return Written(tuple(drafts), texts, malformed, lost)


_PROBED_RECORDS, _PROBED_TOKENS = 2, 8
_PUSHING = ("the the the the the the the the the the", "1 2 3 4 5 6 7 8 9 10 11 12", "a b a b a b a b a b a b")
"""Invented records that leave little doubt about what comes next, so that scores have a reason to move far. Where no
record's scores reach the clip, a mechanism that doesn't clip looks like one that does."""


def probe(
    engine: PrivateEngine,
    records: Sequence[PrivateRecord],
    *,
    task: Task,
    privacy: PrivatePredictionPrivacy,
    mechanism: PrivatePrediction,
) -> tuple[float, int]:
    """Put the guarantee's claim about one record to the test, with the engine and the mechanism of the lessons.

    Args:
        engine: The model.
        records: Some that are no silo's: what is found is a function of them that nothing protects. A few are taken,
            beside some that are invented.
        task: The task.
        privacy: As for `write_lessons`.
        mechanism: That of the examples; its sensitivity positive and finite.

    Returns:
        The largest shift of a score by one record's absence, as a multiple of what the mechanism may let it be (1, but
        for rounding, where clipping binds; more means that it doesn't clip), and in how many draws it was looked for.
    """
    few = replace(mechanism, max_tokens=min(_PROBED_TOKENS, mechanism.max_tokens))
    asked = _Asked(engine, task, privacy, {}, None)
    pushing = [
        PrivateRecord(f"pushing-{label}-{at}", text, label or text)
        for label in asked.labels
        for at, text in enumerate(_PUSHING)
    ]
    behind = [*records[:_PROBED_RECORDS], *pushing]
    batch = Batch(0, tuple(asked.member(record) for record in behind))
    decoder = _decoder(engine, asked.publics, privacy)
    ratio = decoder.shift(asked.publics, batch, few) / few.sensitivity
    return ratio, len(behind) * few.max_tokens * len(asked.publics)


class _Asked:
    """What the teacher is asked: the public prompt of every label, and a record's place behind its own label's."""

    def __init__(
        self,
        engine: PrivateEngine,
        task: Task,
        privacy: PrivatePredictionPrivacy,
        shares: Mapping[str, float],
        advice: str | None,
    ) -> None:
        self.engine, self.task, self.privacy, self.advice = engine, task, privacy, advice
        self.labels: list[str | None] = list(task.labels) if isinstance(task, ClassificationTask) else [None]
        by = divisors(task, shares, privacy.batch_units)
        self.publics = [
            _public(functools.partial(self._prompt, label), divisor)
            for label, divisor in zip(self.labels, by, strict=True)
        ]

    def member(self, record: PrivateRecord) -> Member:
        label = record.completion if isinstance(self.task, ClassificationTask) else None
        at = self.labels.index(label)
        prompt = self._prompt(label, [_shortened(self.engine, record, self.privacy)])
        return Member(at, prompt[len(self.publics[at].head) :])

    def _prompt(self, label: str | None, references: Sequence[Example]) -> str:
        return prompts.example_prompt(self.task, label, references, self.advice)


def _write_instruction(
    engine: PrivateEngine,
    records: Sequence[PrivateRecord],
    task: Task,
    privacy: PrivatePredictionPrivacy,
    mechanism: PrivatePrediction,
    allowance: Allowance,
    journal: Journal,
) -> None:
    def prompt(references: Sequence[Example]) -> str:
        return engine.chat(*prompts.instruction_request(task, references))

    public = _public(prompt, float(privacy.instruction_units))
    tails = [prompt([_shortened(engine, record, privacy)])[len(public.head) :] for record in records]
    batch = Batch(INSTRUCTION_PART, tuple(Member(0, tail) for tail in tails))
    decoder = _decoder(engine, [public], privacy)
    [texts] = decoder.write([public], [batch], mechanism, allowance, stop="\n")
    journal.add(INSTRUCTION_PART, texts)


def _public(prompt: Callable[[Sequence[Example]], str], divisor: float) -> Public:
    """A prompt without any record, divided where a record would make it another: found with one that is nobody's."""
    public = prompt(())
    other = prompt([Example(id="", prompt="\u00a7", completion="\u00a7")])
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(public, other, strict=False)))
    head = public[: max(public.rfind(" ", 0, alike), public.rfind("\n", 0, alike), 0)]  # not in the middle of a word
    return Public(head, public[len(head) :], divisor)


def _decoder(engine: PrivateEngine, publics: Sequence[Public], privacy: PrivatePredictionPrivacy) -> PrivateDecoder:
    """A decoder whose prompts are as wide as settings and public words say, whatever the records are."""
    widest = max(len(engine.tokenizer(one.tail, add_special_tokens=False)["input_ids"]) for one in publics)
    room = widest + privacy.reference_tokens + _HEADING_TOKENS
    return engine.decoder(room)


def _shortened(engine: PrivateEngine, record: PrivateRecord, privacy: PrivatePredictionPrivacy) -> Example:
    """The record cut to its first tokens, so that its prompt fits the width that all prompts have."""
    example = record.example()
    ids = engine.tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
    if len(ids) <= privacy.reference_tokens:
        return example
    return example.model_copy(update={"prompt": str(engine.tokenizer.decode(ids[: privacy.reference_tokens]))})
