"""Private prediction with transformers: all prompts of one text begin alike, and that beginning is read once.

The task, in public words, is what they begin with; its keys and values are copied, and so are those of the whole public
prompt. All rows have one width, fixed by settings, so that the shape of no product tells of a record.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.privacy.ledger import Allowance
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines.base import Generation
from tutelage.teachers.engines.drawn import Drawn
from tutelage.teachers.engines.private import Batch, Public
from tutelage.teachers.engines.rows import Head, RowCache, refuse_shared_rows
from tutelage.teachers.engines.transformers import additive_mask, check_length, end_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersDecoder:
    """See `PrivateDecoder`.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        batch_rows: Rows computed together, at most; never fewer than one batch has.
        tail_tokens: Width of what follows the head in every prompt. Longer tails keep their end: it asks for the text.

    Raises:
        UserError: the model's rows are not computed apart.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_rows: int, tail_tokens: int
    ) -> None:
        refuse_shared_rows(model)
        self.model, self.tokenizer = model, tokenizer
        if tail_tokens < 1:
            raise ValueError("tail_tokens must be at least 1")
        self.batch_rows, self.tail_tokens = batch_rows, tail_tokens

    def write(
        self,
        publics: Sequence[Public],
        batches: Sequence[Batch],
        mechanism: PrivatePrediction,
        allowance: Allowance,
        *,
        stop: str,
        ends: set[int] | None = None,
        on_written: Callable[[int, list[Generation]], object] | None = None,
    ) -> list[list[Generation]]:
        """See `PrivateDecoder.write`."""
        import torch

        if not batches:
            return []
        shape = (len(publics), len(batches[0].members))
        if any(len(one.members) != shape[1] for one in batches):
            raise ValueError("batches must all have as many places")
        ends = end_tokens(self.model, self.tokenizer) if ends is None else ends
        texts: list[list[Drawn]] = [[Drawn() for _ in publics] for _ in batches]
        waiting = deque(range(len(batches)))
        count = min(len(batches), max(1, self.batch_rows // sum(shape)))
        with torch.inference_mode():
            heads = _Heads(self, publics)
            check_length(self.model, heads.width + mechanism.max_tokens)
            slots = _Slots(self, heads, shape, count, mechanism.max_tokens)
            while waiting or slots.running:
                # A few at a time: reading prompts one batch at a time would waste the processor.
                if waiting and (not slots.running or len(slots.free) >= max(1, slots.count // 4)):
                    taken = [waiting.popleft() for _ in range(min(len(waiting), len(slots.free)))]
                    allowance.claim(mechanism.event(), [batches[i].part for i in taken])
                    slots.read({i: batches[i] for i in taken})
                drawn = slots.draw(mechanism)
                for index, row in drawn.items():
                    for text, token in zip(texts[index], row, strict=True):
                        text.add(token, ends, stop, self.tokenizer)
                done = [
                    index
                    for index in drawn
                    if slots.length(index) == mechanism.max_tokens or all(text.finished for text in texts[index])
                ]
                for index in done:
                    slots.leave(index)
                    if on_written:
                        on_written(
                            batches[index].part, [Generation(*one.text(stop, self.tokenizer)) for one in texts[index]]
                        )
                if not waiting:
                    slots.shrink()
                slots.feed({index: row for index, row in drawn.items() if index not in done})
        return [[Generation(*text.text(stop, self.tokenizer)) for text in row] for row in texts]

    def shift(self, publics: Sequence[Public], batch: Batch, mechanism: PrivatePrediction) -> float:
        """See `PrivateDecoder.shift`."""
        import torch

        members = batch.members
        held = [place for place, member in enumerate(members) if member is not None]
        if not held:
            return math.nan
        without = [Batch(batch.part, (*members[:place], None, *members[place + 1 :])) for place in held]
        variants = dict(enumerate([batch, *without]))
        moved: list[float] = []
        with torch.inference_mode():
            heads = _Heads(self, publics)
            slots = _Slots(self, heads, (len(publics), len(members)), len(variants), mechanism.max_tokens)
            slots.read(variants)
            order = torch.tensor([slots.running[i] for i in variants], device=slots.state.device)
            for step in range(mechanism.max_tokens):
                public = slots.head.scores(slots.state[order[0], : slots.texts])
                chosen, allowed = mechanism.chosen(public)
                # All are asked about the first's candidates: rounding may give others other ones at the edge.
                repeated = len(variants), 1
                scores = slots.scores(order, public.repeat(repeated), chosen.repeat(repeated), mechanism)
                whole, *less = scores.view(len(variants), slots.texts, -1)
                moved += [float((whole - one).abs()[allowed].max()) for one in less]
                drawn = mechanism.pick(chosen, whole, allowed).tolist()
                for slot in order.tolist():
                    slots.lengths[slot] += 1
                if step + 1 < mechanism.max_tokens:
                    slots.feed(dict.fromkeys(variants, drawn))
        return float(np.max(moved))  # unlike Python's max, NaN where any is: that must not look like no shift


class _Heads:
    """The texts' public prompts, read once: their heads for every member's prompt, and the whole of them."""

    def __init__(self, decoder: TransformersDecoder, publics: Sequence[Public]) -> None:
        import torch
        from transformers import DynamicCache

        self.model, self.tokenizer, self.publics = decoder.model, decoder.tokenizer, publics
        self.head = Head(self.model)
        self.tail_width = decoder.tail_tokens
        encoded = [self.tokenizer(one.head, add_special_tokens=False)["input_ids"] for one in publics]
        ids, self.mask = self._padded(encoded, max(1, max(map(len, encoded))))
        self.width = ids.shape[1] + self.tail_width
        self.cache = DynamicCache()
        self.head.run(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.divisors = torch.tensor([one.divisor for one in publics], dtype=torch.float64, device=ids.device)
        self.public_rows = self.read(range(len(publics)), [one.tail for one in publics])

    def read(self, texts: Sequence[int], tails: Sequence[str]) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Run some prompts behind their texts' heads: (their keys and values, mask (R, width), states (R, size))."""
        import torch

        ids, tail_mask = self._padded(
            [self.tokenizer(one, add_special_tokens=False)["input_ids"][-self.tail_width :] for one in tails],
            self.tail_width,
        )
        rows = torch.tensor(list(texts), device=ids.device)
        mask = torch.cat([self.mask[rows], tail_mask], dim=1)
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(rows)
        states = self.head.run(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -self.tail_width :],
            past_key_values=cache,
            use_cache=True,
        )
        return cache, mask.bool(), states

    def _padded(self, encoded: Sequence[list[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = [[pad] * (width - len(row)) + row for row in encoded]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in encoded]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)


class _States:
    """See `MemberScores`: what the head reads, (S, places, size)."""

    def __init__(self, head: Head, states: torch.Tensor) -> None:
        self.head, self.states = head, states

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head.scores_of(self.states, tokens)

    def mean(self, weights: torch.Tensor) -> torch.Tensor:
        # The score of the mean state: one row a text, and not all places' over the whole vocabulary.
        return self.head.scores(weights.to(self.states.dtype) @ self.states)


class _Slots:
    """The rows being decoded: `count` slots of one batch each, with their keys and values."""

    def __init__(
        self, decoder: TransformersDecoder, heads: _Heads, shape: tuple[int, int], count: int, max_tokens: int
    ) -> None:
        self.model, self.heads, self.width = decoder.model, heads, heads.width
        self.texts, self.places, self.count = *shape, count
        self.rows = self.texts + self.places
        self.cache = RowCache(self.model, count * self.rows, self.width + max_tokens)
        self.head = heads.head
        self.running: dict[int, int] = {}
        """Batch -> its slot."""
        self.free = list(range(count))
        self.lengths = [0] * count
        """Tokens drawn in each slot."""
        self.behind: torch.Tensor  # (count, places): the text each place stands behind
        self.present: torch.Tensor  # (count, places)
        self.prompt_mask: torch.Tensor  # (count * rows, width)
        self.state: torch.Tensor  # (count, rows, size): what the head reads
        self._allocate()

    def _allocate(self) -> None:
        import torch

        device = self.model.device
        self.behind = torch.zeros(self.count, self.places, dtype=torch.long, device=device)
        self.present = torch.zeros(self.count, self.places, dtype=torch.bool, device=device)
        self.prompt_mask = torch.ones(self.count * self.rows, self.width, dtype=torch.bool, device=device)
        self.state = torch.zeros(self.count, self.rows, self.head.size, dtype=self.model.dtype, device=device)

    def length(self, batch: int) -> int:
        return self.lengths[self.running[batch]]

    def leave(self, batch: int) -> None:
        self.free.append(self.running.pop(batch))

    def read(self, batches: dict[int, Batch]) -> None:
        """Run the prompts of some batches and give each a slot. A place without a record runs a public prompt."""
        import torch

        slots = [self.free.pop() for _ in batches]
        for slot, (index, batch) in zip(slots, batches.items(), strict=True):
            self.running[index], self.lengths[slot] = slot, 0
            self.behind[slot] = torch.tensor([member.text if member else 0 for member in batch.members])
            self.present[slot] = torch.tensor([member is not None for member in batch.members])
            self._fill(range(slot * self.rows, slot * self.rows + self.texts), self.heads.public_rows)
        members = [member for batch in batches.values() for member in batch.members]
        if members:
            texts = [member.text if member else 0 for member in members]
            tails = [member.tail if member else self.heads.publics[0].tail for member in members]
            rows = [slot * self.rows + self.texts + place for slot in slots for place in range(self.places)]
            self._fill(rows, self.heads.read(texts, tails))

    def _fill(self, rows: Sequence[int], made: tuple[Any, torch.Tensor, torch.Tensor]) -> None:
        import torch

        cache, mask, states = made
        index = torch.tensor(list(rows), device=mask.device)
        self.cache.put(index, cache)
        self.prompt_mask[index] = mask
        self.state.view(self.count * self.rows, -1)[index] = states

    def draw(self, mechanism: PrivatePrediction) -> dict[int, list[int]]:
        """The next token of every text of every running batch."""
        import torch

        slots = torch.tensor(list(self.running.values()), device=self.state.device)
        public = self.head.scores(self.state[slots, : self.texts]).flatten(0, 1)  # (S * texts, V)
        chosen, allowed = mechanism.chosen(public)
        scores = self.scores(slots, public, chosen, mechanism)
        tokens = mechanism.pick(chosen, scores, allowed).view(len(slots), self.texts).tolist()
        for slot in slots.tolist():
            self.lengths[slot] += 1
        return dict(zip(self.running, tokens, strict=True))

    def scores(
        self, slots: torch.Tensor, public: torch.Tensor, chosen: torch.Tensor, mechanism: PrivatePrediction
    ) -> torch.Tensor:
        """The mechanism's scores (S * texts, K) of some tokens `chosen`, given public scores (S * texts, V)."""

        members = _States(self.head, self.state[slots, self.texts :])
        divisors = self.heads.divisors.repeat(len(slots))
        return mechanism.mixed(public, chosen, members, self.behind[slots], self.present[slots], divisors)

    def feed(self, drawn: dict[int, list[int]]) -> None:
        """Run the drawn tokens: every public row its own, every place that of the text it stands behind."""
        import torch

        if not drawn:
            return
        device = self.state.device
        tokens = torch.zeros(self.count, self.texts, dtype=torch.long, device=device)
        for index, row in drawn.items():
            tokens[self.running[index]] = torch.tensor(row, device=device)
        ids = torch.cat([tokens, tokens.gather(1, self.behind)], dim=1).flatten()[:, None]
        lengths = torch.tensor(self.lengths, device=device).clamp(min=1).repeat_interleave(self.rows)
        longest = max(self.lengths[slot] for slot in self.running.values())
        fed = torch.arange(longest, device=device)[None] < lengths[:, None]  # (rows, longest)
        mask = torch.cat([self.prompt_mask, fed], dim=1)
        self.cache.columns = self.width + lengths - 1
        self.cache.used = self.width + longest
        hidden = self.head.run(
            input_ids=ids,
            attention_mask=additive_mask(mask[:, None, None], self.model.dtype),
            position_ids=(self.prompt_mask.sum(1) + lengths - 1)[:, None],
            past_key_values=self.cache.made,
            use_cache=True,
        )
        self.state = hidden.view(self.count, self.rows, -1)

    def shrink(self) -> None:
        """Drop the slots of finished batches once they are half of all: nothing waits for them any more."""
        import torch

        if not self.running or 2 * len(self.running) > self.count:
            return
        kept = list(self.running.values())
        slots = torch.tensor(kept, device=self.state.device)
        rows = (slots[:, None] * self.rows + torch.arange(self.rows, device=slots.device)).flatten()
        self.cache.keep(rows)
        self.behind, self.present, self.state = self.behind[slots], self.present[slots], self.state[slots]
        self.prompt_mask = self.prompt_mask[rows]
        self.lengths = [self.lengths[slot] for slot in kept]
        self.running = {index: at for at, index in enumerate(self.running)}
        self.count, self.free = len(kept), []
