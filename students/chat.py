"""How a student is spoken to: chat messages, and their token ids, the same in training as in scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tutelage.configs.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]


def prompt_messages(prompt: str, instruction: str | None, few_shot: Sequence[Example] = ()) -> list[dict[str, str]]:
    """The chat up to the assistant's turn: instruction as system prompt, solved examples, then the prompt."""
    messages = [{"role": "system", "content": instruction}] if instruction else []
    for example in few_shot:
        messages += example.messages()
    return [*messages, {"role": "user", "content": prompt}]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a chat up to where the assistant's answer begins.

    Special tokens spelled out inside a message are broken up, so that a text can't close its own turn.
    """
    safe = [{"role": turn["role"], "content": _plain(tokenizer, turn["content"])} for turn in messages]
    text = str(tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=True))
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def completion_ids(tokenizer: PreTrainedTokenizerBase, completion: str, *, end_of_turn: bool = False) -> list[int]:
    """Token ids of an assistant's answer, with the token that ends its turn if asked for."""
    ids = list(tokenizer(_plain(tokenizer, completion), add_special_tokens=False).input_ids)
    return [*ids, end_of_turn_id(tokenizer)] if end_of_turn else ids


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token the chat template puts after an assistant's answer; the end-of-sequence token where it puts none."""
    question = [{"role": "user", "content": "a"}]
    answered = [*question, {"role": "assistant", "content": "b"}]
    opening = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)) + "b"
    whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    tail = whole.removeprefix(opening).strip() if whole.startswith(opening) else ""
    ids = tokenizer(tail, add_special_tokens=False).input_ids
    return int(ids[0] if ids else tokenizer.eos_token_id)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills short rows; always masked, so that it may be any token."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and token.content in text:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text
