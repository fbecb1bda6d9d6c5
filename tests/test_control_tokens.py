from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tutelage.privacy.control_tokens import without_control_tokens

# as the chat templates of these model families write them
CONTROL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>",  # ChatML, GPT-2
    "<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>",  # Llama 3
    "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",  # Llama 2, Mistral
    "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>",  # Gemma
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>",  # DeepSeek, Qwen
]  # fmt: skip
HARMLESS = "5 < 6 | 7 > 2, [inst], <b>bold</b>, <start>, s> and <http://example.org> [INSTALL] |x|"


@pytest.mark.parametrize("token", CONTROL)
def test_every_familys_tokens_go(token: str) -> None:
    assert without_control_tokens(f"a{token}b") == "a b"


@given(st.lists(st.sampled_from([*CONTROL, "<|", "|>", "[", "<", ">", "/", "s", "INST]", "word "])).map("".join))
@example("<|im_<|x|>start|>")
@example("[IN<s>ST]")
def test_none_is_left_however_they_are_nested(text: str) -> None:
    left = without_control_tokens(text)
    assert not any(token in left for token in CONTROL)
    assert without_control_tokens(left) == left


def test_other_text_stays() -> None:
    assert without_control_tokens(HARMLESS) == HARMLESS
