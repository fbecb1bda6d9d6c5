"""Scoring texts for the attacks: our batched path against one text at a time and the bare batched forward pass.

Real mails and canaries planted in such, the real student. The bare forward pass is the model's own on the same rows in
batches of like length, logits of all positions and nothing made of them.
"""

from __future__ import annotations

import random
from typing import Any

from benchmarks.suite import Figure, figure, in_turns, ratio, say
from tutelage.configs.models import fetch_mail, load_model, resolve_model
from tutelage.configs.records import Example
from tutelage.configs.schema import AttackConfig, ClassificationTask
from tutelage.privacy.canaries import plant
from tutelage.privacy.mail import load_mails
from tutelage.students import score
from tutelage.students.chat import completion_ids, pad_id, prompt_ids, prompt_messages
from tutelage.students.scorer import ModelScorer

INSTRUCTION = "Decide whether an e-mail is spam or ham. Answer with one word: spam or ham."


TEXTS, CANARIES, CANDIDATES, ROUNDS, BATCH_ROWS = 12, 4, 5, 3, 16


def measure(full: bool) -> list[Figure]:
    """First the mails alone, then mails and canaries as a round has them."""
    model, tokenizer = load_model(resolve_model("smollm2-135m-instruct"))
    records = load_mails(fetch_mail(), 280)
    mails = [record.example() for record in records[:TEXTS]]
    config = AttackConfig(canaries=CANARIES, canary_candidates=CANDIDATES)
    task = ClassificationTask(description="Sort.", labels={"spam": "unwanted", "ham": "wanted"})
    _, planted = plant({"silo": []}, records[TEXTS:], config, task, random.Random(0), max_chars=280)
    candidates = [
        Example(id=canary.id, prompt=text, completion=canary.label) for canary in planted for text in canary.texts()
    ]
    return [
        *_compare(model, tokenizer, "mails", mails, None),
        *_compare(model, tokenizer, "mails and canaries", [*mails, *candidates], 3.0),
    ]


def _compare(model: Any, tokenizer: Any, name: str, examples: list[Example], target: float | None) -> list[Figure]:
    import torch

    rows = [
        prompt_ids(tokenizer, prompt_messages(one.prompt, INSTRUCTION))
        + completion_ids(tokenizer, one.completion, end_of_turn=True)
        for one in examples
    ]

    def ours() -> None:
        ModelScorer(model, tokenizer, INSTRUCTION, BATCH_ROWS).score(examples)

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
            for batch in score.batches(lengths, lengths, BATCH_ROWS):
                keep = max(lengths[i] for i in batch)
                score.run_rows(model, pad_id(tokenizer), [tails[i] for i in batch], prefix, keep)

    say(f"{len(examples)} {name}, {sum(map(len, rows)) / len(rows):.0f} tokens each")
    seconds = in_turns({"ours": ours, "one at a time": one_at_a_time, "bare forward": forward}, ROUNDS)
    return [
        ratio(f"{name}: ours / one text at a time", seconds["ours"], seconds["one at a time"], at_least=target),
        ratio(f"{name}: ours / the bare forward pass", seconds["ours"], seconds["bare forward"]),
        figure(f"{name}: ours", [len(examples) / one for one in seconds["ours"]], " texts/s"),
    ]
