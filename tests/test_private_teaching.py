"""A teacher under private prediction: what is dealt, what is kept, and what a killed process leaves."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import random
import secrets
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
import torch
from forked import ending
from tiny_model import make_tiny_model

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.schema import ClassificationTask, GenerationTask, PrivatePredictionPrivacy, Task, TeachConfig
from tutelage.privacy import accounting
from tutelage.privacy.ledger import Internal, Ledger, Terms
from tutelage.privacy.units import by_record
from tutelage.privacy.vault import PrivateRecord
from tutelage.teachers import prompts
from tutelage.teachers.engines.base import Generation
from tutelage.teachers.engines.transformers import TransformersEngine
from tutelage.teachers.private import Deal, Journal, Written, divisors, mechanisms, write_lessons

LABELS = ClassificationTask(
    description="Sort mail.", labels={"spam": "bulk mail", "ham": "a wanted e-mail"}, text_noun="e-mail"
)
QUESTIONS = GenerationTask(description="Answer.")
TEACH = TeachConfig(prompts_per_label=5, max_new_tokens=8, temperature=1.0, batch_rows=10)
PRIVACY = PrivatePredictionPrivacy(
    mechanism="private_prediction", epsilon=4, batch_units=3, instruction_units=2, reference_tokens=8
)
RHO = 0.3


def records(count: int = 20, word: str = "mail") -> list[PrivateRecord]:
    return [PrivateRecord(f"r{i}", f"{word} number {i}", ("spam", "ham")[i % 3 == 0]) for i in range(count)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return TransformersEngine(make_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), 10)


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    return tmp_path / "vault"


def deal_of(count: int = 20) -> Deal:
    return Deal.draw(by_record(records(count)), TEACH.prompts_per_label, PRIVACY)


def teach(engine: TransformersEngine, vault: Path, deal: Deal, **changes: Any) -> Written:
    options: dict[str, Any] = {
        "records": records(),
        "task": LABELS,
        "teach": TEACH,
        "privacy": PRIVACY,
        "rho": RHO,
        "shares": {"spam": 0.7, "ham": 0.3},
        "deal": deal,
        "allowance": Internal(),
        "unused": range(len(deal.batches) + 1),
        "journal": Journal(vault / "written.jsonl"),
        "silo": "s",
        "round": 1,
    }
    return write_lessons(engine, **(options | changes))


# ---- the deal -------------------------------------------------------------------------------------------------------


def test_every_unit_stands_behind_one_part_at_most(vault: Path) -> None:
    deal = deal_of()
    ids = [*deal.instruction, *itertools.chain(*deal.batches)]
    assert (len(deal.instruction), [len(batch) for batch in deal.batches]) == (2, [3] * 5)
    assert len(set(ids)) == len(ids) == 17
    assert Deal.load(deal.save(vault / "deal.json")) == deal
    with pytest.raises(PrivacyError):
        deal.save(vault.parent / "deal.json")


def test_the_deal_never_looks_at_what_units_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws, other contents: the same places."""
    dealt = []
    for word, flip in (("mail", False), ("quite another", True)):
        monkeypatch.setattr(secrets, "SystemRandom", lambda: random.Random(7))
        units = by_record(
            [
                PrivateRecord(one.id, one.text.replace("mail", word), "ham" if flip else one.completion)
                for one in records()
            ]
        )
        dealt.append(Deal.draw(units, 5, PRIVACY))
    assert dealt[0] == dealt[1]


def test_two_deals_differ() -> None:
    assert len({deal_of(200) for _ in range(3)}) == 3


def test_a_silo_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"takes 17 units of a silo .* has 16") as caught:
        deal_of(16)
    assert caught.value.key == "privacy.batch_units"
    assert caught.value.remedy


def test_divisors_are_expected_members_and_never_less_than_one() -> None:
    assert divisors(LABELS, {"spam": 0.7, "ham": 0.3}, 10) == [7.0, 3.0]
    assert divisors(LABELS, {}, 10) == [5.0, 5.0]
    assert divisors(LABELS, {"spam": 0.99, "ham": 0.01}, 10) == [9.9, 1.0]
    assert divisors(QUESTIONS, {}, 10) == [10.0]


@pytest.mark.parametrize("rho", [0.01, 0.5, 7.0])
def test_both_mechanisms_cost_a_unit_what_they_were_given(rho: float) -> None:
    for one in mechanisms(rho, TEACH):
        assert one.rho_per_token * one.max_tokens == pytest.approx(rho)
        assert accounting.rho_of(one.event()) == pytest.approx(rho)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_a_text_per_label_and_batch_and_one_instruction(engine: TransformersEngine, vault: Path) -> None:
    written = teach(engine, vault, deal_of())
    assert (written.texts, written.lost) == (10, 0)
    assert len([one for one in written.drafts if one.kind == "example"]) == 10 - written.malformed
    assert all(one.mechanism == "private_prediction" for one in written.drafts)
    assert set(Counter(one.completion for one in written.drafts if one.kind == "example")) <= {"spam", "ham"}
    assert sorted(Journal(vault / "written.jsonl").read()) == [0, 1, 2, 3, 4, 5]


def test_prompts_and_answers_of_a_generation_task(
    engine: TransformersEngine, vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model writes no answer, so its texts are replaced; the path is the real one."""
    deal = deal_of()
    teach(engine, vault, deal, task=QUESTIONS, shares={})
    journal = Journal(vault / "written.jsonl")
    assert {part: len(texts) for part, texts in journal.read().items()} == dict.fromkeys(range(6), 1)
    for part in range(1, 6):
        journal.add(part, [Generation(f" How many, {part}?\nCompletion: {part}", True)])
    again = teach(engine, vault, deal, task=QUESTIONS, shares={}, unused=[])
    assert [(one.prompt, one.completion) for one in again.drafts if one.kind == "example"] == [
        (f"How many, {part}?", f"{part}") for part in range(1, 6)
    ]


def test_at_zero_no_record_is_read(engine: TransformersEngine, vault: Path) -> None:
    written = teach(engine, vault, deal_of(), rho=0.0, records=[])
    assert written.texts == 10


def test_unclipped_it_writes_too(engine: TransformersEngine, vault: Path) -> None:
    assert teach(engine, vault, deal_of(), rho=math.inf).texts == 10


def test_the_instruction_is_part_of_every_later_prompt(
    engine: TransformersEngine, vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    real = prompts.example_prompt

    def watched(task: Task, label: str | None, references: Any, advice: str | None = None) -> str:
        asked.append(advice)
        return real(task, label, references, advice)

    monkeypatch.setattr(prompts, "example_prompt", watched)
    deal = deal_of()
    Journal(vault / "written.jsonl").add(0, [Generation("Mind the price. And then", False)])
    written = teach(engine, vault, deal, unused=range(1, 6))
    assert set(asked) == {"Mind the price."}
    assert [one.prompt for one in written.drafts if one.kind == "instruction"] == ["Mind the price."]


def test_all_prompts_are_as_wide_whatever_the_records_are(
    engine: TransformersEngine, vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer record must not move another's scores by the rounding of a wider product."""
    from tutelage.teachers.engines import transformers_private as decoding

    widths: list[set[int]] = []
    real = decoding._Heads.read

    def watched(heads: Any, texts: Any, tails: Any) -> Any:
        made = real(heads, texts, tails)
        widths[-1].add(made[1].shape[1])
        return made

    monkeypatch.setattr(decoding._Heads, "read", watched)
    deal = deal_of()
    for word in ("a", "a very long record that goes on and on and on " * 5):
        widths.append(set())
        folder = vault / str(len(widths))
        teach(engine, folder / "vault", deal, records=records(word=word), unused=range(1, 6))
    assert widths[0] == widths[1]


# ---- kept, lost, and resumed ----------------------------------------------------------------------------------------


def test_a_journal_that_was_cut_short_loses_its_last_part_only(vault: Path) -> None:
    journal = Journal(vault / "written.jsonl")
    for part in range(3):
        journal.add(part, [Generation(f"text {part} ü", True), Generation("other", False)])
    whole = journal.path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for length in range(last, len(whole) - 1):
        journal.path.write_bytes(whole[:length])
        assert sorted(journal.read()) == [0, 1]
        journal.add(7, [Generation("after", True)])
        assert sorted(journal.read()) == [0, 1, 7]
    with pytest.raises(PrivacyError):
        Journal(vault.parent / "written.jsonl")


def ledger_for(folder: Path, parts: int = 6) -> Ledger:
    """A budget for exactly one round."""
    budget = accounting.epsilon([dp.ZCDpEvent(RHO)], 1e-3)
    return Ledger.begin(folder / "ledger.jsonl", Terms("s", "record", 20, 1e-3, budget))


def resume(engine: TransformersEngine, vault: Path, deal: Deal, ledger: Ledger) -> Written:
    """What a stage does, first and after every death."""
    reservation = ledger.reserve(dp.ZCDpEvent(RHO), len(deal.batches) + 1, run="r", round=1)
    return teach(engine, vault, deal, allowance=reservation, unused=reservation.unused)


def test_a_resumed_round_spends_nothing_twice_and_loses_what_was_being_written(
    engine: TransformersEngine, vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal, ledger = deal_of(), ledger_for(vault)
    real = Journal.add

    def dies(journal: Journal, part: int, texts: Any) -> None:
        if part == 2:
            raise KeyboardInterrupt
        real(journal, part, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            resume(engine, vault, deal, ledger)
    kept = Journal(vault / "written.jsonl").read()
    written = resume(engine, vault, deal, ledger)
    assert ledger.spent() == pytest.approx(accounting.epsilon([dp.ZCDpEvent(RHO)], 1e-3))
    assert len([entry for entry in ledger.entries() if entry.kind == "reserve"]) == 1
    assert written.lost >= 1
    assert written.texts == 2 * (5 - written.lost)
    after = Journal(vault / "written.jsonl").read()
    assert 2 not in after, "what was being written is not written anew"
    assert all(after[part][0].text == texts[0].text for part, texts in kept.items())
    assert resume(engine, vault, deal, ledger) == written


def _writer(engine: TransformersEngine, vault: Path, deal: Deal) -> None:
    resume(engine, vault, deal, Ledger(vault / "ledger.jsonl"))


def kill_at_random(engine: TransformersEngine, vault: Path, kills: int) -> None:
    """SIGKILL while texts are written, again and again; a new round's folder whenever one got to its end."""
    torch.set_num_threads(1)  # a forked child has no threads of its parent's
    context = multiprocessing.get_context("fork")
    draw = random.Random(0)
    killed = rounds = 0
    while killed < kills:
        folder = vault / f"{rounds}" / "vault"
        rounds += 1
        deal, ledger = deal_of(), ledger_for(folder)
        seen: dict[int, str] = {}
        longest = 0.5
        while True:
            process = context.Process(target=ending(_writer), args=(engine, folder, deal))
            started = time.monotonic()
            process.start()
            process.join(draw.uniform(0, longest))
            if process.exitcode is None:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed += 1
            finished = process.exitcode == 0
            assert process.exitcode in (0, -signal.SIGKILL)
            longest = max(longest, time.monotonic() - started)
            lines = [entry for entry in ledger.entries() if entry.kind in ("reserve", "use")]
            used = Counter(part for entry in lines if entry.kind == "use" for part in entry.fields["parts"])
            assert ledger.spent() <= ledger.terms.budget * (1 + 1e-9), "never overspent"
            assert len([entry for entry in lines if entry.kind == "reserve"]) <= 1
            assert not used or max(used.values()) == 1, "a part is read once"
            journal = Journal(folder / "written.jsonl")
            there = {part: texts[0].text for part, texts in journal.read().items()}
            assert set(there) <= set(used), "nothing was written that was not claimed"
            assert all(there[part] == text for part, text in seen.items()), "a text, once written, stays"
            parts = [json.loads(line)["part"] for line in _whole_lines(journal.path)]
            assert len(set(parts)) == len(parts), "never two texts from one part"
            seen = there
            if finished or killed >= kills:
                break


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]


def test_killed_a_few_times_while_writing(engine: TransformersEngine, vault: Path) -> None:
    kill_at_random(engine, vault, 6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_two_hundred_times_while_writing(engine: TransformersEngine, vault: Path) -> None:
    kill_at_random(engine, vault, 200)


def test_nothing_shown_holds_text(engine: TransformersEngine, vault: Path) -> None:
    Journal(vault / "written.jsonl").add(1, [Generation("a number that must not show", True)] * 2)
    written = teach(engine, vault, deal_of(), unused=[])
    assert "number" in written.drafts[0].prompt
    assert "number" not in repr(written)
