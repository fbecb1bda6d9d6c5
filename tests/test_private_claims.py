"""Decoding under private prediction: parts claimed before they are read, refusals, and the claim put to the test."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
import torch
from private_batches import batches, greedy, mechanism, publics, shown, write
from tiny_model import make_tiny_model

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import load_model
from tutelage.privacy import accounting
from tutelage.privacy.ledger import Ledger, Terms
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines import transformers_private as module
from tutelage.teachers.engines.base import Generation
from tutelage.teachers.engines.private import Batch, Member, Public
from tutelage.teachers.engines.transformers_private import TransformersDecoder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_model(make_tiny_model(tmp_path_factory.mktemp("base")), dtype="float32")


# ---- what is claimed ------------------------------------------------------------------------------------------------


class Watched:
    """An allowance and the prompts that are read, as they follow each other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refused: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.cost: list[dp.DpEvent] = []
        self.refused = refused
        real = module._Slots.read

        def read(slots: Any, taken: dict[int, Batch]) -> None:
            self.events += [("read", batch.part) for batch in taken.values()]
            real(slots, taken)

        monkeypatch.setattr(module._Slots, "read", read)

    def claim(self, event: dp.DpEvent, parts: Iterable[int]) -> None:
        parts = list(parts)
        if self.refused in parts:
            raise PrivacyError("refused")
        self.events += [("claimed", part) for part in parts]
        self.cost.append(event)

    def written(self, part: int, texts: list[Generation]) -> None:
        self.events.append(("written", part))

    def of(self, kind: str) -> list[int]:
        return [part for happened, part in self.events if happened == kind]


def test_a_part_is_claimed_just_before_its_prompts_are_read(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no earlier: of what waits for a place nothing is used up."""
    watched, one = Watched(monkeypatch), mechanism()
    work = [Batch(10 + batch.part, batch.members) for batch in batches(7)]
    write(loaded, work, one, 11, allowance=watched, on_written=watched.written)  # two batches at a time
    assert watched.of("claimed") == watched.of("read") == sorted(watched.of("written")) == [*range(10, 17)]
    assert watched.cost == [one.event()] * len(watched.cost)
    at_hand: set[int] = set()
    for number, (happened, part) in enumerate(watched.events):
        if happened == "claimed":
            at_hand.add(part)
            assert len(at_hand) <= 2, "claimed while it had to wait"
            assert watched.events[number : number + 4].count(("read", part)) == 1
        elif happened == "read":
            assert part in at_hand
        else:
            at_hand.remove(part)
    assert not at_hand


def test_what_may_not_be_claimed_is_not_read(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, refused=3)
    with pytest.raises(PrivacyError, match="refused"):
        write(loaded, batches(6), mechanism(), 1, allowance=watched, on_written=watched.written)
    assert watched.of("claimed") == watched.of("read") == watched.of("written") == [0, 1, 2]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.begin(tmp_path / "ledger.jsonl", Terms("a1b2", "record", 40, 1e-6, 40.0))


def test_a_part_is_written_from_once(loaded: tuple[Any, Any], ledger: Ledger) -> None:
    one, work = mechanism(), batches(4)
    reserved = ledger.reserve(one.event(), 4, run="r")
    assert write(loaded, [], one, allowance=reserved) == []
    assert reserved.unused == [0, 1, 2, 3]
    write(loaded, work[1:3], one, allowance=reserved)
    assert reserved.unused == [0, 3]
    for again in (work, work[1:2], [work[0], work[0]]):
        with pytest.raises(PrivacyError, match="once"):
            write(loaded, again, one, allowance=ledger.reserve(one.event(), 4, run="r"))
    assert reserved.unused == [0, 3]
    with pytest.raises(PrivacyError, match="no such part"):
        write(loaded, [Batch(4, work[0].members)], one, allowance=reserved)
    with pytest.raises(PrivacyError, match="once"):  # one at a time: the second is refused, the first was written
        write(loaded, [work[0], work[0]], one, 1, allowance=reserved)
    write(loaded, work[3:], one, allowance=reserved)
    assert reserved.unused == []
    assert ledger.spent() == accounting.epsilon([one.event()], 1e-6)


def test_what_an_interruption_left_is_written_later(loaded: tuple[Any, Any], ledger: Ledger) -> None:
    """Parts that were being written are lost, the others are written from once: nobody's record is read twice."""
    one, work, kept = mechanism(), batches(8), dict[int, list[Generation]]()

    def interrupted(part: int, texts: list[Generation]) -> None:
        kept[part] = texts
        if len(kept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(loaded, work, one, 11, allowance=ledger.reserve(one.event(), 8, run="r"), on_written=interrupted)
    reserved = ledger.reserve(one.event(), 8, run="r")
    begun = set(range(8)) - set(reserved.unused)
    assert set(kept) < begun
    assert len(begun - set(kept)) == 1, "two at a time: the other one"
    found = write(loaded, [work[part] for part in reserved.unused], one, 11, allowance=reserved)
    assert len(found) == 8 - len(begun)
    assert reserved.unused == []
    assert ledger.spent() == accounting.epsilon([one.event()], 1e-6)


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_reservation_must_cover_the_texts(
    loaded: tuple[Any, Any], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = mechanism()
    watched = Watched(monkeypatch)
    for i, event in enumerate((dp.NoOpDpEvent(), dp.ZCDpEvent(0.99 * one.rho_per_token * one.max_tokens))):
        with pytest.raises(PrivacyError, match="does not cover"):
            write(loaded, batches(1), one, allowance=ledger.reserve(event, i=i))
    assert watched.events == [], "nothing was read"
    write(loaded, batches(1), one, allowance=ledger.reserve(one.event(), i=2))


def test_batches_of_two_shapes_or_too_long(loaded: tuple[Any, Any], ledger: Ledger) -> None:
    one = mechanism()
    reserved = ledger.reserve(one.event(), 2, run="r")
    with pytest.raises(ValueError, match="as many places"):
        write(loaded, [*batches(1), *batches(1, places=4)], one, allowance=reserved)
    long = Public("word " * 2040, "\n", 1.0)
    for changes in ({"tail_tokens": 2040}, {"texts": [long, long]}):
        with pytest.raises(UserError, match="attends to 2048"):
            write(loaded, batches(2), one, allowance=reserved, **changes)
    assert reserved.unused == [0, 1], "nothing was read and nothing used up"


@pytest.mark.parametrize("name", ["num_local_experts", "num_experts", "n_routed_experts"])
def test_mixtures_of_experts_are_refused(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(loaded[0].config, name, 8, raising=False)
    with pytest.raises(UserError, match=r"rows are computed apart.*experts"):
        write(loaded, batches(1), mechanism())


def test_quantised_models_are_refused(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded[0].config, "quantization_config", {"quant_method": "fp8"}, raising=False)
    with pytest.raises(UserError, match=r"rows are computed apart.*quantised"):
        write(loaded, batches(1), mechanism())


class Rounded(torch.nn.Module):
    """What it is given is rounded to eight bits, scaled by the largest of all rows, as some quantised models do."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        scale = given.abs().max() / 127
        scores: torch.Tensor = self.inner((given / scale).round() * scale)
        return scores


def test_whatever_lets_rows_share_a_scale_is_refused(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the configuration says so here."""
    layer = loaded[0].model.layers[0].mlp
    monkeypatch.setitem(layer._modules, "down_proj", Rounded(layer.down_proj))
    with pytest.raises(UserError, match="other scores when other rows change"):
        TransformersDecoder(*loaded, 16, 70)


def test_nothing_shown_holds_text() -> None:
    assert "train" not in repr([Member(0, "where does the train stop"), *batches(6)])


def test_a_model_that_changes_its_logits_gives_the_same(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored from whole logits, as for models that cap or scale them."""
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    expected = write(loaded, batches(4), mechanism())
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    assert shown(write(loaded, batches(4), mechanism())) == shown(expected)


# ---- the claim put to the test ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensitivity", [1e-4, 1e-3])
def test_a_record_shifts_scores_by_no_more_than_it_may(loaded: tuple[Any, Any], sensitivity: float) -> None:
    decoder, one = TransformersDecoder(*loaded, 16, 70), mechanism(sensitivity=sensitivity)
    [batch] = batches(1)
    found = decoder.shift(publics(), batch, one)
    assert found <= sensitivity * (1 + 1e-6)
    assert found > 0.99 * sensitivity  # a tiny clip is reached


def test_without_clipping_the_shift_shows_it(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, one = TransformersDecoder(*loaded, 16, 70), mechanism(sensitivity=1e-4)
    real = PrivatePrediction.scores

    def unclipped(self: PrivatePrediction, *scored: torch.Tensor) -> torch.Tensor:
        return real(PrivatePrediction(math.inf, self.temperature, self.top_k, self.max_tokens), *scored)

    monkeypatch.setattr(PrivatePrediction, "scores", unclipped)
    assert decoder.shift(publics(), batches(1)[0], one) > 10 * one.sensitivity


def test_an_empty_place_shifts_nothing(loaded: tuple[Any, Any]) -> None:
    decoder, one = TransformersDecoder(*loaded, 16, 70), mechanism(sensitivity=1e-2)
    [batch] = batches(1)
    alone = Batch(1, (batch.members[0], None, None))
    assert 0 < decoder.shift(publics(), alone, one) <= 1e-2 * (1 + 1e-6)
    assert math.isnan(decoder.shift(publics(), Batch(1, (None, None)), one))


def test_a_shift_that_is_no_number_does_not_look_like_none(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, one = TransformersDecoder(*loaded, 16, 70), mechanism(sensitivity=1e-2)
    real = PrivatePrediction.scores

    def spoilt(self: PrivatePrediction, *scored: torch.Tensor) -> torch.Tensor:
        scores = real(self, *scored)
        scores[len(publics()) :] = math.nan  # of all variants but the whole one
        return scores

    monkeypatch.setattr(PrivatePrediction, "scores", spoilt)
    assert math.isnan(decoder.shift(publics(), batches(1)[0], one))
