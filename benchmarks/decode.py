"""Decoding rate of the transformers engine against `model.generate`, on the same prompts in one run.

    python benchmarks/decode.py [--prompts 6] [--drafts 8] [--prompt-tokens 320] [--new-tokens 32] [--rounds 3]

Prints rows (tokens) per second of both and their ratio, round by round: on a noisy machine the ratio is the figure.
Both sample from the same model with the same settings; neither stops early, so both write the same number of tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time

from tutelage.configs.models import resolve_model
from tutelage.teachers.engines import transformers
from tutelage.teachers.engines.base import Sampling

WORD = "mail about the meeting on friday and the price of a ticket "


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--drafts", type=int, default=8, help="texts per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=320)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    import torch

    engine = transformers.TransformersEngine(resolve_model("smollm2-135m-instruct"), options.prompts * options.drafts)
    transformers.end_tokens = lambda *_: set()
    ids = engine.tokenizer(WORD * options.prompt_tokens)["input_ids"][: options.prompt_tokens]
    prompts = [engine.tokenizer.decode(ids)] * options.prompts
    sampling = Sampling(options.new_tokens, 0.9, 0.95, 100, stop="\0")
    batch = engine.tokenizer(prompts, return_tensors="pt").to(engine.model.device)
    tokens = options.prompts * options.drafts * options.new_tokens
    ratios = []
    for number in range(options.rounds):
        started = time.perf_counter()
        engine.generate(prompts, options.drafts, sampling, seed=number)
        ours = tokens / (time.perf_counter() - started)
        torch.manual_seed(number)
        started = time.perf_counter()
        with torch.inference_mode():
            engine.model.generate(
                **batch,
                do_sample=True,
                num_return_sequences=options.drafts,
                min_new_tokens=options.new_tokens,
                max_new_tokens=options.new_tokens,
                temperature=0.9,
                top_p=0.95,
                top_k=100,
            )
        theirs = tokens / (time.perf_counter() - started)
        ratios.append(ours / theirs)
        print(f"ours {ours:6.0f} tokens/s   generate {theirs:6.0f} tokens/s   ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
