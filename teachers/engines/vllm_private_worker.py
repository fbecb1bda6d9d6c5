"""Private prediction where vLLM's model is: a logits processor has the rows of a batch drawn for together.

vLLM draws every row's token for itself. Here a batch's rows are one: at each step the processor sees the scores of all
of them, the mechanism draws a token for every text, and a row is left nothing but the token of its text. So vLLM only
computes; what protects is `privacy/mechanism.py`, the same file as everywhere.

It fails closed. Rows of a batch are read in one step and step together: neither is a prompt read in parts nor a row
put off for another, since no more is admitted than there is room for until its end. If a step has not all rows of every
batch, or a row was given another token than was drawn for it, `Torn` is raised, and no text that it was part of leaves.
No two prompts share a cache, and rows must be computed apart (`vllm_apart.py`).

It runs in vLLM's own Python, with nothing of ours but `mechanism.py`, `drawn.py` and `vllm_apart.py`, loaded by
`vllm_worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

Drawing = Callable[[list[int], torch.Tensor, Any], torch.Tensor]
"""(batches of a step, public scores (S * T, V), scores of the places) -> tokens (S, T)."""


class Torn(Exception):
    """A step had not all rows of a batch: whatever was drawn from it must not be released."""


class Coupling(LogitsProcessor):
    """Which row of a step is which of a batch's, and the one token that is left to it."""

    decoding: ClassVar[Decoding | None] = None
    seen: ClassVar[list[torch.Tensor] | None] = None
    """Scores of the row that is tried, while it is."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, tuple[int, int, Sequence[int]]] = {}
        """Row of the step -> (batch, row of the batch, its tokens so far)."""

    def is_argmax_invariant(self) -> bool:
        """It decides what is drawn."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """See `LogitsProcessor`: what is removed, then added, then moved."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.rows.pop(index, None)
        for index, params, _, tokens in batch_update.added:
            self.rows.pop(index, None)
            if params.extra_args and "private" in params.extra_args:
                batch, row = params.extra_args["private"]
                self.rows[index] = batch, row, tokens
        for a, b, direction in batch_update.moved:
            first, second = self.rows.pop(a, None), self.rows.pop(b, None)
            if first is not None:
                self.rows[b] = first
            if second is not None and direction == MoveDirectionality.SWAP:
                self.rows[a] = second

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw for all rows of all batches."""
        if Coupling.seen is not None:
            Coupling.seen += [logits[index].clone() for index, (batch, _, _) in self.rows.items() if batch < 0]
        elif self.rows:
            if Coupling.decoding is None:
                raise Torn
            Coupling.decoding.draw(logits, self.rows)
        return logits


class _Logits:
    """See `MemberScores`: rows of a step's scores, `rows` (S, P)."""

    def __init__(self, logits: torch.Tensor, rows: torch.Tensor) -> None:
        self.logits, self.rows = logits, rows

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[self.rows[:, None, :, None], tokens[:, :, None, :]]

    def mean(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.to(self.logits.dtype) @ self.logits[self.rows]


@dataclass
class _Running:
    members: list[tuple[int, str] | None]
    texts: list[Any]
    steps: int = 0
    drawn: list[int] = field(default_factory=list)
    """The token of every row at the last step."""


class Decoding:
    """Batches side by side in vLLM, from their first to their last token.

    Args:
        llm: vLLM's.
        request: What the parent asks for: publics, places, tail_tokens, stop, ends, and the mechanism's parameters.
        modules: `mechanism` and `drawn`.
        draw: Instead of the mechanism's own.
    """

    def __init__(self, llm: Any, request: dict[str, Any], modules: Any, draw: Drawing | None = None) -> None:
        self.llm, self.engine, self.drawn = llm, llm.llm_engine, modules.drawn
        self.mechanism = modules.mechanism.PrivatePrediction(**request["mechanism"])
        self.tokenizer, self.tail_tokens = llm.get_tokenizer(), request["tail_tokens"]
        self.stop, self.ends = request["stop"], set(request["ends"])
        self.heads = [self._ids(one["head"]) for one in request["publics"]]
        self.tails = [one["tail"] for one in request["publics"]]
        self.places, self.texts = request["places"], len(self.heads)
        self.rows = self.texts + self.places
        self.divisors = [one["divisor"] for one in request["publics"]]
        self.width = max(map(len, self.heads)) + self.tail_tokens
        self.running: dict[int, _Running] = {}
        self._stepped: set[int] = set()
        self._draw = draw or self.by_mechanism

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def longest(self) -> int:
        """Tokens of a row at its end."""
        return self.width + int(self.mechanism.max_tokens)

    def slots(self) -> int:
        """Batches that there is room for until their end, whatever their records are: none is put off for another."""
        config = self.engine.vllm_config
        cache = config.cache_config
        blocks = self.rows * (-(-self.longest() // cache.block_size) + 1)
        return min(config.scheduler_config.max_num_seqs // self.rows, (cache.num_gpu_blocks - 1) // blocks)

    def readable(self) -> int:
        """Batches whose prompts can be read in one step, beside all rows that run, whatever their records are."""
        budget: int = self.engine.vllm_config.scheduler_config.max_num_batched_tokens
        return (budget - len(self.running) * self.rows) // (self.rows * self.width)

    def admit(self, key: int, members: list[tuple[int, str] | None]) -> None:
        """Begin a batch. A place without a record runs a public prompt."""
        prompts = [(at, tail) for at, tail in enumerate(self.tails)]
        prompts += [(0, self.tails[0]) if member is None else (member[0], member[1]) for member in members]
        self.running[key] = _Running(members, [self.drawn.Drawn() for _ in self.heads])
        for row, (text, tail) in enumerate(prompts):
            settings = SamplingParams(
                temperature=0,
                max_tokens=self.mechanism.max_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args={"private": (key, row)},
            )
            ids = self.heads[text] + self._ids(tail)[-self.tail_tokens :]
            self.engine.add_request(f"{key}/{row}", {"prompt_token_ids": ids}, settings)

    def draw(self, logits: torch.Tensor, rows: dict[int, tuple[int, int, Sequence[int]]]) -> None:
        """Leave every row the token that is drawn for its text.

        Args:
            logits: (rows of the step, V) float32, changed in place.
            rows: Row -> (batch, row of the batch, its tokens so far).

        Raises:
            Torn: rows of a batch are missing, or further than others.
        """
        at: dict[int, dict[int, int]] = {}
        for index, (key, row, before) in rows.items():
            if key not in self.running or len(before) != self.running[key].steps:
                raise Torn
            at.setdefault(key, {})[row] = index
        keys = sorted(at)
        if any(sorted(at[key]) != list(range(self.rows)) for key in keys):
            raise Torn
        where = torch.tensor([[at[key][row] for row in range(self.rows)] for key in keys], device=logits.device)
        members = _Logits(logits, where[:, self.texts :])
        tokens = self._draw(keys, logits[where[:, : self.texts]].flatten(0, 1), members)  # (S, T)
        own = torch.cat([tokens, tokens.gather(1, self.behind(keys, logits.device))], dim=1)  # (S, rows)
        logits[where.flatten()] = -torch.inf
        logits[where, own] = 0.0
        for key, drawn in zip(keys, own.tolist(), strict=True):
            self.running[key].drawn = drawn
        self._stepped = set(keys)

    def behind(self, keys: list[int], device: Any) -> torch.Tensor:
        """The text that each place stands behind: (S, P)."""
        rows = [[member[0] if member else 0 for member in self.running[key].members] for key in keys]
        return torch.tensor(rows, dtype=torch.long, device=device).view(len(keys), self.places)

    def mixed(self, keys: list[int], public: torch.Tensor, members: Any, tokens: torch.Tensor) -> torch.Tensor:
        """See `PrivatePrediction.mixed`."""
        rows = [[member is not None for member in self.running[key].members] for key in keys]
        present = torch.tensor(rows, dtype=torch.bool, device=public.device).view(len(keys), self.places)
        divisors = torch.tensor(self.divisors * len(keys), dtype=torch.float64, device=public.device)
        behind = self.behind(keys, public.device)
        scores: torch.Tensor = self.mechanism.mixed(public, tokens, members, behind, present, divisors)
        return scores

    def by_mechanism(self, keys: list[int], public: torch.Tensor, members: Any) -> torch.Tensor:
        """A step's tokens, as the mechanism draws them."""
        tokens, allowed = self.mechanism.chosen(public)
        drawn: torch.Tensor = self.mechanism.pick(tokens, self.mixed(keys, public, members, tokens), allowed)
        return drawn.view(len(keys), self.texts)

    def step(self) -> list[int]:
        """Advance all batches by a token; those that are done have left.

        Raises:
            Torn: it was not a step of all rows of all batches.
        """
        self._stepped = set()
        Coupling.decoding = self
        try:
            outputs = self.engine.step()
        finally:
            Coupling.decoding = None
        given = {output.request_id: list(output.outputs[0].token_ids) for output in outputs}
        due = {f"{key}/{row}": [token] for key, one in self.running.items() for row, token in enumerate(one.drawn)}
        if self._stepped != set(self.running) or given != due:
            raise Torn
        done = []
        for key, one in self.running.items():
            one.steps += 1
            for text, token in zip(one.texts, one.drawn, strict=False):
                text.add(token, self.ends, self.stop, self.tokenizer)
            if one.steps == self.mechanism.max_tokens or all(text.finished for text in one.texts):
                done.append(key)
        left = [f"{key}/{row}" for key in done for row in range(self.rows)]
        if left:
            self.engine.abort_request(left)
        return done

    def leave(self, key: int) -> list[tuple[str, bool]]:
        """The texts of a batch that is done."""
        return [text.text(self.stop, self.tokenizer) for text in self.running.pop(key).texts]


def write(
    llm: Any, request: dict[str, Any], modules: Any, receive: Callable[[], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Answer a request to write: room for batches, texts, room for more, until no more come.

    Args:
        llm: vLLM's.
        request: The parent's.
        modules: `mechanism` and `drawn`.
        receive: The parent's next message: batches, as many as there was room for, or none if there are no more.
    """
    decoding = Decoding(llm, request, modules)
    if refused := _refused(decoding):
        yield refused
        return
    slots, more = decoding.slots(), True
    while more or decoding.running:
        free = slots - len(decoding.running)
        # A few at a time: reading prompts one batch at a time would waste the processor.
        if more and (not decoding.running or free >= max(1, slots // 4)):
            room = min(free, decoding.readable())
            if room:
                yield {"room": room}
                batches = receive()["batches"]
                more = len(batches) == room
                for key, members in batches:
                    decoding.admit(key, members)
        if decoding.running:
            for key in decoding.step():
                yield {"written": key, "texts": decoding.leave(key)}
            yield {"alive": True}
    yield {"done": True}


def shift(llm: Any, request: dict[str, Any], modules: Any) -> Iterator[dict[str, Any]]:
    """Answer how far each record of the one batch in the request moves a score: see `PrivateDecoder.shift`."""
    whole: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    moved: list[float] = []

    def first(keys: list[int], public: torch.Tensor, members: Any) -> torch.Tensor:
        tokens, allowed = decoding.mechanism.chosen(public)
        scores = decoding.mixed(keys, public, members, tokens)
        drawn = decoding.mechanism.pick(tokens, scores, allowed)[None]
        whole.append((tokens, allowed, scores, drawn))
        return drawn

    def again(keys: list[int], public: torch.Tensor, members: Any) -> torch.Tensor:
        # All are asked about the first's candidates: rounding may give others other ones at the edge.
        tokens, allowed, scores, drawn = whole[decoding.running[keys[0]].steps]
        others = decoding.mixed(keys, public, members, tokens.repeat(len(keys), 1)).view(len(keys), *scores.shape)
        moved.extend(float((scores - one).abs()[allowed].max()) for one in others)
        return drawn.repeat(len(keys), 1)

    decoding = Decoding(llm, request, modules, first)
    if refused := _refused(decoding):
        yield refused
        return
    members, room = request["members"], min(decoding.slots(), decoding.readable())
    held = [place for place, member in enumerate(members) if member is not None]
    variants = [[*members[:place], None, *members[place + 1 :]] for place in held]
    yield from _to_the_end(decoding, [members])
    decoding._draw = again
    for start in range(0, len(variants), room):
        yield from _to_the_end(decoding, variants[start : start + room])
    yield {"moved": moved}


def _to_the_end(decoding: Decoding, batches: Sequence[list[tuple[int, str] | None]]) -> Iterator[dict[str, Any]]:
    for key, members in enumerate(batches):
        decoding.admit(key, members)
    while decoding.running:
        for key in decoding.step():
            decoding.leave(key)
        yield {"alive": True}


def _refused(decoding: Decoding) -> dict[str, Any] | None:
    limit = decoding.engine.vllm_config.model_config.max_model_len
    if decoding.longest() > limit:
        return {"too_long": [decoding.longest(), limit]}
    if decoding.slots() < 1:
        return {"no_room": decoding.rows * decoding.longest()}
    return None


def settings(start: dict[str, Any]) -> dict[str, Any]:
    """What vLLM's LLM is begun with for private prediction.

    Args:
        start: `rows` of a batch, `width` of its prompts and `max_model_len` of a prompt and its text, in tokens.
    """
    return {
        "logits_processors": [Coupling],
        "enable_prefix_caching": False,  # no silo's prompt, and no record's, is another's cache
        "enable_chunked_prefill": False,  # a prompt that is read in parts has scores that mean nothing
        "async_scheduling": False,  # a step must be known before the next is planned
        "max_num_seqs": max(start["rows"], 256),
        "max_num_batched_tokens": max(start["rows"] * start["width"], start["max_model_len"], 8192),
        "max_model_len": start["max_model_len"],
    }
