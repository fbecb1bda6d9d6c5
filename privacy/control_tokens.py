"""Control tokens of chat templates: private text must not carry them into a prompt, nor a lesson into a student."""

from __future__ import annotations

import re

_TOKENS = re.compile(
    r"<[|｜][^|｜<>]*[|｜]>"  # ChatML, Llama 3, Phi, Granite; DeepSeek with its wide bars
    r"|</?s>|<(?:bos|eos|pad|unk|mask)>"  # SentencePiece models
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT)\]|<</?SYS>>"  # Mistral, Llama 2
    r"|<(?:start|end)_of_(?:turn|image)>|</?think>|</?tool_(?:call|response)>"  # Gemma, Qwen
)


def without_control_tokens(text: str) -> str:
    """The text with a space in place of every control token of the chat templates in common use."""
    # Again until nothing is left: removing an inner token can put an outer one together.
    while (shorter := _TOKENS.sub(" ", text)) != text:
        text = shorter
    return text
