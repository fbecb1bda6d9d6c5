from __future__ import annotations

import dataclasses
import math
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tutelage.privacy import mechanism as module
from tutelage.privacy.accounting import epsilon, max_rho
from tutelage.privacy.mechanism import PrivatePrediction

MECHANISM = PrivatePrediction(sensitivity=0.25, temperature=1.0, top_k=5, max_tokens=16)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 12))
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SEEDS = st.integers(0, 2**32 - 1)
SENSITIVITIES = st.one_of(st.floats(0, 50), st.floats(0, 0.2))


def mechanism(**changes: Any) -> PrivatePrediction:
    return dataclasses.replace(MECHANISM, **changes)


def random_scores(
    shape: tuple[int, int, int], seed: int, dtype: torch.dtype, spread: float = 10.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups, members, tokens = shape
    draw = torch.Generator().manual_seed(seed)
    public = spread * torch.randn(groups, tokens, generator=draw)
    private = public[:, None] + spread * torch.randn(groups, members, tokens, generator=draw)
    present = torch.rand(groups, members, generator=draw) < 0.8
    return public.to(dtype), private.to(dtype), present


def divisors(groups: int, seed: int) -> torch.Tensor:
    """B of every group, each its own: from a share of the members to many times as many."""
    return 300 ** torch.rand(groups, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every(groups: int, divisor: float = 4) -> torch.Tensor:
    return torch.full((groups,), divisor)


# ---- the proof's premises -------------------------------------------------------------------------------------------


@given(SHAPES, SEEDS, DTYPES, SENSITIVITIES)
def test_a_record_replaced_by_null_moves_no_score_by_more_than_c_over_b(
    shape: tuple[int, int, int], seed: int, dtype: torch.dtype, sensitivity: float
) -> None:
    public, private, present = random_scores(shape, seed, dtype)
    present[0, 0] = True
    without = present.clone()
    without[0, 0] = False
    one, by = mechanism(sensitivity=sensitivity), divisors(shape[0], seed)
    moved = (one.scores(public, private, present, by) - one.scores(public, private, without, by)).abs()
    assert float(moved.max()) <= one.sensitivity * (1 + 1e-9) + 1e-9
    assert bool((moved[1:] == 0).all()), "no other group is touched"


@given(SHAPES, SEEDS, st.sampled_from([math.nan, math.inf, -math.inf, 1e38, -1e38]), SENSITIVITIES)
def test_nothing_a_record_can_make_of_its_scores_breaks_the_bound(
    shape: tuple[int, int, int], seed: int, strange: float, sensitivity: float
) -> None:
    public, private, present = random_scores(shape, seed, torch.float32)
    present[0, 0] = True
    without = present.clone()
    without[0, 0] = False
    one, by = mechanism(sensitivity=sensitivity), divisors(shape[0], seed)
    broken = private.clone()
    broken[0, 0] = strange
    got, expected = one.scores(public, broken, present, by), one.scores(public, private, without, by)
    assert bool(torch.isfinite(got).all())
    assert float((got - expected).abs().max()) <= one.sensitivity * (1 + 1e-9) + 1e-9


@given(SHAPES, SEEDS, DTYPES)
def test_a_public_engine_gives_the_public_scores(shape: tuple[int, int, int], seed: int, dtype: torch.dtype) -> None:
    public, private, present = random_scores(shape, seed, dtype)
    by = divisors(shape[0], seed)
    assert torch.equal(mechanism(sensitivity=0.0).scores(public, private, present, by), public.double())
    assert torch.equal(MECHANISM.scores(public, private, torch.zeros_like(present), by), public.double())
    same = public[:, None].expand_as(private)
    assert torch.equal(MECHANISM.scores(public, same, present, by), public.double())
    assert torch.equal(MECHANISM.scores(public, private[:, :0], present[:, :0], by), public.double()), "no places"


def test_small_differences_come_through_whole() -> None:
    public, private, _ = random_scores((2, 4, 6), 0, torch.float32, spread=0.01)
    expected = private.double().mean(1)
    got = MECHANISM.scores(public, private, torch.ones(2, 4, dtype=torch.bool), every(2))
    assert torch.allclose(got, expected, atol=1e-6)


def test_the_divisor_is_fixed() -> None:
    public = torch.zeros(1, 3)
    private = torch.ones(1, 4, 3)
    one, all_four = (torch.tensor([row]) for row in ([True, False, False, False], [True] * 4))
    assert MECHANISM.scores(public, private, one, every(1)).tolist() == [[0.25] * 3]
    assert MECHANISM.scores(public, private, all_four, every(1)).tolist() == [[1.0] * 3]


def test_every_group_has_a_divisor_and_a_clip_of_its_own() -> None:
    """Four members one logit above: at B = 8 all of it counts, by half; at B = 2 half of it counts, twice."""
    public, private, present = torch.zeros(3, 2), torch.ones(3, 4, 2), torch.ones(3, 4, dtype=torch.bool)
    got = MECHANISM.scores(public, private, present, torch.tensor([8, 4, 2]))
    assert got.tolist() == [[0.5] * 2, [1.0] * 2, [1.0] * 2]
    assert [MECHANISM.clip(divisor) for divisor in (8, 4, 2)] == [2.0, 1.0, 0.5]
    alone = torch.tensor([[True, False, False, False]] * 3)
    assert MECHANISM.scores(public, 9 * private, alone, torch.tensor([8, 4, 2])).tolist() == [[0.25] * 2] * 3


def test_public_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        MECHANISM.scores(
            torch.tensor([[0.0, math.nan]]), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), every(1)
        )


@given(SHAPES, SEEDS, st.integers(1, 15), st.floats(0, 8))
def test_no_single_record_lifts_a_token_outside_the_candidates_among_the_k_best(
    shape: tuple[int, int, int], seed: int, k: int, sensitivity: float
) -> None:
    groups, _, tokens = shape
    public, private, present = random_scores((groups, 1, tokens), seed, torch.float32, spread=2.0)
    one = mechanism(top_k=k, sensitivity=sensitivity)
    allowed = one.candidates(public)
    assert bool((allowed.sum(-1) >= min(k, tokens)).all())
    scores = one.scores(public, private, present, divisors(groups, seed))
    best = scores.topk(min(k, tokens), dim=-1)
    # ties at the border may fall either way, so the value counts and not the index
    worst_allowed = scores.masked_fill(~allowed, -math.inf).topk(min(k, tokens), dim=-1).values
    assert torch.allclose(best.values, worst_allowed)


def test_without_clipping_the_candidates_stay_few() -> None:
    public = torch.linspace(0, -100, 1000)[None]
    assert int(mechanism(sensitivity=math.inf).candidates(public).sum()) < 210


@given(SHAPES, SEEDS, st.integers(1, 15))
def test_without_clipping_the_k_best_of_all_scores_are_drawn_from(
    shape: tuple[int, int, int], seed: int, k: int
) -> None:
    public, private, present = random_scores(shape, seed, torch.float32, spread=2.0)
    one = mechanism(top_k=k, sensitivity=math.inf)
    scores, allowed = one.scores(public, private, present, divisors(shape[0], seed)), one.candidates(public)
    narrowed = one.narrowed(scores, allowed)
    assert bool((narrowed <= allowed).all())
    assert narrowed.sum(-1).tolist() == allowed.sum(-1).clamp(max=k).tolist()
    left_out = scores.masked_fill(~allowed | narrowed, -math.inf).amax(-1)
    assert bool((scores.masked_fill(~narrowed, math.inf).amin(-1) > left_out).all())


@given(SHAPES, SEEDS, st.floats(0, 1e6))
def test_under_a_guarantee_scores_do_not_say_what_may_be_drawn(
    shape: tuple[int, int, int], seed: int, sensitivity: float
) -> None:
    public, private, present = random_scores(shape, seed, torch.float32, spread=2.0)
    one = mechanism(top_k=1, sensitivity=sensitivity)
    allowed = one.candidates(public)
    assert torch.equal(one.narrowed(one.scores(public, private, present, every(shape[0])), allowed), allowed)


# ---- what it costs --------------------------------------------------------------------------------------------------


@given(st.integers(2, 30), SEEDS, st.floats(0.01, 4), st.floats(0.3, 3), st.floats(1.001, 200), st.booleans())
def test_renyi_divergence_of_neighbours_is_within_the_zcdp_bound(
    tokens: int, seed: int, sensitivity: float, temperature: float, alpha: float, extreme: bool
) -> None:
    """D_α(P‖Q) <= ρα both ways, for scores that differ by at most C/B: Bun & Steinke 2016, definition 1.1."""
    one = mechanism(sensitivity=sensitivity, temperature=temperature)
    draw = np.random.default_rng(seed)
    base = draw.normal(0, 3, tokens)
    change = draw.choice([-1.0, 1.0], tokens) if extreme else draw.uniform(-1, 1, tokens)
    p, q = ((s - np.logaddexp.reduce(s)) for s in (base / temperature, (base + sensitivity * change) / temperature))
    for a, b in ((p, q), (q, p)):
        divergence = np.logaddexp.reduce(alpha * a + (1 - alpha) * b) / (alpha - 1)
        assert divergence <= one.rho_per_token * alpha + 1e-9


def test_the_bound_is_close_to_tight() -> None:
    """Two tokens at even odds, one raised and one lowered: for a small clip the divergence reaches the bound."""
    one = mechanism(sensitivity=0.01)
    p, q = (s - np.logaddexp.reduce(s) for s in (np.array([0.01, -0.01]), np.array([0.0, 0.0])))
    assert np.exp(p) @ (p - q) == pytest.approx(one.rho_per_token, rel=1e-3)


@pytest.mark.parametrize(
    ("tokens", "batches"), [(64, {1: 36, 2: 19, 4: 10, 8: 6}), (200, {1: 64, 2: 34, 4: 18, 8: 10})]
)
def test_batch_needed_for_a_clip_of_one(tokens: int, batches: dict[int, int]) -> None:
    """One text at τ = 1, δ = 1e-6, rounded to whole records."""
    for target, expected in batches.items():
        needed = math.sqrt(tokens / 2 / max_rho(target, 1e-6))
        assert round(needed) == expected
        one = PrivatePrediction.calibrated(max_rho(target, 1e-6), temperature=1.0, top_k=100, max_tokens=tokens)
        assert 1 <= one.clip(math.ceil(needed)) < math.ceil(needed) / (math.ceil(needed) - 1)


def test_one_instruction_is_practically_unclipped() -> None:
    one = PrivatePrediction.calibrated(max_rho(1, 1e-6), temperature=1.0, top_k=100, max_tokens=150)
    assert one.clip(255) == pytest.approx(4.6, abs=0.05)


@given(st.floats(1e-4, 20), st.floats(0.1, 3), st.integers(1, 500), st.integers(1, 9))
def test_calibration_spends_what_it_was_given(rho: float, temperature: float, tokens: int, texts: int) -> None:
    one = PrivatePrediction.calibrated(rho / texts, temperature=temperature, top_k=100, max_tokens=tokens)
    assert one.rho_per_token * tokens * texts == pytest.approx(rho, rel=1e-9)
    assert epsilon([one.event(texts)], 1e-6) == pytest.approx(epsilon([dp.ZCDpEvent(rho)], 1e-6), rel=1e-6)


def test_the_ends_of_the_scale() -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 100, "max_tokens": 32}
    nothing, everything = (PrivatePrediction.calibrated(rho, **settings) for rho in (0.0, math.inf))
    assert (nothing.clip(8), epsilon([nothing.event()], 1e-6)) == (0, 0)
    assert (everything.clip(8), epsilon([everything.event()], 1e-6)) == (math.inf, math.inf)
    public, private, present = random_scores((1, 8, 5), 0, torch.float32)
    present[:] = True
    expected = public.double() + (private.double() - public.double()[:, None]).mean(1)
    assert torch.allclose(everything.scores(public, private, present, every(1, 8)), expected)
    private[0, :3, 0] = torch.tensor([math.inf, -math.inf, math.nan])
    assert bool(torch.isfinite(everything.scores(public, private, present, every(1, 8))).all())


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 0}, {"max_tokens": 0}, {"sensitivity": -1.0}, {"sensitivity": math.nan}, {"temperature": 0.0},
        {"temperature": math.inf}, {"temperature": math.nan},
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        mechanism(**changes)


# ---- the draw -------------------------------------------------------------------------------------------------------


def test_the_draw_follows_the_softmax() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    allowed = torch.tensor([[True, True, True, True, False]])
    one = mechanism(temperature=0.7)
    count = 20_000
    drawn = np.bincount(one.draw(scores.expand(count, -1), allowed.expand(count, -1)), minlength=5)
    odds = np.exp(scores[0].double().numpy() / 0.7) * allowed[0].numpy()
    assert drawn[4] == 0
    assert chisquare(drawn[:4], count * (odds / odds.sum())[:4]).pvalue > 1e-6


@given(st.integers(1, 6), st.integers(1, 9), SEEDS)
def test_only_what_is_allowed_is_drawn(groups: int, tokens: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = 100 * torch.randn(groups, tokens, generator=draw)
    allowed = torch.rand(groups, tokens, generator=draw) < 0.5
    allowed[:, 0] |= ~allowed.any(1)
    for row, index in enumerate(MECHANISM.draw(scores, allowed)):
        assert bool(allowed[row, index])


def test_the_largest_chance_draws_the_last_token_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_uniform", lambda count: np.full(count, 1 - 2.0**-53))
    scores = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(50, 30, dtype=torch.bool)
    allowed[:, 20:] = False
    assert MECHANISM.draw(scores, allowed) == [19] * 50


def test_the_draw_takes_no_seed() -> None:
    scores, allowed = torch.zeros(200, 1000), torch.ones(200, 1000, dtype=torch.bool)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(MECHANISM.draw(scores, allowed))
    assert drawn[0] != drawn[1]
