"""Private prediction's decoding rate: ours, the engine's own batched decoding, and a plain batched loop, in one run.

    python benchmarks/private.py [--groups 4 16 64] [--batch 7] [--prompt-tokens 48] [--new-tokens 32] [--rounds 3]

A group is one text over B private prompts and a public one: B + 1 rows. All three ways run the same number of rows
over prompts of the same length, sample from the same model, and none stops early. Each is timed with one new token
(t_1: reading the prompts, and a draw) and with N (t_N), which gives two rates in rows (one token of one row) a second:

    decode    rows (N - 1) / (t_N - t_1): without reading the prompts
    whole     rows N / t_N

Prints both, and the ratios, round by round: on a noisy machine the ratios are the figures. At the end a table of
medians: ours decoding, how that compares to ours with the fewest groups, and ours against the other two.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from transformers import DynamicCache

from tutelage.configs.models import resolve_model
from tutelage.privacy.ledger import Internal
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines import transformers
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.engines.private import Batch, Member, Public
from tutelage.teachers.engines.transformers_private import TransformersDecoder

WORD = "mail about the meeting on friday and the price of a ticket "


class Rate(NamedTuple):
    """Rows per second of one way in one round."""

    decode: float
    whole: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--batch", type=int, default=7, help="private prompts of a text")
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=32, help="N, at least 2")
    parser.add_argument("--batch-rows", type=int, default=128, help="rows that ours and the engine compute together")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.new_tokens < 2:
        parser.error("--new-tokens must be at least 2: the rate of decoding is that of the tokens after the first")

    engine = transformers.TransformersEngine(resolve_model("smollm2-135m-instruct"), options.batch_rows)
    transformers.end_tokens = lambda *_: set()
    ids = engine.tokenizer(WORD * options.prompt_tokens)["input_ids"][: options.prompt_tokens]
    prompt = engine.tokenizer.decode(ids)
    half = len(ids) // 2  # as in use: prompts begin alike, and what they begin with is read once
    head, tail = engine.tokenizer.decode(ids[:half]), engine.tokenizer.decode(ids[half:])
    decoder = TransformersDecoder(engine.model, engine.tokenizer, options.batch_rows, len(ids) - half)
    publics = [Public(head, tail, float(options.batch))]

    def mechanism(new_tokens: int) -> PrivatePrediction:
        return PrivatePrediction(1 / options.batch, 1.0, 100, new_tokens)

    def ours(groups: int, new_tokens: int) -> None:
        work = [Batch(part, (Member(0, tail),) * options.batch) for part in range(groups)]
        decoder.write(publics, work, mechanism(new_tokens), Internal(), stop="\0", ends=set())

    def own(groups: int, new_tokens: int) -> None:
        sampling = Sampling(new_tokens, 1.0, 1.0, 100, stop="\0")
        engine.generate([prompt] * groups * (options.batch + 1), 1, sampling, seed=0)

    def plain(groups: int, new_tokens: int) -> None:
        """All groups in one batch, a cache that is copied to grow, whole logits for every row."""
        one, shape = mechanism(new_tokens), (groups, options.batch + 1)
        fed, cache = torch.tensor([ids] * groups * shape[1]), DynamicCache()
        present = torch.ones(groups, options.batch, dtype=torch.bool)
        by = torch.full((groups,), float(options.batch))
        with torch.inference_mode():
            for _ in range(new_tokens):
                logits = engine.model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                public, private = logits.view(*shape, -1)[:, 0], logits.view(*shape, -1)[:, 1:]
                scores = one.scores(public, private, present, by)
                drawn = torch.tensor(one.draw(scores, one.candidates(public)))
                fed = drawn[:, None].expand(shape).reshape(-1, 1)

    def rate(way: Callable[[int, int], None], groups: int) -> Rate:
        rows, tokens = groups * (options.batch + 1), options.new_tokens
        first, all_of_them = (_seconds(way, groups, count) for count in (1, tokens))
        # Noise can make the first token take as long as all: then there is no rate to tell.
        decoding = all_of_them - first
        return Rate(rows * (tokens - 1) / decoding if decoding > 0 else math.nan, rows * tokens / all_of_them)

    for way in (ours, own, plain):  # what is only slow the first time is no rate
        way(min(options.groups), 2)
    found: dict[int, dict[str, list[Rate]]] = {}
    for groups in options.groups:
        rates: dict[str, list[Rate]] = found.setdefault(groups, {})
        for _ in range(options.rounds):
            for way in (ours, own, plain):
                rates.setdefault(way.__name__, []).append(rate(way, groups))
            mine, engines, loops = (rates[way.__name__][-1] for way in (ours, own, plain))
            for kind in Rate._fields:
                a, b, c = (getattr(one, kind) for one in (mine, engines, loops))
                print(
                    f"{groups:3} groups, {kind:6}: ours {a:5.0f} rows/s   engine {b:5.0f} ({a / b:.2f})   "
                    f"plain loop {c:5.0f} ({a / c:.2f})",
                    flush=True,
                )
        for kind in Rate._fields:
            print(
                f"{groups:3} groups, {kind:6}, median: {_ratio(rates, 'own', kind):.2f} of the engine, "
                f"{_ratio(rates, 'plain', kind):.2f} of the plain loop",
                flush=True,
            )

    fewest = _decoding(found[min(found)])
    print("\n         ours, decoding                decoding            whole")
    print("groups   rows/s   to the fewest   engine   plain loop   engine   plain loop")
    for groups, rates in sorted(found.items()):
        print(
            f"{groups:6} {_decoding(rates):8.0f} {_decoding(rates) / fewest:15.2f} "
            f"{_ratio(rates, 'own', 'decode'):8.2f} {_ratio(rates, 'plain', 'decode'):12.2f} "
            f"{_ratio(rates, 'own', 'whole'):8.2f} {_ratio(rates, 'plain', 'whole'):12.2f}"
        )


def _ratio(rates: dict[str, list[Rate]], to: str, kind: str) -> float:
    """Median over the rounds of ours against another way, each round by itself."""
    pairs = zip(rates["ours"], rates[to], strict=True)
    return _median(getattr(ours, kind) / getattr(other, kind) for ours, other in pairs)


def _decoding(rates: dict[str, list[Rate]]) -> float:
    return _median(one.decode for one in rates["ours"])


def _median(values: Iterable[float]) -> float:
    """Of the rounds that have a figure."""
    return statistics.median([value for value in values if not math.isnan(value)] or [math.nan])


def _seconds(way: Callable[[int, int], None], groups: int, new_tokens: int) -> float:
    started = time.perf_counter()
    way(groups, new_tokens)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
