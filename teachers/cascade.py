"""Several teachers share a silo's work: as a cascade from the cheapest up, or each its own labels.

A cascade has the first teacher write; drafts that score below its threshold are written again by the next, and so on.
Where the budget covers no dearer teacher, what the cheaper one wrote stands or falls by the usual checks; where it
covers none, there are fewer drafts. Thresholds are learnt on the first prompts, which all teachers answer; so are the
labels' teachers where they are routed by skill. FrugalGPT (Chen et al. 2023, arXiv:2305.05176).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tutelage.configs.records import Metric, Spending, TeacherSpending
from tutelage.configs.schema import CascadeRoute, LabelRoute, SkillRoute, Task
from tutelage.privacy.stats import mean_metric
from tutelage.teachers import thresholds
from tutelage.teachers.answers import Request
from tutelage.teachers.engines.base import Generation, Sampling
from tutelage.teachers.scoring import Scorer, score
from tutelage.teachers.staff import Staff

Progress = Callable[[int], object] | None


@dataclass(frozen=True)
class _Calibration:
    """What all teachers wrote for a few prompts: M places of a draft, K teachers."""

    scores: np.ndarray
    """(K, M)"""
    labels: tuple[str | None, ...]
    """(M,)"""
    groups: tuple[int, ...]
    """(M,): which prompt."""
    costs: tuple[float, ...]
    """(K,): of one draft, its share of the prompt included."""


@dataclass(frozen=True)
class _Call:
    """What `write` was asked, and where its texts go."""

    asked: Sequence[Request]
    n: int
    sampling: Sampling
    seed: int
    on_progress: Progress
    out: list[list[Generation]]
    """Of each request."""


@dataclass
class Routed:
    """A teacher (`Teacher`) that is several, chosen by a route.

    Args:
        staff: The teachers.
        route: The recipe's.
        task: The task.
        scorer: Of drafts; None where the route compares none.
        drafts: How many are asked for in all, those sampled again aside: what a cascade has to make its budget last.
    """

    staff: Staff
    route: CascadeRoute | SkillRoute | LabelRoute
    task: Task
    scorer: Scorer | None
    drafts: int
    _calibration: _Calibration | None = field(default=None, init=False)
    _learnt: bool = field(default=False, init=False)
    _thresholds: tuple[float, ...] = field(default=(), init=False)
    _teacher_of: dict[str | None, int] = field(default_factory=dict, init=False)
    _per_draft: float = field(default=0.0, init=False)
    _stood: Counter[int] = field(default_factory=Counter, init=False)
    _unwritten: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        names = [one.name for one in self.staff.teachers]
        self._thresholds = (0.0,) * (len(names) - 1)
        if isinstance(self.route, LabelRoute):
            self._teacher_of = {label: names.index(name) for label, name in self.route.teachers.items()}

    def write(
        self, asked: Sequence[Request], n: int, sampling: Sampling, seed: int, on_progress: Progress = None
    ) -> list[list[Generation]]:
        """See `Teacher.write`."""
        call = _Call(asked, n, sampling, seed, on_progress, [[] for _ in asked])
        tried: list[int] = []
        if not self._learnt and not isinstance(self.route, LabelRoute):
            tried = dealt([one.label for one in asked], self.route.calibration_prompts)
            self._calibrate(call, tried)
        rest = [i for i in range(len(asked)) if i not in set(tried)]
        by_route = self._climb if isinstance(self.route, CascadeRoute) else self._divide
        by_route(call, rest)
        self._unwritten += sum(max(0, n - len(texts)) for texts in call.out)
        return call.out

    def advise(self, system: str, user: str, n: int, sampling: Sampling, seed: int) -> list[Generation]:
        """See `Teacher.advise`. By the last of the teachers that the budget covers."""
        for teacher in reversed(range(len(self.staff.teachers))):
            asked = Request(None, self.staff.chat(teacher, system, user))
            [texts] = self.staff.ask(teacher, [(asked, n)], sampling, f"{seed}/advice")
            if texts is not None:
                return texts
        return []

    def close(self) -> None:
        """See `Teacher.close`."""
        self.staff.close()

    def spending(self, silo: str) -> Spending:
        """What it came to, for the report. Of drafts and public things alone, unless the scorer is the silo's own."""
        purse, found = self.staff.purse, self._calibration
        if found is not None and not found.groups:
            found = None
        compared = {}
        if found is not None and isinstance(self.route, CascadeRoute):
            own = thresholds.held_out(found.scores, found.groups, found.costs, self._per_draft)
            stands = thresholds.stands(found.scores, self._thresholds)
            compared = {
                "score": _mean("score", own),
                "score_dearest": _mean("score_dearest", found.scores[-1]),
                "score_gain": _mean("score_gain", own - found.scores[-1]),
                "cost_expected": float(np.cumsum(found.costs)[stands].mean()),
                "cost_dearest": found.costs[-1],
            }
        teachers = []
        for i, one in enumerate(self.staff.teachers):
            tokens, cost = purse.used(one.name)
            teachers.append(
                TeacherSpending(
                    name=one.name,
                    drafts=self._stood[i],
                    labels=tuple(sorted(label or "" for label, at in self._teacher_of.items() if at == i)),
                    prompt_tokens=tokens.read,
                    draft_tokens=tokens.drawn,
                    cost=float(cost),
                    score=None if found is None else _mean("score", found.scores[i]),
                )
            )
        return Spending(
            silo=silo,
            route=self.route.by,
            unit=self.route.unit,
            budget=None if purse.limit is None else float(purse.limit),
            cost=float(purse.spent),
            lost=float(purse.lost),
            unwritten=self._unwritten,
            teachers=tuple(teachers),
            thresholds=self._thresholds if isinstance(self.route, CascadeRoute) else (),
            calibration_drafts=len(found.groups) if found else 0,
            **compared,
        )

    # ---- how it is done ---------------------------------------------------------------------------------------------

    def _calibrate(self, call: _Call, chosen: Sequence[int]) -> None:
        """Have every teacher answer some of the requests, keep all they write, and learn from it."""
        self._learnt = True
        wanted = [(call.asked[i], call.n) for i in chosen]
        answers, costs, on_progress = [], [], call.on_progress
        for teacher in range(len(self.staff.teachers)):
            before, seed = self.staff.took, f"{call.seed}/calibration/{teacher}"
            answers.append(self.staff.ask(teacher, wanted, call.sampling, seed, on_progress, self.task))
            on_progress = None  # the others answer what is counted already
            drafts = call.n * sum(row is not None for row in answers[-1])
            costs.append(float((self.staff.took - before) / drafts) if drafts else 0.0)
        for place, i in enumerate(chosen):
            for rows in answers:
                call.out[i] += rows[place] or []
        whole = [place for place in range(len(chosen)) if all(rows[place] is not None for rows in answers)]
        labels = [call.asked[chosen[place]].label for place in whole for _ in range(call.n)]
        scores = [self._scores(labels, [text for place in whole for text in rows[place] or []]) for rows in answers]
        groups = tuple(place for place in whole for _ in range(call.n))
        self._calibration = _Calibration(np.array(scores), tuple(labels), groups, tuple(costs))
        self._learn(len(chosen) * call.n)

    def _learn(self, written: int) -> None:
        found = self._calibration
        assert found is not None
        limit = self.staff.purse.limit
        left = float("inf") if limit is None else float(limit - self.staff.took)
        self._per_draft = left / max(1, self.drafts - written)
        if isinstance(self.route, CascadeRoute):
            self._thresholds = thresholds.learn(found.scores, found.costs, self._per_draft)
            return
        for label in dict.fromkeys(found.labels):
            own = [i for i, one in enumerate(found.labels) if one == label]
            self._teacher_of[label] = int(found.scores[:, own].mean(1).argmax())

    def _climb(self, call: _Call, rest: Sequence[int]) -> None:
        """Every draft by the first teacher whose threshold it reaches."""
        wanted, held = dict.fromkeys(rest, call.n), {i: list[Generation]() for i in rest}
        last, on_progress = len(self.staff.teachers) - 1, call.on_progress
        for teacher in range(last + 1):
            listed = [(call.asked[i], count) for i, count in wanted.items()]
            written = self.staff.ask(teacher, listed, call.sampling, f"{call.seed}/{teacher}", on_progress, self.task)
            answers = dict(zip(wanted, written, strict=True))
            on_progress = None  # the others write what is counted already
            for i in [i for i, texts in answers.items() if texts is None]:
                self._stand(teacher - 1, held[i], call.out[i])  # nobody dearer is covered
            open = {i: texts for i, texts in answers.items() if texts is not None}
            flat = [text for texts in open.values() for text in texts]
            good = [True] * len(flat)
            if teacher < last and self._thresholds[teacher] > 0:
                labels = [call.asked[i].label for i, texts in open.items() for _ in texts]
                good = [one >= self._thresholds[teacher] for one in self._scores(labels, flat)]
            verdicts = iter(good)
            wanted = {}
            for i, texts in open.items():
                fine = [next(verdicts) for _ in texts]
                self._stand(teacher, [text for text, ok in zip(texts, fine, strict=True) if ok], call.out[i])
                held[i] = [text for text, ok in zip(texts, fine, strict=True) if not ok]
                if held[i]:
                    wanted[i] = len(held[i])
            if not wanted:
                break

    def _divide(self, call: _Call, rest: Sequence[int]) -> None:
        """Every label by its own teacher; one that none is known for by the first."""
        for teacher in range(len(self.staff.teachers)):
            own = [i for i in rest if self._teacher_of.get(call.asked[i].label, 0) == teacher]
            wanted = [(call.asked[i], call.n) for i in own]
            written = self.staff.ask(teacher, wanted, call.sampling, str(call.seed), call.on_progress, self.task)
            for i, texts in zip(own, written, strict=True):
                self._stand(teacher, texts or [], call.out[i])

    def _stand(self, teacher: int, texts: Sequence[Generation], out: list[Generation]) -> None:
        out += texts
        self._stood[teacher] += len(texts)

    def _scores(self, labels: Sequence[str | None], texts: Sequence[Generation]) -> list[float]:
        assert self.scorer is not None
        return score(self.scorer, self.task, labels, texts)


def dealt(labels: Sequence[str | None], count: int) -> list[int]:
    """The first places of so many requests, one label after the other, in rising order."""
    waiting = {label: [i for i, one in enumerate(labels) if one == label] for label in dict.fromkeys(labels)}
    turns = itertools.chain(*itertools.zip_longest(*waiting.values()))
    return sorted(itertools.islice((i for i in turns if i is not None), count))


def _mean(name: str, scores: np.ndarray) -> Metric:
    return mean_metric(f"teachers.{name}", [float(one) for one in scores])
