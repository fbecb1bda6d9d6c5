"""Several teachers of one silo: each asked in batches that its purse allows, one local model in memory at a time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction

from tutelage.configs.schema import OpenAIConfig, Task, TeacherConfig
from tutelage.teachers.answers import Request, in_steps
from tutelage.teachers.engines.base import Engine, Generation, Sampling
from tutelage.teachers.spending import Purse, Tokens, call_digest


class Staff:
    """A silo's teachers in one round.

    Args:
        teachers: In the recipe's order.
        open: Makes a teacher's engine.
        purse: What every call is paid from.
        rows: Drafts asked for in one call, which is what a killed process can lose.
    """

    def __init__(
        self, teachers: Sequence[TeacherConfig], open: Callable[[TeacherConfig], Engine], purse: Purse, rows: int
    ) -> None:
        self.teachers, self.purse, self.rows = teachers, purse, rows
        self.took = Fraction(0)
        """What all texts given here have cost, those paid for by an earlier process too. A resumed stage comes to the
        same, so it may decide by it; `purse.spent` holds what was lost besides."""
        self._open = open
        self._servers: dict[int, Engine] = {}
        self._local: tuple[int, Engine] | None = None

    def ask(
        self,
        teacher: int,
        wanted: Sequence[tuple[Request, int]],
        sampling: Sampling,
        seed: str,
        on_progress: Callable[[int], object] | None = None,
        task: Task | None = None,
    ) -> list[list[Generation] | None]:
        """Have one teacher write.

        Args:
            teacher: Its place in `teachers`.
            wanted: Prompts, and how many texts of each.
            sampling: How.
            seed: Seeds the calls, each in its own way.
            on_progress: Called with the number of texts just finished.
            task: Of example prompts: what it says of completions holds, in a step of its own. None: any prompts.

        Returns:
            The texts of each prompt; None where the purse does not cover them. Where it covers their beginnings only,
            they lack a completion.
        """
        alike = defaultdict(list)
        for i, (_, n) in enumerate(wanted):
            alike[n].append(i)
        found: list[list[Generation] | None] = [None] * len(wanted)
        for n, left in sorted(alike.items()):
            while left:
                batch = [wanted[i][0] for i in left[: max(1, self.rows // n)]]
                texts = self._call(teacher, batch, n, sampling, f"{seed}/{n}/{len(left)}", on_progress, task)
                if not texts:
                    break
                for i, row in zip(left, texts, strict=False):
                    found[i] = row
                left = left[len(texts) :]
        return found

    def chat(self, teacher: int, system: str, user: str) -> str:
        """A chat prompt as a teacher's model wants it."""
        return self._engine(teacher).chat(system, user)

    def close(self) -> None:
        """End the engines, and let go of the journal."""
        for engine in [*self._servers.values(), *([self._local[1]] if self._local else [])]:
            engine.close()
        self._servers, self._local = {}, None
        self.purse.close()

    def _call(
        self,
        teacher: int,
        asked: Sequence[Request],
        n: int,
        sampling: Sampling,
        seed: str,
        on_progress: Callable[[int], object] | None,
        task: Task | None,
    ) -> list[list[Generation]]:
        """Texts of the first prompts, as many as the purse covers; none: not even of one."""

        def ask(asked: Sequence[Request], n: int, sampling: Sampling, step: str) -> list[list[Generation]]:
            own = f"{seed}/{step}" if step else seed
            texts = self._bought(teacher, asked, n, sampling, own, on_progress) if asked else []
            told = [one for row in texts for one in row]
            drawn = sum(sampling.max_new_tokens if one.drawn is None else one.drawn for one in told)
            self.took += self.teachers[teacher].cost(sum(one.read or 0 for one in told), drawn)
            return texts

        return in_steps(task, asked, n, sampling, ask, on_progress)

    def _bought(
        self,
        teacher: int,
        asked: Sequence[Request],
        n: int,
        sampling: Sampling,
        seed: str,
        on_progress: Callable[[int], object] | None,
    ) -> list[list[Generation]]:
        name = self.teachers[teacher].name
        structure = sampling.structure and sampling.structure.model_dump()
        place = [name, n, {**asdict(replace(sampling, structure=None)), "structure": structure}, seed]
        # The purse may have covered the first of them only; by now it covers less, and what was paid for is there.
        for covered in range(len(asked), 0, -1):
            paid = self.purse.paid_before(call_digest(*place, *(one.prompt for one in asked[:covered])))
            if paid is not None:
                if on_progress:
                    on_progress(n * len(paid))
                return paid
        engine, drawn = self._engine(teacher), n * sampling.max_new_tokens
        worst, covered = Tokens(), 0
        for one in asked:
            grown = worst + Tokens(engine.most_read(one.prompt, n), drawn)
            if not self.purse.covers(name, grown):
                break
            worst, covered = grown, covered + 1
        if not covered:
            return []
        asked = asked[:covered]
        number = self.purse.reserve(call_digest(*place, *(one.prompt for one in asked)), name, worst)
        own = random.Random(seed).getrandbits(48)
        texts = engine.generate([one.prompt for one in asked], n, sampling, own, on_progress)
        self.purse.settle(number, texts)
        return texts

    def _engine(self, teacher: int) -> Engine:
        config = self.teachers[teacher]
        if isinstance(config.engine, OpenAIConfig):  # it holds nothing of this machine
            if teacher not in self._servers:
                self._servers[teacher] = self._open(config)
            return self._servers[teacher]
        if self._local is None or self._local[0] != teacher:
            if self._local is not None:
                self._local[1].close()
                self._local = None
            self._local = teacher, self._open(config)
        return self._local[1]
