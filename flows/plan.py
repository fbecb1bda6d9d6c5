"""What a run will cost, said before anything runs: rows, prompts, tokens, minutes, memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from tutelage.configs.errors import UserError
from tutelage.configs.models import fetch_mail, load_model, resolve_model
from tutelage.configs.schema import (
    CascadeRoute,
    ClassificationTask,
    FormalPrivacy,
    LabelRoute,
    OpenAIConfig,
    PrivatePredictionPrivacy,
    Recipe,
)
from tutelage.flows.bargain import Bargain, bargain
from tutelage.privacy.partition import Partition, partition
from tutelage.privacy.sources import Loaded, load_records
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers import evolution

# A training step is a forward and a backward pass; measured 2.9 forward passes on two AVX2 cores.
_TRAIN_FORWARDS = 2.9
# Loading libraries and models, embedding, screening, reporting.
_FIXED_S = 60.0
_EMBEDDINGS_PER_S = 25.0
_SAMPLE = 200


@dataclass(frozen=True)
class PlannedSpending:
    """What a route's teachers may cost, in its unit, from the mean length of records and drafts at their longest."""

    unit: str
    low: float
    """All by the cheapest, after the calibration."""
    high: float
    """Everybody who may be asked asked for every draft, as often as may be; never above the budget."""
    dearest: float
    """All by the dearest, once."""
    budget: float | None


@dataclass(frozen=True)
class Plan:
    """The cost of a whole run. Times are estimates from a measurement of a few seconds on this machine."""

    records_per_silo: dict[str, int]
    test_records: int
    nonmember_records: int
    prompts: int
    drafts: int
    prompt_tokens: int
    generated_tokens: int
    training_tokens: int
    scored_tokens: int
    teach_minutes: float
    train_minutes: float
    measure_minutes: float
    total_minutes: float
    memory_gib: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    measured_with: str
    """The engine that the speeds were measured with, and the times estimated by."""
    engine: str
    """The engine that the recipe's teachers write with."""
    spending: PlannedSpending | None
    """What several teachers may cost; None where each silo has one."""
    bargain: Bargain | None
    """What ε buys; None where lessons are screened only."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def plan(recipe: Recipe) -> Plan:
    """Read and deal out the data as a run would, and estimate the cost. Writes nothing but the download cache.

    Raises:
        UserError: whatever a run would complain about in the data or the models; or its silos are elsewhere, or its
            teachers on a server.
    """
    if recipe.federation:
        raise UserError(
            "the silos are elsewhere, and nobody here knows how many records they have", key="federation",
            remedy="plan the same recipe without it, on records like theirs",
        )  # fmt: skip
    dearest = recipe.teach.staff[-1]
    if isinstance(dearest.engine, OpenAIConfig):
        raise UserError(
            "how fast a server writes can't be measured here", key="teach.engine",
            remedy="--set teach.engine=transformers plans the rest, if the model can be had here",
        )  # fmt: skip
    loaded = load_records(recipe.data, recipe.task, fetch_mail)
    dealt = partition(loaded, recipe.data, recipe.task, recipe.seed, recipe.min_records_per_label)
    model, tokenizer = load_model(resolve_model(dearest.model), dtype="auto")
    length = _mean_tokens(dealt, tokenizer)
    prefill, decode = _rates(model, recipe.teach.batch_rows)
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

    teach, silos = recipe.teach, len(dealt.silos)
    labels = len(recipe.task.labels) if isinstance(recipe.task, ClassificationTask) else 1
    prompts = recipe.rounds * silos * labels * teach.prompts_per_label
    drafts = prompts * teach.drafts_per_prompt
    kept = teach.keep_per_prompt
    prompt_tokens = int(prompts * (teach.references_per_prompt * length + 40))
    generated = drafts * teach.max_new_tokens
    students = 2 if recipe.measure.originals else 1
    formal = recipe.formal
    if formal:
        times = 1 + sum(epsilon > 0 for epsilon in formal.brackets)  # at 0 there is next to nothing to do
        students += len(formal.brackets)
        drafts, kept = prompts, 1
        if isinstance(formal, PrivatePredictionPrivacy):
            batches = recipe.rounds * silos * teach.prompts_per_label
            rows = times * batches * (formal.batch_units + labels)
            prompts = rows
            prompt_tokens = rows * (formal.reference_tokens + 12)
            generated = rows * teach.max_new_tokens
        else:
            texts = labels * formal.candidates_per_label * (formal.iterations + 1) // 2
            prompts = times * recipe.rounds * silos * texts
            prompt_tokens, generated = int(prompts * (length + 40)), prompts * teach.max_new_tokens
    if recipe.structure:  # an answer is a text of its own, after all that its draft is so far
        again = prompt_tokens // prompts + teach.max_new_tokens
        prompt_tokens += again * generated // teach.max_new_tokens
        generated *= 2
    # What rounds have released adds up, so later rounds learn from more.
    lessons = sum(
        min(
            recipe.aggregate.lessons_per_class * labels,
            round * silos * labels * teach.prompts_per_label * kept,
        )
        for round in range(1, recipe.rounds + 1)
    )
    row = min(length + 60, recipe.student.max_tokens)
    training = int(lessons * recipe.student.epochs * row * students)
    # zero-shot, few-shot, instruction and the students, each on the test set and a calibration handful
    scored = int(recipe.rounds * (3 + students) * (len(dealt.test) + 32) * row)
    attack = recipe.attack
    ranked = min(attack.ranked_canaries, attack.canaries) * attack.canary_candidates * length / 2
    # student and base on both; the attacker's model, the bare base and an untaught student on the controls
    scored += int(recipe.rounds * (2 * (ranked + attack.canaries * 2 * row) + 5 * 2 * attack.members * row))
    if "auxiliary" in attack.run:
        training += int(lessons * row * 2)

    teach_s = prompt_tokens / prefill + generated / decode
    train_s = training * _TRAIN_FORWARDS / prefill
    measure_s = scored / prefill + sum(map(len, dealt.silos.values())) / _EMBEDDINGS_PER_S
    return Plan(
        records_per_silo={name: len(records) for name, records in dealt.silos.items()},
        test_records=len(dealt.test),
        nonmember_records=len(dealt.nonmembers),
        prompts=prompts,
        drafts=drafts,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated,
        training_tokens=training,
        scored_tokens=scored,
        teach_minutes=teach_s / 60,
        train_minutes=train_s / 60,
        measure_minutes=measure_s / 60,
        total_minutes=(teach_s + train_s + measure_s + _FIXED_S) / 60,
        # teacher, student and its copy being merged; the rest of the process; a batch of logits and caches
        memory_gib=round(3 * parameters / 2**30 + 1.5 + teach.batch_rows * 0.02, 1),
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        measured_with="transformers",
        engine=dearest.engine.kind,
        spending=_spending(recipe, recipe.rounds * silos, prompts, prompt_tokens, generated),
        bargain=bargain(recipe, min(_units(records, loaded, formal) for records in dealt.silos.values())),
    )


def _spending(recipe: Recipe, parts: int, prompts: int, read: int, drawn: int) -> PlannedSpending | None:
    """Of `parts` silos and rounds together, from the prompts and tokens of one pass over them by one teacher."""
    route, staff = recipe.teach.routed, recipe.teach.staff
    if route is None:
        return None
    whole = [one.cost(read, drawn) for one in staff]
    tried = 1 if isinstance(route, LabelRoute) else min(1, route.calibration_prompts * parts / prompts)
    low = min(whole) * Fraction(1 - tried) + sum(whole) * Fraction(tried)
    times = 1 + recipe.teach.max_retries if recipe.formal is None else evolution.TRIES
    every = sum(whole, Fraction(0))
    asked = every if isinstance(route, CascadeRoute) else max(whole) + every * Fraction(tried)
    high = asked * times
    if route.budget is not None:
        low, high = (min(one, Fraction(str(route.budget))) for one in (low, high))
    return PlannedSpending(route.unit, float(low), float(high), float(max(whole)), route.budget)


def _units(records: Sequence[PrivateRecord], loaded: Loaded, formal: FormalPrivacy | None) -> int:
    owners = formal is not None and formal.unit == "owner"
    return len({loaded.owner_of[record.id] for record in records}) if owners else len(records)


def _mean_tokens(dealt: Partition, tokenizer: Any) -> float:
    records = itertools.chain.from_iterable(dealt.silos.values())
    texts = [record.text for record in itertools.islice(records, _SAMPLE)]
    return sum(len(ids) for ids in tokenizer(texts)["input_ids"]) / len(texts)


def _rates(model: Any, batch_rows: int) -> tuple[float, float]:
    """Tokens per second this machine reads and writes with this model, from a few batches."""
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (8, 96), device=model.device)
    last = torch.randint(vocabulary, (batch_rows, 1), device=model.device)
    with torch.inference_mode():
        model(ids[:1], logits_to_keep=1)
        started = time.perf_counter()
        model(ids, logits_to_keep=1)
        prefill = ids.numel() / (time.perf_counter() - started)
        cache = model(last, use_cache=True, logits_to_keep=1).past_key_values
        started = time.perf_counter()
        for _ in range(3):
            model(last, past_key_values=cache, use_cache=True, logits_to_keep=1)
        decode = 3 * batch_rows / (time.perf_counter() - started)
    return prefill, decode
