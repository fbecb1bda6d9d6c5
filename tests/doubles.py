"""The scripted engine, and teachers for the tests: one writes from public words, one copies what it was shown."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tutelage.configs.schema import Structure
from tutelage.teachers.engines.base import Generation, Sampling
from tutelage.teachers.prompts import STOP

_SPAM = (
    "act now and claim your {a} prize before {b} ends",
    "cheap {a} pills with free shipping for every {b} customer",
    "you have been selected to earn {a} dollars a week from your {b}",
    "refinance your {a} loan at the lowest {b} rate with no credit check",
)
_HAM = (
    "the patch for the {a} driver breaks the {b} build on my box",
    "does anybody on the list know how {a} handles {b} threads",
    "thanks for the {a} notes from the meeting, see you on {b}",
    "i read the {a} article yesterday and the point about {b} is odd",
)
_FILL = ("kernel", "garden", "window", "monday", "silver", "travel", "paper", "music", "coffee", "router", "planet")


class Call(NamedTuple):
    """What `generate` was asked."""

    prompts: list[str]
    n: int
    sampling: Sampling
    seed: int


class ScriptedEngine:
    """The engine of the tests: texts come from `write`, or fit the structure asked for; it remembers every call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def chat(self, system: str, user: str) -> str:
        return f"{system}\n{user}\nAdvice:"

    def most_read(self, prompt: str, n: int) -> int:
        return len(prompt.split())

    def close(self) -> None: ...

    def generate(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:
        self.calls.append(Call(list(prompts), n, sampling, seed))
        draw = random.Random(seed)
        written = []
        for prompt in prompts:
            if sampling.structure:
                texts = [fitting(sampling.structure, draw) for _ in range(n)]
            else:
                texts = [self.write(prompt, draw, j) for j in range(n)]
            written.append([one if isinstance(one, Generation) else Generation(one, True) for one in texts])
            if on_progress:
                on_progress(n)
        return written

    def write(self, prompt: str, draw: random.Random, j: int) -> str | Generation:
        """The j-th text for a prompt."""
        raise NotImplementedError


def fitting(structure: Structure, draw: random.Random) -> str:
    """A text that fits, drawn byte by byte."""
    from llguidance import LLMatcher, LLTokenizer

    tokenizer, written = LLTokenizer("byte"), bytearray()
    matcher = LLMatcher(tokenizer, structure.grammar, log_level=0)
    while not matcher.is_stopped():
        bits = matcher.compute_bitmask()
        allowed = [i for i in range(tokenizer.vocab_size) if bits[i // 8] >> i % 8 & 1]
        token = draw.choice(allowed)
        if token == tokenizer.eos_token:
            break
        written.append(token)
        matcher.consume_token(token)
    return written.decode()


class HonestTeacher(ScriptedEngine):
    """Writes from public word lists and never looks at its references."""

    def write(self, prompt: str, draw: random.Random, j: int) -> str:
        if prompt.endswith("Advice:"):
            return "Look at whether the sender wants to sell something to people who never asked for it."
        asked = re.findall(r"^### (\w+)", prompt, re.MULTILINE)[-1]
        sentences = draw.sample(_SPAM if asked == "spam" else _HAM, 2)
        return ". ".join(s.format(a=draw.choice(_FILL), b=draw.choice(_FILL)) for s in sentences)


class CopyingTeacher(ScriptedEngine):
    """Gives away its references, with a word of its own at the end: an exact copy no screen lets through."""

    def write(self, prompt: str, draw: random.Random, j: int) -> str:
        if prompt.endswith("Advice:"):
            return draw.choice([line for line in prompt.splitlines() if line.startswith("- ")])
        blocks = [block.partition("\n")[2].strip() for block in prompt.split(STOP)[1:-1]]
        return f"{draw.choice(blocks)} {draw.choice(_FILL)}"
