"""A silo's teacher under private evolution: it never sees a private text, and the silo's units choose what it wrote.

Candidates are sampled from public prompts; every unit votes for the candidate nearest to it; those with the most
votes, counted with noise, stay and are varied by the model, with the candidate itself as the one example shown; then
comes the next vote. So any engine will do, a server without logits too. The noisy counts are the only look at private
records, and all the rest is post-processing: sampling again, dropping duplicates and ranking are free.

Private Evolution (Lin et al. 2024, arXiv:2305.15560), with the choice by rank and the surviving parents of its version
for text (Xie et al. 2024, arXiv:2403.01749). Cost: about labels * candidates * (iterations + 1) / 2 texts. More
iterations come closer to the units, but leave each vote less of the budget.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.configs.progress import Bar
from tutelage.configs.records import Example
from tutelage.configs.schema import ClassificationTask, PrivateEvolutionPrivacy, Task, TeachConfig
from tutelage.privacy.drafts import Draft
from tutelage.privacy.similarity import embed, words
from tutelage.teachers import aggregate, prompts
from tutelage.teachers.answers import Request, steps
from tutelage.teachers.engines.base import Generation, Sampling
from tutelage.teachers.teacher import Teacher

Vote = Callable[[int, Sequence[str], Sequence[str | None]], list[int] | None]
"""(iteration from 0, candidate texts, their labels) -> noisy counts, one per candidate.

None: that vote is lost (a killed process had spent it, say). It changes nothing then, and after the last one drafts
are chosen uniformly. A vote that says nothing but should be acted upon (ε = 0) is all zeros: ties are broken at random.
"""

TRIES = 4
"""How often a text is sampled, at most, until it is well formed and no duplicate."""


@dataclass(frozen=True)
class Evolved:
    """What came of it."""

    drafts: tuple[Draft, ...]
    sampled: int
    """Texts sampled, retries included."""
    malformed: int


def nearest(
    texts: Sequence[str], labels: Sequence[str | None], embeddings: np.ndarray, unit_labels: Sequence[str | None]
) -> list[int | None]:
    """Each unit's choice: the candidate of its own label nearest to it by cosine; see `aggregate.nearest`.

    Args:
        texts: The candidates'.
        labels: Theirs; None for generation.
        embeddings: The units', (units, 384), of `similarity.embed`.
        unit_labels: Theirs.

    Returns:
        A candidate's number per unit; None (the unit abstains) where no candidate has its label.
    """
    candidates = embed(texts)
    if len(labels) != len(texts) or len(unit_labels) != len(embeddings):
        raise ValueError("every candidate and every unit has one label")
    chosen: list[int | None] = [None] * len(unit_labels)
    for label in set(labels):
        among = [i for i, one in enumerate(labels) if one == label]
        asking = [i for i, one in enumerate(unit_labels) if one == label]
        for unit, at in zip(asking, aggregate.nearest(candidates[among], embeddings[asking]), strict=True):
            chosen[unit] = among[at]
    return chosen


def evolve(
    teacher: Teacher,
    *,
    task: Task,
    teach: TeachConfig,
    config: PrivateEvolutionPrivacy,
    vote: Vote,
    silo: str,
    round: int,
    seed: int,
    advice: str | None = None,
) -> Evolved:
    """Write a silo's drafts for one round.

    Args:
        teacher: Who continues the prompts.
        task: The task.
        teach: How to sample; `prompts_per_label` drafts are chosen per label (for generation: in all), or as many
            candidates as there are.
        config: Sizes.
        vote: The only access to private records. It is called once in every iteration, with the candidates of all
            labels together, so that one histogram is released; not at all while there are no candidates.
        silo: Its name.
        round: 1-based.
        seed: The recipe's. With the same counts it leads to the same drafts, so a resumed run may give counts of old.
        advice: A released wording of the instruction, for all prompts.

    Returns:
        The drafts, the most voted for first in each label.
    """
    labels: list[str | None] = list(task.labels) if isinstance(task, ClassificationTask) else [None]
    parents = config.candidates_per_label // 2
    stream = f"{seed}/{silo}/{round}/evolution"
    author = _Author(teacher, task, teach, advice, f"{silo}-r{round}")
    population: dict[str | None, list[Example]] = {label: [] for label in labels}
    planned = len(labels) * (parents + config.iterations * (config.candidates_per_label - parents))
    with Bar(planned * steps(task), f"evolve {silo}", "draft") as bar:
        for iteration in range(config.iterations):
            author.fill(population, config.candidates_per_label, f"{stream}/{iteration}", bar)
            listed = [(label, one) for label, there in population.items() for one in there]
            counts = None
            if listed:
                counts = vote(iteration, [text_of(task, one) for _, one in listed], [label for label, _ in listed])
            last = iteration == config.iterations - 1
            if counts is None and not last:
                continue
            # Counts are only ranked, ties in random order. Cut off at zero or at a threshold, they would tell less, and
            # what they tell has been paid for.
            ballot = list(zip([0] * len(listed) if counts is None else counts, listed, strict=True))
            random.Random(f"{stream}/{iteration}/ties").shuffle(ballot)
            ballot.sort(key=lambda pair: -pair[0])
            kept = teach.prompts_per_label if last else parents
            population = {label: [one for _, (own, one) in ballot if own == label][:kept] for label in labels}
    drafts = tuple(
        Draft(one.id, "example", one.prompt, one.completion, prompts.VERSION, "private_evolution")
        for there in population.values()
        for one in there
    )
    return Evolved(drafts, author.sampled, author.malformed)


def text_of(task: Task, example: Example) -> str:
    """What of an example is embedded."""
    return example.prompt if isinstance(task, ClassificationTask) else f"{example.prompt}\n{example.completion}"


class _Author:
    """Samples candidates, and counts what it sampled."""

    def __init__(self, teacher: Teacher, task: Task, teach: TeachConfig, advice: str | None, name: str) -> None:
        self.teacher, self.task, self.advice, self.name = teacher, task, advice, name
        self.sampling = Sampling(teach.max_new_tokens, teach.temperature, teach.top_p, teach.top_k, prompts.STOP)
        self.sampled = self.malformed = 0

    def fill(self, population: dict[str | None, list[Example]], size: int, stream: str, bar: Bar) -> None:
        """Bring each label to `size` candidates, or as near as the tries reach.

        The candidates there are varied in turn; a label that has none gets its first ones. One text per prompt: the
        parents differ, and a prompt without one is short.
        """
        wanted: list[tuple[str | None, list[Example]]] = []  # label, and the parent to vary (none: a first candidate)
        for label, there in population.items():
            parents = [[one] for one in there] or [[]]
            wanted += [(label, parents[i % len(parents)]) for i in range(size - len(there))]
        # Two candidates of the same words are one: units would split their votes between them.
        taken = {label: {tuple(words(text_of(self.task, one))) for one in there} for label, there in population.items()}
        for attempt in range(TRIES):
            if not wanted:
                return
            if attempt:
                bar.grow(len(wanted) * steps(self.task))
            asked = [
                Request(label, prompts.example_prompt(self.task, label, parent, self.advice))
                for label, parent in wanted
            ]
            seed = random.Random(f"{stream}/{attempt}").getrandbits(48)
            failed = []
            written = self.teacher.write(asked, 1, self.sampling, seed, bar.update)
            for (label, parent), texts in zip(wanted, written, strict=True):
                if not any([self._take(label, one, taken[label], population[label]) for one in texts]):
                    failed.append((label, parent))
            wanted = failed

    def _take(
        self, label: str | None, generation: Generation, taken: set[tuple[str, ...]], there: list[Example]
    ) -> bool:
        """Count a text, and add it to the candidates there if it is well formed and new."""
        self.sampled += 1
        child = self._parse(label, generation)
        found = tuple(words(text_of(self.task, child))) if child else ()
        self.malformed += child is None
        if child is None or found in taken:
            return False
        taken.add(found)
        there.append(child)
        return True

    def _parse(self, label: str | None, generation: Generation) -> Example | None:
        text = generation.text.encode(errors="replace").decode()  # half a surrogate pair, from a server's JSON say
        parsed = prompts.parse_example(self.task, label, text, generation.finished)
        id = f"{self.name}-{label or 'example'}-{self.sampled}"
        return Example(id=id, prompt=parsed[0], completion=parsed[1]) if parsed else None
