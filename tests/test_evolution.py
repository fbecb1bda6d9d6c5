"""Private evolution: the vote alone looks at private records, and what it says is what survives."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import HonestTeacher, ScriptedEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.configs.records import Example
from tutelage.configs.schema import ClassificationTask, GenerationTask, PrivateEvolutionPrivacy, Task, TeachConfig
from tutelage.privacy.histogram import NoisyHistogram
from tutelage.privacy.ledger import Internal
from tutelage.privacy.similarity import embed, words
from tutelage.teachers import evolution, prompts
from tutelage.teachers.evolution import Evolved, Vote, evolve, nearest
from tutelage.teachers.teacher import Solo

MAIL = ClassificationTask(
    description="Sort mail.", labels={"ham": "wanted mail", "spam": "unwanted mail"}, text_noun="e-mail"
)
HELP = GenerationTask(description="Answer the customer.")
TASKS: list[Task] = [MAIL, HELP]
TEACH = TeachConfig(prompts_per_label=3)
SIZE = 8
LEXICON = ["gold", "tree", "river", "engine", "paper", "window", "travel", "kernel", "music", "coffee", "garden"]


def sized(iterations: int = 3, size: int = SIZE) -> PrivateEvolutionPrivacy:
    return PrivateEvolutionPrivacy(
        mechanism="private_evolution", epsilon=1, iterations=iterations, candidates_per_label=size
    )


class Writer(ScriptedEngine):
    """Writes six words; shown an example, the same six but for two."""

    def __init__(self, answer: Callable[[str, random.Random], str] | None = None) -> None:
        super().__init__()
        self.answer = answer or self.vary

    @property
    def asked(self) -> list[str]:
        return [prompt for call in self.calls for prompt in call.prompts]

    def write(self, prompt: str, draw: random.Random, j: int) -> str:
        return self.answer(prompt, draw)

    @staticmethod
    def vary(prompt: str, draw: random.Random) -> str:
        shown = [block.partition("\n")[2] for block in prompt.split(prompts.STOP)[1:-1]]
        text = [word for word in words(shown[0]) if word in LEXICON] if shown else draw.choices(LEXICON, k=6)
        for place in draw.sample(range(6), 2):
            text[place] = draw.choice(LEXICON)
        if prompt.endswith("Prompt:"):
            return f" {' '.join(text[:3])}\nCompletion: {' '.join(text[3:])}"
        return " ".join(text)

    def chat(self, system: str, user: str) -> str:
        raise AssertionError("evolution needs no chat")


class Voters:
    """Counts as `count(iteration, text)` says; remembers every vote."""

    def __init__(self, count: Callable[[int, str], int], lost: Sequence[int] = ()) -> None:
        self.count, self.lost = count, lost
        self.votes: list[tuple[int, list[str], list[str | None], list[int]]] = []

    def __call__(self, iteration: int, texts: Sequence[str], labels: Sequence[str | None]) -> list[int] | None:
        counts = [self.count(iteration, text) for text in texts]
        self.votes.append((iteration, list(texts), list(labels), counts))
        return None if iteration in self.lost else counts

    def ranked(self, vote: int, label: str | None) -> list[str]:
        """A label's candidates, the most voted for first."""
        _, texts, labels, counts = self.votes[vote]
        own = [(count, text) for text, one, count in zip(texts, labels, counts, strict=True) if one == label]
        return [text for _, text in sorted(own, reverse=True)]


def any_count(iteration: int, text: str) -> int:
    """Different for different texts, below zero for half of them."""
    return random.Random(f"{iteration}/{text}").getrandbits(40) - 2**39


def grow(engine: Any, vote: Vote, task: Task = MAIL, **changes: Any) -> Evolved:
    given: dict[str, Any] = {"teach": TEACH, "config": sized(), "silo": "north", "round": 1, "seed": 0, **changes}
    return evolve(Solo(engine, task), task=task, vote=vote, **given)


def labels_of(task: Task) -> list[str | None]:
    return list(task.labels) if isinstance(task, ClassificationTask) else [None]


def texts_of(evolved: Evolved, task: Task, label: str | None) -> list[str]:
    if label is None:
        return [f"{one.prompt}\n{one.completion}" for one in evolved.drafts]
    return [one.prompt for one in evolved.drafts if one.completion == label]


# ---- votes and what follows from them -------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_one_vote_an_iteration_on_all_candidates_at_once(task: Task, iterations: int) -> None:
    voters = Voters(any_count)
    evolved = grow(Writer(), voters, task, config=sized(iterations))
    assert [vote[0] for vote in voters.votes] == list(range(iterations))
    for _, texts, labels, _ in voters.votes:
        assert Counter(labels) == dict.fromkeys(labels_of(task), SIZE)
        assert len(set(zip(texts, labels, strict=True))) == len(texts)
    assert len(evolved.drafts) == TEACH.prompts_per_label * len(labels_of(task))
    assert evolved.malformed == 0
    assert evolved.sampled >= len(labels_of(task)) * SIZE * (iterations + 1) / 2


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [2, 7, 8])
def test_the_better_half_stays_and_is_varied(task: Task, size: int) -> None:
    writer, voters = Writer(), Voters(any_count)
    grow(writer, voters, task, config=sized(4, size))
    for label in labels_of(task):
        for before in range(3):
            ranked, after = voters.ranked(before, label), set(voters.ranked(before + 1, label))
            assert len(after) == size
            assert set(ranked[: size // 2]) <= after
            assert not set(ranked[size // 2 :]) & after
            for text in ranked[: size // 2]:
                prompt, _, completion = text.partition("\n")
                parent = Example(id="", prompt=prompt, completion=completion)
                assert prompts.example_prompt(task, label, [parent]) in writer.asked


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("iterations", "wanted"), [(1, 1), (3, 3), (2, SIZE), (2, SIZE + 5)])
def test_drafts_are_those_with_most_votes_in_the_last(task: Task, iterations: int, wanted: int) -> None:
    voters = Voters(any_count)
    teach = TEACH.model_copy(update={"prompts_per_label": wanted})
    evolved = grow(Writer(), voters, task, config=sized(iterations), teach=teach)
    for label in labels_of(task):
        assert texts_of(evolved, task, label) == voters.ranked(-1, label)[:wanted]
    assert len({one.id for one in evolved.drafts}) == len(evolved.drafts)
    assert {(one.kind, one.prompt_version, one.mechanism) for one in evolved.drafts} == {
        ("example", prompts.VERSION, "private_evolution")
    }


def share_of_gold(texts: Sequence[str]) -> float:
    found = [word for text in texts for word in words(text)]
    return found.count("gold") / len(found)


def test_what_is_voted_for_becomes_more_common() -> None:
    loving, blind = Voters(lambda _, text: text.count("gold")), Voters(any_count)
    for voters in (loving, blind):
        grow(Writer(), voters, config=sized(8, 24))
    shares = [share_of_gold(texts) for _, texts, _, _ in loving.votes]
    assert shares == sorted(shares)
    assert shares[0] < 0.15
    assert shares[-1] > 0.3
    assert max(share_of_gold(texts) for _, texts, _, _ in blind.votes) < 0.2


def test_noisy_votes_of_real_embeddings_bring_candidates_nearer_to_the_units() -> None:
    """Each label's units are about something of their own; only the votes can tell the writer."""
    liked = {"ham": ["kernel", "engine", "paper"], "spam": ["gold", "travel", "coffee"]}
    draw = random.Random(1)
    unit_labels = ["ham", "spam"] * 60
    units = embed([" ".join(draw.choices(liked[label], k=6)) for label in unit_labels])

    def vote(iteration: int, texts: Sequence[str], labels: Sequence[str | None]) -> list[int]:
        return NoisyHistogram(1.0).release(nearest(texts, labels, units, unit_labels), len(texts), Internal())

    def nearness(voters: Vote, iterations: int) -> float:
        """Mean cosine of the units to the drafts nearest to them."""
        teach = TEACH.model_copy(update={"prompts_per_label": 6})
        drafts = grow(Writer(), voters, config=sized(iterations, 12), teach=teach).drafts
        texts = embed([one.prompt for one in drafts])
        choices = nearest([one.prompt for one in drafts], [one.completion for one in drafts], units, unit_labels)
        return float(np.mean([units[i] @ texts[choice] for i, choice in enumerate(choices) if choice is not None]))

    evolved, chosen, blind = nearness(vote, 5), nearness(vote, 1), nearness(Voters(any_count), 5)
    assert evolved > chosen + 0.05
    assert evolved > blind + 0.05


@pytest.mark.parametrize("lost", [lost for k in range(4) for lost in itertools.combinations(range(3), k)])
@pytest.mark.parametrize("task", TASKS)
def test_a_lost_vote_changes_nothing_and_drafts_come_all_the_same(lost: tuple[int, ...], task: Task) -> None:
    writer, voters = Writer(), Voters(any_count, lost)
    evolved = grow(writer, voters, task)
    assert [vote[0] for vote in voters.votes] == [0, 1, 2]
    for iteration in range(2):
        same = voters.votes[iteration][1] == voters.votes[iteration + 1][1]
        assert same == (iteration in lost)
    if {0, 1} <= set(lost):
        assert not [prompt for prompt in writer.asked if prompt.count("###") > 1]  # nothing is varied
    for label in labels_of(task):
        drafts, ranked = texts_of(evolved, task, label), voters.ranked(-1, label)
        assert len(set(drafts)) == TEACH.prompts_per_label
        assert set(drafts) <= set(ranked)
        assert (drafts == ranked[: len(drafts)]) == (2 not in lost)


@given(st.integers(-(10**6), 10**6), st.integers(0, 5))
@settings(max_examples=30)
def test_only_the_order_of_counts_matters(shift: int, seed: int) -> None:
    plain = grow(Writer(), Voters(any_count), seed=seed)
    assert grow(Writer(), Voters(lambda i, text: any_count(i, text) + shift), seed=seed) == plain
    assert grow(Writer(), Voters(lambda i, text: 3 * any_count(i, text)), seed=seed) == plain


@pytest.mark.parametrize("lost", [(), (0,)])
def test_ties_and_a_lost_vote_choose_uniformly(lost: tuple[int, ...]) -> None:
    chosen: Counter[int] = Counter()
    for seed in range(400):
        voters = Voters(lambda *_: 0, lost)
        teach = TEACH.model_copy(update={"prompts_per_label": 1})
        evolved = grow(Writer(), voters, HELP, config=sized(1, 4), teach=teach, seed=seed)
        chosen[voters.votes[0][1].index(texts_of(evolved, HELP, None)[0])] += 1
    assert set(chosen) == {0, 1, 2, 3}
    assert all(60 <= count <= 140 for count in chosen.values())


def test_counts_for_other_candidates_are_refused() -> None:
    for counts in ([], [1] * (2 * SIZE - 1), [1] * (2 * SIZE + 1)):
        with pytest.raises(ValueError, match="zip"):
            grow(Writer(), lambda *_, counts=counts: counts)


# ---- what is asked, and what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_first_prompts_are_public_and_no_prompt_holds_private_text(task: Task) -> None:
    secret = "swordfish"
    unit_labels = [label for label in labels_of(task) for _ in range(5)]
    units = embed([f"the {secret} password {LEXICON[i]}" for i in range(len(unit_labels))])
    writer = Writer()
    evolved = grow(writer, lambda _, texts, labels: _counts(nearest(texts, labels, units, unit_labels), texts), task)
    first = [prompts.example_prompt(task, label, ()) for label in labels_of(task) for _ in range(SIZE)]
    assert writer.calls[0].prompts == first
    assert writer.asked
    assert not [prompt for prompt in writer.asked if secret in prompt]
    assert not [one for one in evolved.drafts if secret in one.prompt + one.completion]


def _counts(choices: Sequence[int | None], texts: Sequence[str]) -> list[int]:
    return [choices.count(i) for i in range(len(texts))]


def test_advice_stands_in_every_prompt() -> None:
    writer = Writer()
    grow(writer, Voters(any_count), advice="Mind the sender. ### spam")
    assert len({len(prompt.split(prompts.STOP)) for prompt in writer.asked}) == 2
    assert all(prompt.startswith("Mind the sender. spam\n") for prompt in writer.asked)


def test_malformed_texts_are_sampled_again() -> None:
    def moody(prompt: str, draw: random.Random) -> str:
        return draw.choice(["", "  ", "### spam e-mail 9\nmore", Writer.vary(prompt, draw), Writer.vary(prompt, draw)])

    writer, voters = Writer(moody), Voters(any_count)
    evolved = grow(writer, voters)
    assert evolved.sampled == len(writer.asked)
    assert 0.4 < evolved.malformed / evolved.sampled < 0.8
    assert all(len(labels) > 1.5 * SIZE for _, _, labels, _ in voters.votes)
    assert len(evolved.drafts) == 2 * TEACH.prompts_per_label


@pytest.mark.parametrize("task", TASKS)
def test_nothing_but_garbage_ends_without_a_vote(task: Task) -> None:
    writer, voters = Writer(lambda *_: "### "), Voters(any_count)
    evolved = grow(writer, voters, task)
    assert evolved == Evolved((), evolved.sampled, evolved.sampled)
    assert voters.votes == []
    assert len(writer.calls) == 3 * evolution.TRIES


def test_a_label_nobody_can_write_leaves_the_other_alone() -> None:
    def ham_only(prompt: str, draw: random.Random) -> str:
        return "" if prompt.splitlines()[-1].split()[1] == "spam" else Writer.vary(prompt, draw)

    voters = Voters(any_count)
    evolved = grow(Writer(ham_only), voters)
    assert [Counter(labels) for _, _, labels, _ in voters.votes] == [{"ham": SIZE}] * 3
    assert [one.completion for one in evolved.drafts] == ["ham"] * TEACH.prompts_per_label


def test_a_label_that_failed_at_first_begins_later() -> None:
    writer = Writer()
    writer.answer = lambda prompt, draw: "" if len(writer.calls) <= evolution.TRIES else Writer.vary(prompt, draw)
    voters = Voters(any_count)
    evolved = grow(writer, voters)
    assert [vote[0] for vote in voters.votes] == [1, 2]
    assert len(evolved.drafts) == 2 * TEACH.prompts_per_label


def test_duplicates_are_one_candidate() -> None:
    answers = ["Buy gold now", "buy  GOLD, now!", "sell gold"]
    writer, voters = Writer(lambda _, draw: draw.choice(answers)), Voters(any_count)
    evolved = grow(writer, voters)
    for _, texts, labels, _ in voters.votes:
        assert Counter(labels) == {"ham": 2, "spam": 2}  # the same text may stand under both labels
        assert len({(label, *words(text)) for text, label in zip(texts, labels, strict=True)}) == 4
    assert Counter(one.completion for one in evolved.drafts) == {"ham": 2, "spam": 2}
    assert evolved.malformed == 0
    assert len(writer.calls) == 3 * evolution.TRIES


def test_half_a_surrogate_pair_is_no_text_of_ours() -> None:
    voters = Voters(any_count)
    grow(Writer(lambda prompt, draw: f"{Writer.vary(prompt, draw)} \ud800"), voters)
    assert embed(voters.votes[0][1]).shape == (2 * SIZE, 384)


def test_seed_silo_and_round_decide_everything() -> None:
    def run(**changes: Any) -> tuple[Any, ...]:
        writer, voters = Writer(), Voters(any_count)
        drafts = grow(writer, voters, **changes).drafts
        return drafts, writer.asked, voters.votes

    assert run() == run()
    runs = [run(), run(seed=1), run(silo="south"), run(round=2)]
    assert all(a[2] != b[2] for a, b in itertools.combinations(runs, 2))
    assert grow(HonestTeacher(), Voters(any_count)) == grow(HonestTeacher(), Voters(any_count))


# ---- a unit's choice ------------------------------------------------------------------------------------------------

POOL = [" ".join(random.Random(i).choices(LEXICON, k=5)) for i in range(12)] + ["", "gold", "Gold!"]
LABELS = st.sampled_from([None, "ham", "spam", "news"])


@given(
    st.lists(st.tuples(st.sampled_from(POOL), LABELS), max_size=12),
    st.lists(st.tuples(st.sampled_from(POOL), LABELS), max_size=12),
)
@settings(max_examples=40)
def test_nearest_is_what_a_loop_finds(
    candidates: list[tuple[str, str | None]], units: list[tuple[str, str | None]]
) -> None:
    texts, labels = [text for text, _ in candidates], [label for _, label in candidates]
    there, unit_labels = embed([text for text, _ in units]), [label for _, label in units]
    choices = nearest(texts, labels, there, unit_labels)
    assert len(choices) == len(units)
    here = embed(texts)
    for unit, label, choice in zip(there, unit_labels, choices, strict=True):
        cosines = {i: float(here[i] @ unit) for i, one in enumerate(labels) if one == label}
        if not cosines:
            assert choice is None
        else:
            assert choice is not None
            assert cosines[choice] >= max(cosines.values()) - 1e-5


def test_one_units_presence_moves_no_other_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where candidates lie so close that rounding decides: then a plain product does not pass this."""
    draw = np.random.default_rng(0)
    base = draw.normal(size=384)
    close = (base / np.linalg.norm(base) + draw.normal(size=(40, 384)) * 1e-6).astype(np.float32)
    monkeypatch.setattr(evolution, "embed", lambda texts: close)
    units = draw.normal(size=(257, 384))
    units = (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32)
    labels: list[str | None] = ["ham", "spam"] * 20
    unit_labels = [("ham", "spam", "news")[i % 3] for i in range(len(units))]
    together = nearest([""] * 40, labels, units, unit_labels)
    assert len(set(together)) > 10
    for i in range(len(units)):
        assert nearest([""] * 40, labels, units[i : i + 1], unit_labels[i : i + 1]) == [together[i]]
        others = [*range(i), *range(i + 1, len(units))]
        without = nearest([""] * 40, labels, units[others], [unit_labels[j] for j in others])
        assert without == together[:i] + together[i + 1 :]


def test_labels_must_fit() -> None:
    units = embed(POOL[:3])
    with pytest.raises(ValueError, match="one label"):
        nearest(["a"], [], units, [None] * 3)
    with pytest.raises(ValueError, match="one label"):
        nearest(["a"], [None], units, [None] * 2)


# ---- a real engine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_with_a_model_embeddings_and_noise(task: Task, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.teachers.engines.transformers import TransformersEngine

    unit_labels = labels_of(task) * 10
    units = embed([f"the meeting is moved to friday {i}" for i in range(len(unit_labels))])

    def vote(iteration: int, texts: Sequence[str], labels: Sequence[str | None]) -> list[int]:
        return NoisyHistogram(2.0).release(nearest(texts, labels, units, unit_labels), len(texts), Internal())

    if task is HELP:
        # a random model never writes the marker, so the middle of its text is taken for it
        def parse(task: Task, label: str | None, text: str, finished: bool) -> tuple[str, str] | None:
            middle = len(text) // 2
            return real(task, label, f"{text[:middle]}\nCompletion: {text[middle:]}", finished)

        real = prompts.parse_example
        monkeypatch.setattr(prompts, "parse_example", parse)
    teach = TeachConfig(prompts_per_label=3, max_new_tokens=12)
    evolved = grow(TransformersEngine(tiny_model, 8), vote, task, teach=teach)
    assert len(evolved.drafts) == 3 * len(labels_of(task))
    assert Counter(one.completion for one in evolved.drafts) == dict.fromkeys(labels_of(task), 3) or task is HELP
    assert all(one.prompt and one.completion for one in evolved.drafts)
