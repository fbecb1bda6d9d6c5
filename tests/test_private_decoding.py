"""Decoding under private prediction: the same texts as the plainest loop, and nothing moved but what may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from private_batches import DIVISORS, MAILS, batches, greedy, mechanism, publics, shown, write
from tiny_model import make_tiny_model

from tutelage.configs.models import load_model
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines import rows
from tutelage.teachers.engines.base import Generation
from tutelage.teachers.engines.private import Batch, Member, Public


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_model(make_tiny_model(tmp_path_factory.mktemp("base")), dtype="float32")


def plainly(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Public],
    batch: Batch,
    one: PrivatePrediction,
    ends: set[int],
    tail_tokens: int = 70,
) -> list[list[int]]:
    """One text at a time, one prompt at a time, nothing cached."""

    def ids(text: str) -> list[int]:
        encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return encoded

    written = []
    for at, public in enumerate(asked):
        behind = [member.tail for member in batch.members if member and member.text == at]
        tokens: list[int] = []
        for _ in range(one.max_tokens):
            rows = [
                model(torch.tensor([ids(public.head) + ids(tail)[-tail_tokens:] + tokens])).logits[0, -1]
                for tail in (public.tail, *behind)
            ]
            allowed = one.candidates(rows[0][None])
            private = torch.stack(rows[1:]) if behind else torch.zeros(1, len(rows[0]))
            present = torch.full((1, max(1, len(behind))), bool(behind))
            by = torch.tensor([public.divisor])
            [token] = greedy(one, one.scores(rows[0][None], private[None], present, by), allowed)
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
        first, last = (plainly(model, tokenizer, publics(texts), work[at], one, set()) for at in (0, -1))
        ends = {first[0][4], last[-1][2]}  # tokens that do come, so that texts end at different steps
        expected = [plainly(model, tokenizer, publics(texts), batch, one, ends) for batch in work]
    told: dict[int, list[Generation]] = {}
    found = write(
        loaded,
        work,
        one,
        batch_rows,
        texts=texts,
        ends=ends,
        on_written=lambda part, row: told.update({part: [*told.get(part, []), *row]}),
    )
    assert shown(found) == [
        [(tokenizer.decode(tokens, skip_special_tokens=True), len(tokens) < one.max_tokens) for tokens in row]
        for row in expected
    ]
    assert shown([told[batch.part] for batch in work]) == shown(found), "each told of once, as it was written"


def test_a_long_tail_keeps_its_end(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And a width that is none too large for the longest gives what any larger one does."""
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    one, work, found = mechanism(sensitivity=5.0), batches(4), {}
    for width in (9, 70, 90):
        found[width] = shown(write(loaded, work, one, tail_tokens=width))
        with torch.inference_mode():
            expected = [plainly(*loaded, publics(), batch, one, set(), width) for batch in work]
        assert [[text for text, _ in row] for row in found[width]] == [
            [loaded[1].decode(tokens, skip_special_tokens=True) for tokens in row] for row in expected
        ]
    assert found[9] != found[70] == found[90]


@pytest.mark.parametrize("sensitivity", [5.0, math.inf])
def test_however_many_tokens_may_be_drawn_scores_are_the_same(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, sensitivity: float
) -> None:
    """Scored on a few tokens, or as a part of all of them: unclipped there are too many to pick."""
    model, tokenizer = loaded
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    one, work = mechanism(sensitivity=sensitivity), batches(5)
    with torch.inference_mode():
        expected = [plainly(model, tokenizer, publics(), batch, one, set()) for batch in work]
    for few in (0.0, rows._FEW, 10.0):
        monkeypatch.setattr(rows, "_FEW", few)
        assert [[text.text for text in row] for row in write(loaded, work, one)] == [
            [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in row] for row in expected
        ]


def test_unclipped_the_k_best_of_what_records_say_are_drawn_from(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And clipped all that public scores allow, whatever records say."""
    counts: list[int] = []

    def count(one: PrivatePrediction, scores: torch.Tensor, allowed: torch.Tensor) -> list[int]:
        counts.extend(allowed.sum(-1).tolist())
        return greedy(one, scores, allowed)

    monkeypatch.setattr(PrivatePrediction, "draw", count)
    write(loaded, batches(2), mechanism(sensitivity=math.inf))
    assert counts == [6] * 36
    write(loaded, batches(2), mechanism(sensitivity=5.0))
    assert max(counts[36:]) > 6


@pytest.mark.parametrize("sensitivity", [0.0, 0.5, math.inf])
@pytest.mark.parametrize("batch_rows", [1, 5])
def test_batches_without_places_are_written_from_public_prompts_alone(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, sensitivity: float, batch_rows: int
) -> None:
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    one = mechanism(sensitivity=sensitivity)
    work = [Batch(part, ()) for part in range(3)]
    with torch.inference_mode():
        expected = [plainly(*loaded, publics(3), batch, one, set()) for batch in work]
    found = write(loaded, work, one, batch_rows, texts=3)
    assert [[text.text for text in row] for row in found] == [
        [loaded[1].decode(tokens, skip_special_tokens=True) for tokens in row] for row in expected
    ]
    assert len({text.text for text in found[0]}) > 1, "the prompts are read"


def test_at_nothing_to_spend_records_count_for_nothing(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    work = batches(3)
    bare = [Batch(batch.part, ()) for batch in work]
    nothing, something = mechanism(sensitivity=0.0), mechanism(sensitivity=5.0)
    assert shown(write(loaded, work, nothing)) == shown(write(loaded, bare, nothing))
    assert shown(write(loaded, work, something)) != shown(write(loaded, bare, something))


def test_a_stop_string_ends_a_text(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivatePrediction, "draw", greedy)
    [[whole]] = write(loaded, batches(1, texts=1), mechanism(), texts=1)
    stop = whole.text[3:5]
    [[cut]] = write(loaded, batches(1, texts=1), mechanism(), texts=1, stop=stop)
    assert (cut.text, cut.finished, whole.finished) == (whole.text.partition(stop)[0], True, False)


class Seen:
    """What the mechanism was asked, while texts go the same way whatever the scores are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.divisors: list[list[float]] = []
        real = PrivatePrediction.scores

        def scores(
            one: PrivatePrediction,
            public: torch.Tensor,
            private: torch.Tensor,
            present: torch.Tensor,
            divisor: torch.Tensor,
        ) -> torch.Tensor:
            got = real(one, public, private, present, divisor)
            self.calls.append((public, private, present, got))
            self.divisors.append(divisor.tolist())
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
    neighbour = Batch(1, (*work[1].members[:place], None, *work[1].members[place + 1 :]))
    one = mechanism(sensitivity=1.5)
    runs = []
    for middle in (work[1], neighbour):
        seen = Seen(monkeypatch)
        write((model, tokenizer), [work[0], middle, work[2]], one)
        runs.append(seen.calls)
        assert all(by == [*DIVISORS[:2]] * 3 for by in seen.divisors), "whatever the members at hand"
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
    count = 3000

    def frequencies(members: Sequence[Member | None], one: PrivatePrediction) -> dict[str, int]:
        work = [Batch(part, tuple(members)) for part in range(count)]
        found: dict[str, int] = {}
        for [text] in write(loaded, work, one, 4096, texts=[Public("### spam e-mail", "\n", 1.0)], tail_tokens=16):
            found[text.text] = found.get(text.text, 0) + 1
        return found

    def worst(one: PrivatePrediction) -> float:
        """The largest log-ratio that chance cannot explain: lower confidence bounds, for outcomes seen often."""
        here, there = (frequencies(members, one) for members in ([Member(0, f"\n{MAILS[4]}\n")], [None]))
        ratios = [0.0]
        for a, b in ((here, there), (there, here)):
            for text, n in a.items():
                m = b.get(text, 0)
                if n >= 30:
                    ratios.append(math.log(n / (m + 1)) - 4 * math.sqrt(1 / n + 1 / (m + 1)))
        return max(ratios)

    settings = {"top_k": 3, "max_tokens": 2, "temperature": 0.2}
    guarded = mechanism(sensitivity=0.05, **settings)
    bound = 2 * 2 * guarded.sensitivity / guarded.temperature
    assert worst(guarded) <= bound
    assert worst(mechanism(sensitivity=2.0, **settings)) > bound
