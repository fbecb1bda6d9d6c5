"""Scoring texts for the attacks: our batched path against one text at a time and the bare batched forward pass.

    python benchmarks/score.py [--texts 96] [--rounds 3] [--batch-rows 16]

Real mails, the real student, one run: rates in texts per second and their ratios, round by round. The bare forward pass
is the model's own on the same rows in the same batches, padded alike, logits of all positions and nothing made of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from tutelage.configs.models import fetch_mail, load_model, resolve_model
from tutelage.configs.records import Example
from tutelage.privacy.mail import load_mails
from tutelage.students import score
from tutelage.students.chat import completion_ids, pad_id, prompt_ids, prompt_messages
from tutelage.students.scorer import ModelScorer

INSTRUCTION = "Decide whether an e-mail is spam or ham. Answer with one word: spam or ham."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-rows", type=int, default=16)
    options = parser.parse_args()

    import torch

    model, tokenizer = load_model(resolve_model("smollm2-135m-instruct"))
    mails = [record.example() for record in load_mails(fetch_mail(), 280)[: options.texts]]
    rows = [
        prompt_ids(tokenizer, prompt_messages(one.prompt, INSTRUCTION)) + completion_ids(tokenizer, one.completion)
        for one in mails
    ]

    def ours(examples: list[Example]) -> None:
        ModelScorer(model, tokenizer, INSTRUCTION, options.batch_rows).score(examples)

    def one_at_a_time() -> None:
        with torch.inference_mode():
            for row in rows:
                logprobs = model(input_ids=torch.tensor([row])).logits[0].float().log_softmax(-1)
                logprobs[:-1].gather(1, torch.tensor(row[1:])[:, None])
                (logprobs.exp() * logprobs).sum(-1)

    def forward() -> None:
        header = score.common_prefix(rows)
        with torch.inference_mode():
            prefix = score.extend_prefix(model, score.NO_PREFIX, header)
            tails = [row[len(header) :] for row in rows]
            lengths = [len(tail) for tail in tails]
            for batch in score.batches(lengths, lengths, options.batch_rows):
                keep = max(lengths[i] for i in batch)
                score.run_rows(model, pad_id(tokenizer), [tails[i] for i in batch], prefix, keep)

    ratios: list[tuple[float, float]] = []
    for number in range(options.rounds + 1):
        seconds = [_timed(lambda: ours(mails)), _timed(one_at_a_time), _timed(forward)]
        if number == 0:
            continue  # warm
        ratios.append((seconds[1] / seconds[0], seconds[2] / seconds[0]))
        rates = [len(mails) / one for one in seconds]
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
