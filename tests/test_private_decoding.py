"""Decoding under private prediction: the same texts as the plainest loop, and nothing moved but what may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
import torch
from tiny_model import make_tiny_model

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import load_model
from tutelage.privacy.ledger import Reservation
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines.private import Batch, Member, PrivateDecoder

MAILS = [
    "the meeting is moved to friday",
    "you have won a free prize",
    "where does the train stop",
    "click now to claim your money",
    "the report will follow by then and nobody knows when",
    "x",
]
STOP = "\n###"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_model(make_tiny_model(tmp_path_factory.mktemp("base")), dtype="float32")


def reservation() -> Reservation:
    return Reservation(1, dp.NonPrivateDpEvent())


def mechanism(**changes: Any) -> PrivatePrediction:
    return PrivatePrediction(**({"batch": 2, "clip": 1.0, "temperature": 1.0, "top_k": 6, "max_tokens": 9} | changes))


def batches(count: int, places: int = 3, texts: int = 2) -> list[Batch]:
    public = tuple(f"### {label} e-mail\n" for label in ("ham", "spam", "news")[:texts])
    return [
        Batch(
            public,
            tuple(
                None if (b + m) % 4 == 3 else Member((b + m) % texts, f"{MAILS[(b * 3 + m) % 6]}\n{public[m % texts]}")
                for m in range(places)
            ),
        )
        for b in range(count)
    ]


def greedy(self: PrivatePrediction, scores: torch.Tensor, allowed: torch.Tensor) -> list[int]:
    best: list[int] = scores.masked_fill(~allowed, -math.inf).argmax(-1).tolist()
    return best


def plainly(model: Any, tokenizer: Any, batch: Batch, one: PrivatePrediction, ends: set[int]) -> list[list[int]]:
    """One text at a time, one prompt at a time, nothing cached."""
    written = []
    for at, public in enumerate(batch.public):
        behind = [member.prompt for member in batch.members if member and member.text == at]
        tokens: list[int] = []
        for _ in range(one.max_tokens):
            rows = [
                model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] + tokens])).logits[0, -1]
                for text in (public, *behind)
            ]
            allowed = one.candidates(rows[0][None])
            private = torch.stack(rows[1:]) if behind else torch.zeros(1, len(rows[0]))
            present = torch.full((1, max(1, len(behind))), bool(behind))
            [token] = greedy(one, one.scores(rows[0][None], private[None], present), allowed)
            if token in ends:
                break
            tokens.append(token)
        written.append(tokens)
    return written


@pytest.mark.parametrize(("count", "batch_rows"), [(1, 1), (7, 12), (5, 64)])
@pytest.mark.parametrize("texts", [1, 2])
def test_the_same_texts_as_one_prompt_at_a_time(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, count: int, batch_rows: int, texts: int
) -> None:
    model, tokenizer = loaded
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    one, work = mechanism(), batches(count, texts=texts)
    with torch.inference_mode():
        first, last = (plainly(model, tokenizer, work[at], one, set()) for at in (0, -1))
        ends = {first[0][4], last[-1][2]}  # tokens that do come, so that texts end at different steps
        expected = [plainly(model, tokenizer, batch, one, ends) for batch in work]
    finished: list[int] = []
    found = PrivateDecoder(model, tokenizer, batch_rows, 40).write(
        work, one, reservation(), stop=STOP, ends=ends, on_progress=finished.append
    )
    assert [[text.text for text in row] for row in found] == [
        [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in row] for row in expected
    ]
    assert [[text.finished for text in row] for row in found] == [
        [len(tokens) < one.max_tokens for tokens in row] for row in expected
    ]
    assert finished == [texts] * count


def test_a_stop_string_ends_a_text(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    decoder = PrivateDecoder(model, tokenizer, 64, 40)
    [[whole]] = decoder.write(batches(1, texts=1), mechanism(), reservation(), stop=STOP, ends=set())
    stop = whole.text[3:5]
    [[cut]] = decoder.write(batches(1, texts=1), mechanism(), reservation(), stop=stop, ends=set())
    assert (cut.text, cut.finished, whole.finished) == (whole.text.partition(stop)[0], True, False)


class Seen:
    """What the mechanism was asked, while texts go the same way whatever the scores are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        real = PrivatePrediction.scores

        def scores(
            one: PrivatePrediction, public: torch.Tensor, private: torch.Tensor, present: torch.Tensor
        ) -> torch.Tensor:
            got = real(one, public, private, present)
            self.calls.append((public, private, present, got))
            return got

        monkeypatch.setattr(PrivatePrediction, "scores", scores)
        monkeypatch.setattr(PrivatePrediction, "draw", lambda _, scores, allowed: [0] * len(scores))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_record_replaced_by_null_moves_its_own_texts_scores_and_by_no_more_than_c_over_b(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, place: int
) -> None:
    model, tokenizer = load_model(make_tiny_model(tmp_path / "base"), dtype=dtype)
    work = batches(3, places=3)
    member = work[1].members[place]
    assert member is not None
    neighbour = Batch(work[1].public, (*work[1].members[:place], None, *work[1].members[place + 1 :]))
    one = mechanism(clip=3.0)
    runs = []
    for middle in (work[1], neighbour):
        seen = Seen(monkeypatch)
        PrivateDecoder(model, tokenizer, 64, 40).write(
            [work[0], middle, work[2]], one, reservation(), stop=STOP, ends=set()
        )
        runs.append(seen.calls)
        monkeypatch.undo()
    assert len(runs[0]) == len(runs[1]) == one.max_tokens
    moved = 0.0
    for (public, private, present, scores), (public2, private2, present2, scores2) in zip(*runs, strict=True):
        assert torch.equal(public, public2), "the public scores are nobody's"
        gone = present & ~present2
        assert int(gone.sum()) == 1
        assert not bool((present2 & ~present).any())
        assert torch.equal(private[present2], private2[present2]), "nobody else's scores move, not by a bit"
        change = (scores - scores2).abs().amax(-1)
        mine = gone.any(-1)
        assert bool((change[~mine] == 0).all()), "no other text is touched"
        assert float(change.max()) <= one.sensitivity * (1 + 1e-12)
        moved = max(moved, float(change.max()))
    assert moved > 0.1 * one.sensitivity, "the record does count"


def test_observed_odds_of_neighbours_stay_within_the_guarantee(loaded: tuple[Any, Any]) -> None:
    """Two-token texts of two silos that differ in one record: no outcome's odds differ by more than e^(sum of s/τ·2).

    Pure DP of a draw is 2C/(Bτ); of two draws twice that. Unclipped, the same test must see the difference.
    """
    model, tokenizer = loaded
    count = 3000
    decoder = PrivateDecoder(model, tokenizer, 4096, 40)

    def frequencies(members: Sequence[Member | None], one: PrivatePrediction) -> dict[str, int]:
        work = [Batch(("### spam e-mail\n",), tuple(members))] * count
        found: dict[str, int] = {}
        for [text] in decoder.write(work, one, reservation(), stop=STOP, ends=set()):
            found[text.text] = found.get(text.text, 0) + 1
        return found

    def worst(one: PrivatePrediction) -> float:
        """The largest log-ratio that chance cannot explain: lower confidence bounds, for outcomes seen often."""
        here, there = (frequencies(members, one) for members in ([Member(0, MAILS[4])], [None]))
        ratios = [0.0]
        for a, b in ((here, there), (there, here)):
            for text, n in a.items():
                m = b.get(text, 0)
                if n >= 30:
                    ratios.append(math.log(n / (m + 1)) - 4 * math.sqrt(1 / n + 1 / (m + 1)))
        return max(ratios)

    settings = {"batch": 1, "top_k": 3, "max_tokens": 2, "temperature": 0.2}
    guarded = mechanism(clip=0.05, **settings)
    bound = 2 * 2 * guarded.sensitivity / guarded.temperature
    assert worst(guarded) <= bound
    assert worst(mechanism(clip=2.0, **settings)) > bound


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_reservation_is_used_up(loaded: tuple[Any, Any]) -> None:
    decoder, spent = PrivateDecoder(*loaded, 64, 40), reservation()
    assert decoder.write([], mechanism(), spent, stop=STOP, ends=set()) == []
    decoder.write(batches(1), mechanism(), spent, stop=STOP, ends=set())
    with pytest.raises(PrivacyError, match="once"):
        decoder.write(batches(1), mechanism(), spent, stop=STOP, ends=set())


def test_a_reservation_must_cover_the_texts(loaded: tuple[Any, Any]) -> None:
    one = mechanism()
    for event in (dp.NoOpDpEvent(), dp.ZCDpEvent(0.99 * one.rho_per_token * one.max_tokens)):
        with pytest.raises(PrivacyError, match="does not cover"):
            PrivateDecoder(*loaded, 64, 40).write(batches(1), one, Reservation(1, event), stop=STOP)
    PrivateDecoder(*loaded, 64, 40).write(batches(1), one, Reservation(1, one.event()), stop=STOP)


def test_batches_of_two_shapes_or_too_long(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="as many places"):
        PrivateDecoder(*loaded, 64, 40).write(
            [*batches(1), *batches(1, places=4)], mechanism(), reservation(), stop=STOP, ends=set()
        )
    with pytest.raises(UserError, match="attends to 2048"):
        PrivateDecoder(*loaded, 64, 2040).write(batches(1), mechanism(), reservation(), stop=STOP, ends=set())


def test_nothing_shown_holds_text() -> None:
    assert "train" not in repr([Member(0, "where does the train stop"), *batches(6)])


def test_a_model_that_changes_its_logits_gives_the_same(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored from whole logits, as for models that cap or scale them."""
    model, tokenizer = loaded
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    decoder = PrivateDecoder(model, tokenizer, 64, 40)
    expected = decoder.write(batches(4), mechanism(), reservation(), stop=STOP, ends=set())
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    found = decoder.write(batches(4), mechanism(), reservation(), stop=STOP, ends=set())
    assert [[text.text for text in row] for row in found] == [[text.text for text in row] for row in expected]
