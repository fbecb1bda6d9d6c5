"""A pocket-sized base model, for audits that are repeated hundreds of times.

Two layers, 64 wide, and a vocabulary of 2,048, trained from nothing on public texts in less than a minute. It has a
chat template, so students are tuned on it and attacked by the same code as on any other base. It writes poorly; what it
is for is that a leak's way through training and attacks is the real one, and cheap.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.models import load_model
from tutelage.configs.records import Example

if TYPE_CHECKING:
    import torch

VERSION = 1
NAME = "pocket"
"""Its name where a hub id is asked for; it is on no hub."""
_VOCABULARY, _HIDDEN, _LAYERS, _HEADS = 2048, 64, 2, 4
_STEPS, _ROWS, _WIDTH, _RATE = 300, 16, 128, 4e-3
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_pocket_model(examples: Sequence[Example], folder: Path, *, steps: int = _STEPS) -> Path:
    """Train it, and write it with its tokenizer into a folder.

    Args:
        examples: Public labelled texts. It sees each behind a heading with its label, which is how it is asked for
            one. It is not taught to tell labels: that is left to students, and to what they remember.
        folder: Made if missing.
        steps: Of training; fewer make a worse model.

    Returns:
        The folder, as `load_model` takes it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _tokenizer([example.prompt for example in examples])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=3 * _HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS // 2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        rows = _rows(tokenizer, examples)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=steps, pct_start=0.1)
        model.train()
        for _ in range(steps):
            ids = torch.tensor([next(rows) for _ in range(_ROWS)])
            _next_token_loss(model(input_ids=ids).logits, ids).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    load_model(folder)  # what does not load again is of no use later
    return folder


def _tokenizer(texts: Sequence[str]) -> Any:
    """Byte-level BPE with ChatML's tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=_SPECIAL[0],
        bos_token=_SPECIAL[1],
        eos_token=_SPECIAL[2],
        pad_token=_SPECIAL[0],
        chat_template=_TEMPLATE,
    )


def heading(label: str) -> str:
    """What stands before a text of that label, for a model to continue; the end-of-turn token ends the text."""
    return f"### {label}\n"


def _rows(tokenizer: Any, examples: Sequence[Example]) -> Iterator[list[int]]:
    """Endless rows of `_WIDTH` ids, cut from all texts in one line, in an order that changes from pass to pass."""
    draw = random.Random(0)
    kept: list[int] = []
    while True:
        for example in draw.sample(list(examples), len(examples)):
            text = f"{heading(example.completion)}{example.prompt}{_SPECIAL[2]}\n"
            kept += tokenizer(text, add_special_tokens=False)["input_ids"]
            while len(kept) >= _WIDTH:
                yield kept[:_WIDTH]
                kept = kept[_WIDTH:]


def _next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
