"""Private prediction's decoding rate: ours, the engine's own batched decoding, and a plain batched loop, in one run.

    python benchmarks/private.py [--groups 4 16 64] [--batch 7] [--prompt-tokens 160] [--new-tokens 32] [--rounds 3]

A group is one text over B private prompts and a public one: B + 1 rows. Prints rows (one token of one row) per second,
prefill included, and the ratios, round by round: on a noisy machine the ratios are the figures. All three run the same
number of rows over prompts of the same length, sample from the same model, and none stops early.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import DynamicCache

from tutelage.configs.models import resolve_model
from tutelage.privacy.ledger import Reservation
from tutelage.privacy.mechanism import PrivatePrediction
from tutelage.teachers.engines import transformers
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.engines.private import Batch, Member, PrivateDecoder

WORD = "mail about the meeting on friday and the price of a ticket "


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--batch", type=int, default=7, help="private prompts of a text")
    parser.add_argument("--prompt-tokens", type=int, default=160)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-rows", type=int, default=128, help="rows that ours and the engine compute together")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    engine = transformers.TransformersEngine(resolve_model("smollm2-135m-instruct"), options.batch_rows)
    transformers.end_tokens = lambda *_: set()
    ids = engine.tokenizer(WORD * options.prompt_tokens)["input_ids"][: options.prompt_tokens]
    prompt = engine.tokenizer.decode(ids)
    mechanism = PrivatePrediction(options.batch, 1.0, 1.0, 100, options.new_tokens)
    decoder = PrivateDecoder(engine.model, engine.tokenizer, options.batch_rows, options.prompt_tokens)

    def ours(groups: int) -> None:
        work = [Batch((prompt,), (Member(0, prompt),) * options.batch)] * groups
        decoder.write(work, mechanism, Reservation(0, mechanism.event()), stop="\0", ends=set())

    def own(groups: int) -> None:
        sampling = Sampling(options.new_tokens, 1.0, 1.0, 100, stop="\0")
        engine.generate([prompt] * groups * (options.batch + 1), 1, sampling, seed=0)

    def plain(groups: int) -> None:
        """All groups in one batch, a cache that is copied to grow, whole logits for every row."""
        shape = (groups, options.batch + 1)
        fed, cache = torch.tensor([ids] * groups * shape[1]), DynamicCache()
        present = torch.ones(groups, options.batch, dtype=torch.bool)
        with torch.inference_mode():
            for _ in range(options.new_tokens):
                logits = engine.model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                public, private = logits.view(*shape, -1)[:, 0], logits.view(*shape, -1)[:, 1:]
                scores = mechanism.scores(public, private, present)
                drawn = torch.tensor(mechanism.draw(scores, mechanism.candidates(public)))
                fed = drawn[:, None].expand(shape).reshape(-1, 1)

    for groups in options.groups:
        rows = groups * (options.batch + 1) * options.new_tokens
        found: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for way in (ours, own, plain):
                found.setdefault(way.__name__, []).append(rows / _seconds(way, groups))
            rates = {name: values[-1] for name, values in found.items()}
            print(
                f"{groups:3} groups: ours {rates['ours']:5.0f} rows/s   engine {rates['own']:5.0f} "
                f"({rates['ours'] / rates['own']:.2f})   plain loop {rates['plain']:5.0f} "
                f"({rates['ours'] / rates['plain']:.2f})",
                flush=True,
            )
        ratios = {
            name: statistics.median(a / b for a, b in zip(found["ours"], found[name], strict=True))
            for name in ("own", "plain")
        }
        print(f"{groups:3} groups, median: {ratios['own']:.2f} of the engine, {ratios['plain']:.2f} of the plain loop")


def _seconds(way: Callable[[int], None], groups: int) -> float:
    started = time.perf_counter()
    way(groups)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
