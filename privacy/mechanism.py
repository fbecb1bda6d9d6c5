"""Private prediction: the next token of a synthetic text, drawn so that no record moves its odds by more than agreed.

A text is written over a batch of B private prompts, one record each, and one public prompt without a record. At every
step a record may move the mean score of a token by at most C/B, because its difference to the public score is clipped
to [-C, C]; the token is drawn from the softmax of those means, which is the exponential mechanism. What may be drawn
is decided by public scores alone. (InvisibleInk: Vinod et al. 2025, arXiv:2507.02974, section 3; Amin et al. 2024,
arXiv:2407.12108.)

Engine-neutral: scores come in as tensors, indices go out. The maths here is the privacy proof's, so it is done in
float64 on whatever an engine computed, and the draw is the operating system's.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from dp_accounting import DpEvent


class MemberScores(Protocol):
    """The scores that the private prompts of S batches give, P places in each, however an engine has them."""

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Those of some tokens: (S, T, K) -> (S, T, P, K)."""
        ...

    def mean(self, weights: torch.Tensor) -> torch.Tensor:
        """Those of all tokens, as means over places: weights (S, T, P) -> (S, T, V)."""
        ...


@dataclass(frozen=True)
class PrivatePrediction:
    """The mechanism's parameters, all of them public.

    They are fixed before a record is read: a text's divisor B is what it is whatever the number of members at hand,
    and a text costs `max_tokens` draws wherever it ends.
    """

    sensitivity: float
    """C/B: the most that replacing one record by null moves any token's score. 0: public only, ε = 0."""
    temperature: float
    """τ"""
    top_k: int
    """How many tokens, by public score, may be drawn; those that one record could lift among them come on top."""
    max_tokens: int
    """T: draws of a text, the one that ends it included."""

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.max_tokens < 1:
            raise ValueError("top_k and max_tokens must be at least 1")
        if not (self.sensitivity >= 0 and 0 < self.temperature < math.inf):
            raise ValueError("sensitivity must not be negative, temperature must be positive")

    @classmethod
    def calibrated(cls, rho_per_text: float, *, temperature: float, top_k: int, max_tokens: int) -> PrivatePrediction:
        """The most that a record may move a score at this cost: C/B = τ √(2ρ/T).

        Args:
            rho_per_text: zCDP of one text; infinity for no clipping at all.
            temperature: τ.
            top_k: k.
            max_tokens: T.
        """
        return cls(temperature * math.sqrt(2 * rho_per_text / max_tokens), temperature, top_k, max_tokens)

    def clip(self, divisor: float) -> float:
        """C of a text with divisor B: how far one prompt's score may stand from the public one, in logits."""
        return self.sensitivity * divisor

    @property
    def rho_per_token(self) -> float:
        """zCDP of one draw: C² / (2B²τ²).

        Scores that move by at most s change log-odds at temperature τ by at most 2s/τ: the draw is (2s/τ)-bounded
        range, and η-bounded range is η²/8-zCDP (Cesar & Rogers 2021, arXiv:2004.07223).
        """
        return 0.5 * (self.sensitivity / self.temperature) ** 2

    def event(self, texts: int = 1) -> DpEvent:
        """What `texts` texts over the same records cost; texts over disjoint records cost the most of any of them."""
        import dp_accounting as dp

        if self.sensitivity == 0:
            return dp.NoOpDpEvent()
        if not math.isfinite(self.sensitivity):
            return dp.NonPrivateDpEvent()
        return dp.SelfComposedDpEvent(dp.ZCDpEvent(self.rho_per_token), self.max_tokens * texts)

    def candidates(self, public: torch.Tensor) -> torch.Tensor:
        """Which tokens may be drawn, from public scores alone: (G, V) -> (G, V) booleans.

        Beside the k best those within 2C/B of the k-th, which a single record could lift among the k best; all B
        together could lift others, and that is the price of deciding by public scores. More than `_MAX_SLACK`
        logits below the k-th none is a candidate: unclipped, the whole vocabulary would be.
        """
        scores = public.float()
        k = min(self.top_k, scores.shape[-1])
        kth = scores.topk(k, dim=-1).values[..., -1:]
        return scores >= kth - min(2 * self.sensitivity, _MAX_SLACK)

    def chosen(self, public: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The candidates' ids (G, K) and whether each may be drawn, K being what the row with most of them needs."""
        import torch

        allowed = self.candidates(public)
        # The allowed ones first, in an order that ties can't change.
        order = torch.where(allowed, public.float(), -torch.inf)
        tokens = order.topk(int(allowed.sum(-1).max()), dim=-1).indices
        return tokens, allowed.gather(-1, tokens)

    def narrowed(self, scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """What may be drawn, once scores are known: as before, except where nothing is protected.

        Unclipped, the candidates are thousands, so that none is missed; of these the k best are kept, as any sampler
        would. Under a guarantee that would tell which tokens records favour.

        Args:
            scores: (G, K).
            allowed: (G, K) booleans.
        """
        if math.isfinite(self.sensitivity):
            return allowed
        k = min(self.top_k, scores.shape[-1])
        kth = scores.masked_fill(~allowed, -math.inf).topk(k, dim=-1).values[..., -1:]
        return allowed & (scores >= kth)

    def mixed(
        self,
        public: torch.Tensor,
        tokens: torch.Tensor,
        members: MemberScores,
        behind: torch.Tensor,
        present: torch.Tensor,
        divisors: torch.Tensor,
    ) -> torch.Tensor:
        """The scores that tokens are drawn by, for S batches of T texts and P places each.

        Args:
            public: (S * T, V) public scores.
            tokens: (S * T, K) ids of candidates.
            members: The scores of S batches' places.
            behind: (S, P) which text each place stands behind.
            present: (S, P) whether there is a record.
            divisors: (S * T,) each text's B.

        Returns:
            (S * T, K) float64.
        """
        import torch

        texts = len(public) // len(behind)
        every = torch.arange(texts, device=behind.device)[None, :, None]
        mine = present[:, None] & (behind[:, None] == every)  # (S, T, P)
        base = public.gather(-1, tokens)
        if math.isfinite(self.sensitivity):
            private = members.of(tokens.view(len(behind), texts, -1))
            return self.scores(base, private.flatten(0, 1), mine.flatten(0, 1), divisors)
        # With no clip the mean of the members' scores is all that counts.
        count = mine.sum(-1)  # (S, T)
        mean = members.mean(mine / count.clamp(min=1)[..., None])
        private, count = mean.flatten(0, 1).gather(-1, tokens), count.flatten()
        return self.scores(base, private[:, None], count[:, None] > 0, divisors / count.clamp(min=1))

    def scores(
        self, public: torch.Tensor, private: torch.Tensor, present: torch.Tensor, divisor: torch.Tensor
    ) -> torch.Tensor:
        """Public scores plus the mean clipped difference.

        Args:
            public: (G, K) scores of K tokens by G public prompts.
            private: (G, M, K) scores of the same tokens by each group's private prompts, in whatever dtype.
            present: (G, M) booleans; False for a place without a record, which contributes nothing.
            divisor: (G,) B of each group's text, positive: public, and never the number of members present.

        Returns:
            (G, K) float64. Whatever one record's scores are, NaN and infinities included, replacing it by nothing
            moves no entry by more than C/B.

        Raises:
            ValueError: a public score is not finite; public scores are not a record's doing, so this hides nothing.
        """
        import torch

        base = public.double()
        if not bool(torch.isfinite(base).all()):
            raise ValueError("public scores must be finite")
        difference = private.double() - base[:, None]
        by = divisor.double()[:, None]  # (G, 1)
        clip = (self.sensitivity * by)[:, None]  # (G, 1, 1)
        difference = difference.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf).clamp(-clip, clip)
        # With no clip at all an infinite score would drown every other; it never was private.
        difference = difference.nan_to_num(posinf=_UNCLIPPED, neginf=-_UNCLIPPED)
        total = torch.where(present[..., None], difference, 0.0).sum(1)
        return base + total / by

    def pick(self, tokens: torch.Tensor, scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """The next token of each text (G,), of candidates (G, K) with these scores."""
        import torch

        index = torch.tensor(self.draw(scores, self.narrowed(scores, allowed)), device=tokens.device)
        return tokens.gather(-1, index[:, None])[:, 0]

    def draw(self, scores: torch.Tensor, allowed: torch.Tensor) -> list[int]:
        """One index per row: softmax of scores / τ over the allowed entries, by the operating system's randomness.

        Args:
            scores: (G, K).
            allowed: (G, K) booleans, at least one in each row.
        """
        import torch

        odds = torch.where(allowed, scores.double() / self.temperature, -math.inf).softmax(-1)
        cumulative, chance = odds.cumsum(-1).cpu().numpy(), _uniform(len(scores))
        # Rounding must not reach the end itself: no index lies beyond it.
        points = np.minimum(chance * cumulative[:, -1], np.nextafter(cumulative[:, -1], 0))
        return [int(np.searchsorted(row, point, "right")) for row, point in zip(cumulative, points, strict=True)]


_MAX_SLACK = 20.0
"""Logits below the k-th best public score at which a token's odds are nil anyway."""
_UNCLIPPED = 1e4


def _uniform(count: int) -> np.ndarray:
    """`count` independent numbers in [0, 1), with 53 random bits each from the operating system."""
    return (np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)) * 2.0**-53
