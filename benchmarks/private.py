"""Private prediction's decoding rate, by engine: against a plain loop, text by text, and the engine's own plain rate.

A group is one text over B private prompts and a public one: B + 1 rows. All ways sample from the same model over
prompts of the same length, and none stops early. Each is timed with one new token (t_1: reading the prompts) and with N
(t_N), so that the rate of decoding is that of all tokens but the first, in rows (a row's token) a second:

    rows (N - 1) / (t_N - t_1)

`loop` is what one would write first: one text after the other, one prompt after the other, each with a cache of its
own. Its rate doesn't depend on how many texts there are, so it writes one. `engine` is the engine's ordinary batched
decoding of as many rows.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from unittest import mock

from benchmarks.suite import Figure, figure, say
from tutelage.configs.errors import UserError
from tutelage.configs.models import resolve_model
from tutelage.configs.schema import VllmConfig
from tutelage.privacy.ledger import Internal
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines import transformers
from tutelage.teachers.engines.base import Engine, Sampling
from tutelage.teachers.engines.private import Batch, Member, PrivateEngine, Public
from tutelage.teachers.engines.vllm import VllmEngine

WORD = "mail about the meeting on friday and the price of a ticket "
GROUPS, BATCH, PROMPT_TOKENS, NEW_TOKENS, ROUNDS, BATCH_ROWS = 16, 7, 48, 17, 3, 128


def measure(full: bool) -> list[Figure]:
    """Every engine that decodes privately."""
    folder = resolve_model("smollm2-135m-instruct")
    inside = transformers.TransformersEngine(folder, BATCH_ROWS)
    figures = _compare("transformers", inside, inside, inside)
    try:
        # a process of its own for each way: one that is begun for the one can't do the other
        private, plain = (VllmEngine(folder, VllmConfig(kind="vllm", max_model_len=512, kv_cache_gib=1)) for _ in "ab")
    except UserError as error:
        say(f"vLLM is left out: {error}")
        return figures
    with contextlib.closing(private), contextlib.closing(plain):
        return [*figures, *_compare("vLLM", private, plain, inside)]


def _compare(name: str, private: PrivateEngine, plain: Engine, inside: transformers.TransformersEngine) -> list[Figure]:
    ways = _ways(private, plain, inside)
    rows = {"private": GROUPS * (BATCH + 1), "engine": GROUPS * (BATCH + 1), "loop": BATCH + 1}
    rates: dict[str, list[float]] = {way: [] for way in rows}
    for way in rows:  # what is only slow the first time is no rate; for longer texts vLLM would be begun anew
        ways[way](NEW_TOKENS if way == "private" else 2)
    for number in range(ROUNDS):
        for way in list(rows)[:: -1 if number % 2 else 1]:
            first, whole = (_seconds(ways[way], count) for count in (1, NEW_TOKENS))
            decoding = whole - first
            # Noise can make the first token take as long as all: then there is no rate to tell.
            rates[way].append(rows[way] * (NEW_TOKENS - 1) / decoding if decoding > 0 else math.nan)
            say(f"round {number + 1} of {ROUNDS}: {name}, {way} {rates[way][-1]:.0f} rows/s")
    against = {way: [a / b for a, b in zip(rates["private"], rates[way], strict=True)] for way in ("loop", "engine")}
    return [
        figure(f"{name}: private decoding / a loop, text by text", against["loop"], "×", at_least=10.0),
        figure(f"{name}: private decoding / the engine's plain rate", against["engine"], "×", at_least=0.8),
        figure(f"{name}: private decoding", rates["private"], " rows/s"),
    ]


def _ways(
    private: PrivateEngine, plain: Engine, inside: transformers.TransformersEngine
) -> dict[str, Callable[[int], object]]:
    """Name -> what is called with a number of new tokens; the loop is over the model that lies in this process."""
    import torch
    from transformers import DynamicCache

    encode, model = private.tokenizer, inside.model
    ids = encode(WORD * PROMPT_TOKENS)["input_ids"][:PROMPT_TOKENS]
    half = len(ids) // 2  # as in use: prompts begin alike, and what they begin with is read once
    head, tail = encode.decode(ids[:half]), encode.decode(ids[half:])
    decoder = private.decoder(len(ids) - half)
    work = [Batch(part, (Member(0, tail),) * BATCH) for part in range(GROUPS)]

    def mechanism(new_tokens: int) -> PrivatePrediction:
        return PrivatePrediction(1 / BATCH, 1.0, 100, new_tokens)

    def write(new_tokens: int) -> None:
        publics = [Public(head, tail, float(BATCH))]
        decoder.write(publics, work, mechanism(new_tokens), Internal(), stop="\0", ends=set())

    def generate(new_tokens: int) -> None:
        with mock.patch.object(transformers, "end_tokens", return_value=set()):
            plain.generate([head + tail] * GROUPS * (BATCH + 1), 1, Sampling(new_tokens, 1.0, 1.0, 100, "\0"), seed=0)

    def loop(new_tokens: int) -> None:
        one, fed, caches = mechanism(new_tokens), ids, [DynamicCache() for _ in range(BATCH + 1)]
        present, by = torch.ones(1, BATCH, dtype=torch.bool), torch.tensor([float(BATCH)])
        with torch.inference_mode():
            for _ in range(new_tokens):
                inputs = torch.tensor([fed], device=model.device)
                public, *own = (
                    model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                    for cache in caches
                )
                scores = one.scores(public, torch.stack(own, 1), present, by)
                fed = list(one.draw(scores, one.candidates(public)))

    return {"private": write, "engine": generate, "loop": loop}


def _seconds(way: Callable[[int], object], new_tokens: int) -> float:
    started = time.perf_counter()
    way(new_tokens)
    return time.perf_counter() - started
