"""Teachers for the tests: one that writes honestly from public words, one that copies what it was shown."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

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


class _Double:
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
        draw = random.Random(seed)
        written = []
        for prompt in prompts:
            written.append([Generation(self.write(prompt, draw), True) for _ in range(n)])
            if on_progress:
                on_progress(n)
        return written

    def write(self, prompt: str, draw: random.Random) -> str:
        raise NotImplementedError


class HonestTeacher(_Double):
    """Writes from public word lists and never looks at its references."""

    def write(self, prompt: str, draw: random.Random) -> str:
        if prompt.endswith("Advice:"):
            return "Look at whether the sender wants to sell something to people who never asked for it."
        asked = re.findall(r"^### (\w+)", prompt, re.MULTILINE)[-1]
        sentences = draw.sample(_SPAM if asked == "spam" else _HAM, 2)
        return ". ".join(s.format(a=draw.choice(_FILL), b=draw.choice(_FILL)) for s in sentences)


class CopyingTeacher(_Double):
    """Gives away its references, with a word of its own at the end: an exact copy no screen lets through."""

    def write(self, prompt: str, draw: random.Random) -> str:
        if prompt.endswith("Advice:"):
            return draw.choice([line for line in prompt.splitlines() if line.startswith("- ")])
        blocks = [block.partition("\n")[2].strip() for block in prompt.split(STOP)[1:-1]]
        return f"{draw.choice(blocks)} {draw.choice(_FILL)}"
