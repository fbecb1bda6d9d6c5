"""Private prediction with vLLM, seen from here: budget is claimed for a batch, then its prompts cross the pipe.

What is computed and drawn over there is told in vllm_private_worker.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError
from tutelage.privacy import mechanism as mechanisms
from tutelage.privacy.ledger import Allowance
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines.base import Generation, too_long
from tutelage.teachers.engines.private import Batch, Public
from tutelage.teachers.engines.rows import refuse_kind, shared_rows
from tutelage.teachers.engines.transformers import end_ids
from tutelage.teachers.engines.vllm import Receive, Send, VllmEngine

_AMPLE_TOKENS = 2048
"""Of a prompt and its text, where the model can: so that vLLM is not begun anew for texts a little longer."""


class VllmDecoder:
    """See `PrivateDecoder`.

    Args:
        engine: vLLM, which is begun anew if it runs for something else.
        tail_tokens: See `PrivateEngine.decoder`.

    Raises:
        UserError: the model's rows are not computed apart.
    """

    def __init__(self, engine: VllmEngine, tail_tokens: int) -> None:
        from transformers import AutoConfig

        if tail_tokens < 1:
            raise ValueError("tail_tokens must be at least 1")
        if engine.config.quantization is not None:
            raise shared_rows("is quantised")
        self.model = AutoConfig.from_pretrained(engine.folder)
        refuse_kind(self.model)
        self.engine, self.tail_tokens = engine, tail_tokens

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
        if not batches:
            return []
        places = len(batches[0].members)
        if any(len(one.members) != places for one in batches):
            raise ValueError("batches must all have as many places")
        request = self._request(publics, places, mechanism, stop, self._ends() if ends is None else ends)
        texts: list[list[Generation]] = [[] for _ in batches]
        waiting = deque(range(len(batches)))
        with self._asked(request, "write") as (send, answers):
            for answer in answers:
                if "room" in answer:
                    taken = [waiting.popleft() for _ in range(min(len(waiting), answer["room"]))]
                    if taken:
                        allowance.claim(mechanism.event(), [batches[i].part for i in taken])
                    send({"batches": [[i, _members(batches[i])] for i in taken]})
                else:
                    at = answer["written"]
                    texts[at] = [Generation(text, finished) for text, finished in answer["texts"]]
                    if on_written:
                        on_written(batches[at].part, texts[at])
        return texts

    def shift(self, publics: Sequence[Public], batch: Batch, mechanism: PrivatePrediction) -> float:
        """See `PrivateDecoder.shift`."""
        if all(member is None for member in batch.members):
            return math.nan
        request = self._request(publics, len(batch.members), mechanism, "\0", set())
        with self._asked(request | {"members": _members(batch)}, "shift") as (_, answers):
            moved: list[float] = next(answers)["moved"]
        return math.nan if any(map(math.isnan, moved)) else max(moved)

    def _request(
        self, publics: Sequence[Public], places: int, mechanism: PrivatePrediction, stop: str, ends: set[int]
    ) -> dict[str, Any]:
        return {
            "publics": [asdict(one) for one in publics],
            "places": places,
            "tail_tokens": self.tail_tokens,
            "stop": stop,
            "ends": sorted(ends),
            "mechanism": asdict(mechanism),
        }

    @contextmanager
    def _asked(self, request: dict[str, Any], what: str) -> Iterator[tuple[Send, Iterator[dict[str, Any]]]]:
        """Ask vLLM: how to say more, and what it answers until it is done."""
        with self.engine.at_work(self._start(request)) as (send, receive):
            send({what: request})
            yield send, self._answers(receive)

    def _answers(self, receive: Receive) -> Iterator[dict[str, Any]]:
        while "done" not in (answer := receive()):
            if "too_long" in answer:
                raise too_long(*answer["too_long"])
            if "no_room" in answer:
                raise UserError(
                    f"vLLM has no room for the {answer['no_room']} tokens of one batch", key="teach.engine",
                    remedy="raise kv_cache_gib or gpu_memory_utilization, or lower privacy.batch_units",
                )  # fmt: skip
            yield answer

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        """What vLLM must be begun with for this."""
        encode = self.engine.tokenizer
        head = max(len(encode(one["head"], add_special_tokens=False)["input_ids"]) for one in request["publics"])
        width = head + self.tail_tokens
        longest = width + request["mechanism"]["max_tokens"]
        limit = self.engine.config.max_model_len or self.model.get_text_config().max_position_embeddings
        if longest > limit:
            raise too_long(longest, limit)
        return {
            "rows": len(request["publics"]) + request["places"],
            "width": width,
            "longest": longest,
            "max_model_len": min(limit, max(longest, _AMPLE_TOKENS)),
            "mechanism": str(Path(mechanisms.__file__).resolve()),
        }

    def _ends(self) -> set[int]:
        from transformers import GenerationConfig

        found = (self.engine.folder / "generation_config.json").is_file()
        config = GenerationConfig.from_pretrained(self.engine.folder) if found else self.model
        return end_ids(config, self.engine.tokenizer)


def _members(batch: Batch) -> list[list[Any] | None]:
    return [None if member is None else [member.text, member.tail] for member in batch.members]
