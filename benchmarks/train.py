"""Training tokens per second against TRL's SFTTrainer (the extra `bench`): same rows, model, LoRA, rate, steps.

Both train SmolLM2-135M-Instruct in float32 on real mails, with the loss on the completions, once through the same
batches, rows of like length together, from the same weights: so both must come to the same losses, which is checked.
Tokens are those of the rows: no padding counts, and what all prompts begin with counts for every row, computed or not.
TRL's other settings are the fast ones of those that leave the result alone: no gradient checkpointing, no packing,
which would make other steps of the same rows; its padding-free batches need FlashAttention.

Two kinds of lessons: `label`, a mail and its label (the loss is on two tokens), and `text`, a label and its mail (the
loss is on nearly all).
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.suite import Figure, figure, in_turns, ratio, say
from tutelage.configs.errors import UserError
from tutelage.configs.models import fetch_mail, load_model, load_tokenizer, resolve_model
from tutelage.configs.records import Example
from tutelage.configs.schema import StudentConfig
from tutelage.privacy.mail import load_mails
from tutelage.students import chat, train
from tutelage.students.loop import Row, Trainer

ROWS, ROUNDS = 16, 3
CONFIG = StudentConfig(epochs=1, batch_rows=8, heldback_share=0.0, dtype="float32", checkpoint_every_steps=10**6)
KINDS = {
    "label": "Decide whether an e-mail is spam or ham. Answer with one word: spam or ham.",
    "text": "You write e-mails.",
}


def measure(full: bool) -> list[Figure]:
    """Train in turns, from the same weights each time."""
    figures = []
    for kind, instruction in KINDS.items():
        rows = encoded(kind, instruction)
        tokens = sum(len(row.prompt) + len(row.completion) for row in rows)
        say(f"{kind}: {len(rows)} rows, {tokens} tokens")
        losses: dict[str, list[float]] = {"ours": [], "trl": []}
        ways = {
            "ours": functools.partial(_ours, rows, losses["ours"]),
            "trl": functools.partial(_trl, rows, losses["trl"]),
        }
        seconds = in_turns(ways, ROUNDS, warm=False)
        gap = [100 * abs(a - b) / b for a, b in zip(losses["ours"], losses["trl"], strict=True)]
        figures += [
            ratio(f"{kind}: tokens/s, ours / SFTTrainer", seconds["ours"], seconds["trl"], at_least=2.0),
            figure(f"{kind}: ours", [tokens / one for one in seconds["ours"]], " tokens/s"),
            figure(f"{kind}: the mean losses differ by", gap, "%", at_most=0.1),
        ]
    return figures


def encoded(kind: str, instruction: str) -> list[Row]:
    """Mails as a student sees them."""
    mails = load_mails(fetch_mail(), 400)
    random.Random(0).shuffle(mails)
    examples = [record.example() for record in mails[:ROWS]]
    if kind == "text":
        examples = [
            Example(id=one.id, prompt=f"Write an e-mail that is {one.completion}.", completion=one.prompt)
            for one in examples
        ]
    tokenizer = _tokenizer()
    return [train._encode(tokenizer, one, instruction, CONFIG.max_tokens) for one in examples]


def _tokenizer() -> Any:
    return load_tokenizer(resolve_model(CONFIG.base))


def _trainer(rows: list[Row]) -> Trainer[Row]:
    model, tokenizer = load_model(resolve_model(CONFIG.base), CONFIG.dtype)
    return Trainer(train._adapt(model, CONFIG), chat.pad_id(tokenizer), rows, CONFIG, 0)


def _ours(rows: list[Row], losses: list[float]) -> float:
    with train._repeatable(0), tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(rows)
        seen: list[float] = []
        step = trainer._step
        trainer._step = lambda batch: seen.append(step(batch)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
        started = time.perf_counter()
        trainer.run(Path(folder) / "checkpoint", "benchmark", progress=False)
        passed = time.perf_counter() - started
    losses.append(sum(seen) / len(seen))
    return passed


def _trl(rows: list[Row], losses: list[float]) -> float:
    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        raise UserError("TRL is not installed", remedy="pip install -e '.[bench]'") from None
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    with train._repeatable(0):
        own = _trainer(rows)
    order = [row for batch in own._batches(0) for row in batch]
    model, tokenizer = own.model, _tokenizer()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=CONFIG.batch_rows,
            num_train_epochs=CONFIG.epochs,
            max_grad_norm=1.0,
            max_length=CONFIG.max_tokens,
            completion_only_loss=True,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not model.device.type.startswith("cuda"),
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        )
        trainer = SFTTrainer(
            model,
            args=settings,
            train_dataset=Dataset.from_dict(
                {
                    "input_ids": [row.prompt + row.completion for row in order],
                    "completion_mask": [[0] * len(row.prompt) + [1] * len(row.completion) for row in order],
                }
            ),
            processing_class=tokenizer,
            optimizers=(own.optimizer, own.schedule),  # the same steps: TRL's own first step of a warm-up is none
        )
        started = time.perf_counter()
        result = trainer.train()
        passed = time.perf_counter() - started
    losses.append(float(result.training_loss))
    return passed
