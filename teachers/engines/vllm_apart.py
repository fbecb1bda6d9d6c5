"""Rows of vLLM's that are computed apart, to the last bit: what private prediction needs, and a trial that they are.

How far one record moves a score is bounded only if no other row moves it. Runs in vLLM's own Python (vllm_worker.py).
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from typing import Any

import torch
from vllm import SamplingParams


def compute_apart(on_processor: bool) -> None:
    """Have vLLM compute a row the same whatever other rows stand beside it, as far as it has a way to.

    On a processor it deals attention out to its threads by all rows' lengths; where a prompt or its keys are cut for
    that, sums are taken in another order. For a single thread nothing is cut; all else has all threads.
    """
    if not on_processor:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
        return
    from vllm import _custom_ops

    for name in ("cpu_attn_get_scheduler_metadata", "cpu_attention_with_kv_cache"):
        setattr(_custom_ops, name, _by_one_thread(getattr(_custom_ops, name)))


def _by_one_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def alone(*given: Any, **named: Any) -> Any:
        threads = torch.get_num_threads()
        torch._C.set_num_threads(1)  # vLLM has made torch.set_num_threads do nothing
        try:
            return function(*given, **named)
        finally:
            torch._C.set_num_threads(threads)

    return alone


_TRIED_STEPS = 3
_TRIED_TOKENS = 1024
"""Of the prompts that stand beside the one that is tried, about."""


def apart(llm: Any, start: dict[str, Any], coupling: Any) -> bool:
    """Whether a row's scores are the same to the last bit whatever other rows, of whatever lengths, stand beside it.

    Args:
        llm: vLLM's.
        start: `rows` of a batch, and `longest`: tokens that a row may have. So much is tried.
        coupling: The logits processor of private prediction, which shows the scores of what is asked for as batch -1.
    """
    chance, words = random.Random(0), llm.llm_engine.vllm_config.model_config.get_vocab_size()

    def prompt(length: int) -> list[int]:
        return [chance.randrange(words) for _ in range(max(1, length))]

    own, found = prompt(start["longest"] - _TRIED_STEPS), list[list[torch.Tensor]]()
    most = start["rows"] - 1
    some = min(most, -(-_TRIED_TOKENS // len(own)))
    beside = [[], [len(own)] * some, [len(own) // 3] * some, [1] * most]
    beside.append([chance.randrange(len(own)) for _ in range(some)])
    for lengths in beside:
        seen: list[torch.Tensor] = []
        coupling.seen = seen
        rows = [(own, {"private": (-1, 0)}), *((prompt(length), None) for length in lengths)]
        settings = [
            SamplingParams(max_tokens=_TRIED_STEPS, temperature=0, ignore_eos=True, extra_args=extra)
            for _, extra in rows
        ]
        try:
            llm.generate([{"prompt_token_ids": ids} for ids, _ in rows], settings, use_tqdm=False)
        finally:
            coupling.seen = None
        found.append(seen)
    # None are seen where the processor is not asked.
    return all(len(one) == _TRIED_STEPS and all(map(torch.equal, one, found[0])) for one in found)
