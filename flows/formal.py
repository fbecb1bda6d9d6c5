"""What the stages do under a formal mechanism: open the silo's ledger, reserve, let the mechanism run, certify.

Everything that leaves a silo here was reserved for in its ledger before a private token was read. Brackets
do the same work beside it at other ε: at 0 nothing private is read, and what the others write stays in the vault.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, cast

import numpy as np

from tutelage.configs.records import Certificate, Example, Spend
from tutelage.configs.schema import ClassificationTask, PrivateEvolutionPrivacy, PrivatePredictionPrivacy
from tutelage.configs.store import file_digest, write_atomic
from tutelage.flows import layout
from tutelage.flows.stage import Run
from tutelage.privacy import accounting, certificate
from tutelage.privacy.allocation import Allocation
from tutelage.privacy.drafts import Draft
from tutelage.privacy.histogram import NoisyHistogram, noise_of
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.ledger import Allowance, Internal, Reservation
from tutelage.privacy.ledgers import Ledgers
from tutelage.privacy.similarity import embed
from tutelage.privacy.units import Units, by_owner, by_record
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers import aggregate as aggregation
from tutelage.teachers import evolution, private
from tutelage.teachers.engines.private import PrivateEngine
from tutelage.teachers.teacher import Solo, Teacher

Facts = dict[str, Any]


class Silo:
    """One silo under a formal mechanism: its units, its ledger and what each step may cost.

    Args:
        run: The run.
        name: The silo's.
        bracket: Instead of the asked ε another, as text: at "0" nothing private is read, at others nothing released.
    """

    def __init__(self, run: Run, name: str, bracket: str | None = None) -> None:
        privacy = run.recipe.formal
        assert privacy is not None
        self.run, self.recipe, self.privacy, self.name, self.bracket = run, run.recipe, privacy, name, bracket
        self.records = layout.records(run, name)
        owner_of = layout.owners(run, name) if privacy.unit == "owner" else None
        self.units = by_record(self.records) if owner_of is None else by_owner(self.records, owner_of)
        epsilon = None if bracket is None else float(bracket)
        self.allocation = Allocation.of(self.recipe, len(self.units), epsilon)
        self.ledger = Ledgers(layout.ledgers_path(run)).open(
            self.records,
            unit=privacy.unit,
            units=len(self.units),
            delta=self.allocation.delta,
            budget=privacy.epsilon if privacy.budget is None else privacy.budget,
            owner_of=owner_of,
        )

    def allow(
        self, what: str, rho: float, round: int, parts: int = 1, **details: str | int
    ) -> tuple[Allowance, list[int]]:
        """Budget for a step and the parts of it that are left; in a bracket a promise that nothing is released."""
        purpose = {"run": self.run.id, "silo": self.name, "round": round, "what": what, **details}
        if self.bracket == "0":
            return Internal(), list(range(parts))
        if self.bracket:
            return self.ledger.internal(bracket=self.bracket, **purpose), list(range(parts))
        reservation = self.ledger.reserve(_event(rho), parts, mechanism=self.privacy.mechanism, **purpose)
        return reservation, reservation.unused

    def label_shares(self) -> dict[str, float]:
        """Label -> share of the silo's units: noised once in a run, or public. Empty: nothing is known."""
        task = self.recipe.task
        if not isinstance(task, ClassificationTask) or self.bracket == "0":
            return {}
        labels = list(task.labels)
        path = layout.label_counts_path(self.run, self.name)
        if self.privacy.label_counts == "public" or self.bracket == "inf":
            counts = _counts(self.units, labels)
        elif path.exists() and self.bracket is None:
            counts = json.loads(path.read_text())
        elif self.allocation.label_counts == 0:
            return {}
        else:
            histogram = NoisyHistogram.calibrated(self.allocation.label_counts)
            allowance, left = self.allow("label_counts", self.allocation.label_counts, 1)  # once, whatever the round
            if not left:
                return {}  # spent by a process that was killed before it could write them down
            choices = [labels.index(unit.one().completion) for unit in self.units]
            counts = histogram.release(choices, len(labels), allowance)
            if self.bracket is None:
                write_atomic(path, json.dumps(counts), mode=0o600)
        floored = [max(1.0, float(count)) for count in counts]
        return {label: count / sum(floored) for label, count in zip(labels, floored, strict=True)}


def teach(run: Run, teacher: Teacher, round: int, name: str, bracket: str | None = None) -> tuple[list[Draft], Facts]:
    """A silo's drafts of one round, made under its mechanism (or under one of the brackets)."""
    silo = Silo(run, name, bracket)
    if isinstance(silo.privacy, PrivatePredictionPrivacy):
        assert isinstance(teacher, Solo)  # of a route, `Recipe._check_route`
        # `Recipe.check_teacher` lets no other engine in.
        return _predict(silo, silo.privacy, cast(PrivateEngine, teacher.engine), round)
    return _evolve(silo, silo.privacy, teacher, round)


def _predict(
    silo: Silo, privacy: PrivatePredictionPrivacy, engine: PrivateEngine, round: int
) -> tuple[list[Draft], Facts]:
    run, teach, name = silo.run, silo.recipe.teach, silo.name
    shares = silo.label_shares()
    path = layout.deal_path(run, round, name)
    if not path.exists():  # the brackets take the same deal
        private.Deal.draw(silo.units, teach.prompts_per_label, privacy).save(path)
    deal = private.Deal.load(path)
    rho = silo.allocation.teach
    allowance, left = silo.allow("teach", rho, round, len(deal.batches) + 1, deal=file_digest(path)[:16])
    written = private.write_lessons(
        engine,
        silo.records,
        task=silo.recipe.task,
        teach=teach,
        privacy=privacy,
        rho=rho,
        shares=shares,
        deal=deal,
        allowance=allowance,
        unused=left if silo.bracket is None else _unwritten(left, silo, round),
        journal=private.Journal(layout.journal_path(run, round, name, silo.bracket)),
        silo=name,
        round=round,
    )
    if isinstance(allowance, Reservation):
        allowance.settle(texts=written.texts, lost=written.lost)
    _, examples = private.mechanisms(rho, teach)
    divisors = private.divisors(silo.recipe.task, shares, privacy.batch_units)
    parameters: dict[str, float | int | str] = {
        "sensitivity": examples.sensitivity,
        "temperature": examples.temperature,
        "top_k": examples.top_k,
        "max_tokens": examples.max_tokens,
        "batch_units": privacy.batch_units,
        "instruction_units": privacy.instruction_units,
    }
    labels = list(silo.recipe.task.labels) if isinstance(silo.recipe.task, ClassificationTask) else [""]
    for label, divisor in zip(labels, divisors, strict=True):
        parameters |= {f"divisor {label}".strip(): divisor, f"clip {label}".strip(): examples.clip(divisor)}
    facts = {
        "prompts": len(deal.batches) * len(labels),
        "sampled": written.texts,
        "malformed": written.malformed,
        "dropped": {"lost_with_a_killed_process": written.lost * len(labels)} if written.lost else {},
        "parameters": parameters if silo.bracket is None else {},
    }
    return list(written.drafts), facts


def _unwritten(parts: Sequence[int], silo: Silo, round: int) -> list[int]:
    """A bracket has no reservation to say what was written before: its journal does."""
    done = private.Journal(layout.journal_path(silo.run, round, silo.name, silo.bracket)).read()
    return [part for part in parts if part not in done]


def _evolve(silo: Silo, privacy: PrivateEvolutionPrivacy, teacher: Teacher, round: int) -> tuple[list[Draft], Facts]:
    rho = silo.allocation.teach / privacy.iterations
    # All votes are paid for before the first, so that a round is not begun which cannot be finished.
    allowances = [silo.allow("teach", rho, round, iteration=i) for i in range(privacy.iterations)] if rho else []
    units = [unit.one() for unit in silo.units]
    labelled = isinstance(silo.recipe.task, ClassificationTask)
    unit_labels = [unit.completion if labelled else None for unit in units]
    if labelled:
        embeddings = _unit_embeddings(silo, units)
    else:  # the index holds a record's two halves apart
        embeddings = embed([evolution.text_of(silo.recipe.task, unit.example()) for unit in units], alone=True)

    def vote(iteration: int, texts: Sequence[str], labels: Sequence[str | None]) -> list[int] | None:
        if not rho:
            return [0] * len(texts)
        if not allowances[iteration][1]:
            return None
        choices = evolution.nearest(texts, labels, embeddings, unit_labels)
        return _count(choices, len(texts), rho, allowances[iteration][0])

    evolved = evolution.evolve(
        teacher,
        task=silo.recipe.task,
        teach=silo.recipe.teach,
        config=privacy,
        vote=vote,
        silo=silo.name,
        round=round,
        seed=silo.recipe.seed,
    )
    parameters = {"sigma": noise_of(rho), "iterations": privacy.iterations} if rho and silo.bracket is None else {}
    facts = {
        "prompts": evolved.sampled,  # each text has a prompt of its own
        "sampled": evolved.sampled,
        "malformed": evolved.malformed,
        "dropped": {},
        "parameters": parameters,
    }
    return list(evolved.drafts), facts


def vote(run: Run, round: int, name: str) -> Facts:
    """A silo's noised votes for the released lessons."""
    return {"votes": _vote(Silo(run, name), round, layout.all_lessons(run, round).examples())}


def vote_bracket(run: Run, round: int, name: str, bracket: str, candidates: Sequence[Example]) -> aggregation.Ballot:
    """A silo's votes for what a bracket's teachers wrote: none at ε = 0, and else for the vault."""
    return _vote(Silo(run, name, bracket), round, candidates)


def _vote(silo: Silo, round: int, candidates: Sequence[Example]) -> aggregation.Ballot:
    rho = silo.allocation.vote
    if not rho:
        return {}
    allowance, left = silo.allow("vote", rho, round)
    if not left:
        return {}  # spent by a process that was killed before it could write them down
    units = [unit.one() for unit in silo.units]
    bins, choices = aggregation.choices(units, _unit_embeddings(silo, units), candidates, silo.recipe.task)
    return aggregation.ballot(bins, _count(choices, len(bins), rho, allowance))


def certify(run: Run, round: int, name: str) -> Certificate:
    """What a silo has given away at most, by the end of a round; signed."""
    silo, privacy = Silo(run, name), run.recipe.formal
    assert privacy is not None
    spends = []
    for entry in silo.ledger.entries():
        purpose = entry.fields.get("purpose", {})
        if entry.kind == "reserve" and purpose["run"] == run.id and purpose["round"] <= round:
            what, at = purpose["what"], purpose["round"]
            taught = run.facts(f"round-{at}/teach-{name}")["parameters"] if what == "teach" else {}
            parameters = taught or {"sigma": noise_of(accounting.rho_of(entry.event))}
            spends.append(
                Spend(
                    what=what, round=at, event=entry.fields["event"], parts=entry.fields["parts"], parameters=parameters
                )
            )
    made = Certificate(
        run_id=run.id,
        silo=name,
        round=round,
        mechanism=privacy.mechanism,
        unit=privacy.unit,
        units=len(silo.units),
        adjacency=accounting.ADJACENCY,
        delta=silo.allocation.delta,
        epsilon=accounting.epsilon([accounting.event_from_json(one.event) for one in spends], silo.allocation.delta),
        epsilon_asked=privacy.epsilon,
        epsilon_ledger=silo.ledger.spent(),
        spends=tuple(spends),
        not_charged=_not_charged(silo),
        ledger=silo.ledger.path.stem,
        ledger_head=silo.ledger.head,
        lessons_digest=file_digest(layout.released_path(run, round, name)),
        version=version("tutelage"),
        signature="",
    )
    return certificate.sign(made, SiloKey.load(layout.key_path(run, name)))


def allocation(run: Run, name: str) -> Allocation:
    """What each step may cost a silo, also one that is elsewhere and has said how many units it has."""
    if run.recipe.federation:
        return Allocation.of(run.recipe, run.records[name])
    return Silo(run, name).allocation


def note_internal(run: Run, name: str, what: str, round: int) -> None:
    """Write into a silo's ledger that something is computed from its records which is not protected and stays there."""
    if run.recipe.formal:
        Silo(run, name).ledger.internal(run=run.id, silo=name, round=round, what=what)


def _not_charged(silo: Silo) -> tuple[str, ...]:
    said = [
        f"The number of units, {len(silo.units)}, is public: replaced by null, a unit leaves its place.",
        "Figures marked internal (overlap with the records, the student at ε = ∞, the student on originals) are "
        "computed from private records without protection and stay with the silos; the gate's verdict rests on some.",
    ]
    if isinstance(silo.recipe.task, ClassificationTask) and silo.privacy.label_counts == "public":
        said.append("How often each label occurs in the silo is declared public by the recipe (privacy.label_counts).")
    return tuple(said)


# ---- helpers ----------------------------------------------------------------------------------------------------


def _event(rho: float) -> Any:
    import dp_accounting as dp

    return dp.ZCDpEvent(rho) if rho else dp.NoOpDpEvent()


def _count(choices: Sequence[int | None], bins: int, rho: float, allowance: Allowance) -> list[int]:
    """Noised counts; exact ones at ε = ∞, which are for the vault."""
    if rho == float("inf"):
        exact = Counter(choice for choice in choices if choice is not None)
        return [exact[choice] for choice in range(bins)]
    return NoisyHistogram.calibrated(rho).release(choices, bins, allowance)


def _counts(units: Units, labels: Sequence[str]) -> list[int]:
    exact = Counter(unit.one().completion for unit in units)
    return [exact[label] for label in labels]


def _unit_embeddings(silo: Silo, units: Sequence[PrivateRecord]) -> np.ndarray:
    """(units, 384): the embedding of the record that each unit is represented by."""
    row = {record.id: i for i, record in enumerate(silo.records)}
    return layout.embeddings(silo.run, silo.name)[[row[unit.id] for unit in units]]
