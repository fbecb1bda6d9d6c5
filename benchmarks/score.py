"""Scoring texts for the attacks: our batched path against one text at a time and the bare batched forward pass.

    python benchmarks/score.py [--texts 48] [--canaries 24] [--candidates 5] [--rounds 3] [--batch-rows 16]

Real mails and canaries planted in such, the real student, one run: rates in texts per second and their ratios, round by
round, first for the mails alone, then for mails and canaries as a round has them. The bare forward pass is
the model's own on the same rows in batches of like length, logits of all positions and nothing made of them.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from tutelage.configs.models import fetch_mail, load_model, resolve_model
from tutelage.configs.records import Example
from tutelage.configs.schema import AttackConfig, ClassificationTask
from tutelage.privacy.canaries import plant
from tutelage.privacy.mail import load_mails
from tutelage.students import score
from tutelage.students.chat import completion_ids, pad_id, prompt_ids, prompt_messages
from tutelage.students.scorer import ModelScorer

INSTRUCTION = "Decide whether an e-mail is spam or ham. Answer with one word: spam or ham."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--canaries", type=int, default=24)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-rows", type=int, default=16)
    options = parser.parse_args()

    model, tokenizer = load_model(resolve_model("smollm2-135m-instruct"))
    records = load_mails(fetch_mail(), 280)
    mails = [record.example() for record in records[: options.texts]]
    config = AttackConfig(canaries=options.canaries, canary_candidates=options.candidates)
    task = ClassificationTask(description="Sort.", labels={"spam": "unwanted", "ham": "wanted"})
    _, planted = plant({"silo": []}, records[options.texts :], config, task, random.Random(0), max_chars=280)
    candidates = [
        Example(id=canary.id, prompt=text, completion=canary.label) for canary in planted for text in canary.texts()
    ]
    compare = functools.partial(_compare, model, tokenizer, options.batch_rows, options.rounds)
    compare("mails", mails)
    compare("mails and canaries", [*mails, *candidates])


def _compare(model: Any, tokenizer: Any, batch_rows: int, rounds: int, name: str, examples: list[Example]) -> None:
    import torch

    rows = [
        prompt_ids(tokenizer, prompt_messages(one.prompt, INSTRUCTION))
        + completion_ids(tokenizer, one.completion, end_of_turn=True)
        for one in examples
    ]

    def ours() -> None:
        ModelScorer(model, tokenizer, INSTRUCTION, batch_rows).score(examples)

    def one_at_a_time() -> None:
        with torch.inference_mode():
            for row in rows:
                logprobs = model(input_ids=torch.tensor([row])).logits[0].float().log_softmax(-1)
                logprobs[:-1].gather(1, torch.tensor(row[1:])[:, None])
                mean = (logprobs.exp() * logprobs).sum(-1)
                ((logprobs - mean[:, None]) ** 2 * logprobs.exp()).sum(-1).sqrt()

    def forward() -> None:
        header = score.common_prefix(rows)
        with torch.inference_mode():
            prefix = score.extend_prefix(model, score.NO_PREFIX, header)
            tails = [row[len(header) :] for row in rows]
            lengths = [len(tail) for tail in tails]
            for batch in score.batches(lengths, lengths, batch_rows):
                keep = max(lengths[i] for i in batch)
                score.run_rows(model, pad_id(tokenizer), [tails[i] for i in batch], prefix, keep)

    print(f"{len(examples)} {name}, {sum(map(len, rows)) / len(rows):.0f} tokens each")
    ratios: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        seconds = [_timed(call) for call in (ours, one_at_a_time, forward)]
        if number == 0:
            continue  # warm
        ratios.append((seconds[1] / seconds[0], seconds[2] / seconds[0]))
        rates = [len(examples) / one for one in seconds]
        print(
            f"ours {rates[0]:5.1f} texts/s   one at a time {rates[1]:5.1f} ({ratios[-1][0]:.2f})   "
            f"bare forward {rates[2]:5.1f} ({ratios[-1][1]:.2f})",
            flush=True,
        )
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    print(f"median ratio to one at a time {medians[0]:.2f}, to the bare forward pass {medians[1]:.2f}")


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
