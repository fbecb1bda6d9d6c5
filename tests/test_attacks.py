"""The contract of all attacks: each finds a leak, seldom sees one where there is none, and fails closed."""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest

from tutelage.configs.records import Example, Metric
from tutelage.configs.schema import AttackConfig, ClassificationTask
from tutelage.privacy import similarity
from tutelage.privacy.attacks import (
    auxiliary,
    extraction,
    instruction,
    loss,
    min_k,
    neighbour,
    ngram,
    one_run,
    rmia,
    zlib_ratio,
)
from tutelage.privacy.attacks.base import Controls, Found, Released, Settings, TokenScores
from tutelage.privacy.canaries import Canary, plant
from tutelage.privacy.similarity import words
from tutelage.privacy.vault import PrivateRecord

MAIL = ClassificationTask(description="sort mail", labels={"spam": "unwanted", "ham": "wanted"})
QUICK = Settings(resamples=200)
SEEDS = 120
EMBED = similarity.embed
VOCABULARY = [f"word{i}" for i in range(80)]
GREETINGS = [" ".join(VOCABULARY[i : i + 4]) for i in range(0, 20, 4)]


class Completions:
    """A scorer's other method, by what `score` gives."""

    def score(self, examples: Sequence[Example]) -> list[TokenScores]:
        raise NotImplementedError

    def completion_logprobs(self, examples: Sequence[Example]) -> list[np.ndarray]:
        return [one.logprobs[max(0, one.completion) :] for one in self.score(examples)]


class Copier(Completions):
    """A model that finds pairs of words likely where it was trained on them, or has them in its prompt."""

    def __init__(self, trained_on: Sequence[str], seed: int) -> None:
        self.memory = {pair for text in trained_on for pair in pairwise(words(text))}
        self.score_once = cache(self._score)
        self.seed = seed

    def score(self, examples: Sequence[Example]) -> list[TokenScores]:
        return [self.score_once(one.prompt, one.completion) for one in examples]

    def _score(self, text: str, answer: str) -> TokenScores:
        prompt, completion = words(text), words(answer)
        tokens = prompt + completion
        shown = set(pairwise(prompt))
        # the first token has a context too: what the template puts before it
        known = [False] + [
            pair in self.memory or (at >= len(prompt) and pair in shown) for at, pair in enumerate(pairwise(tokens), 1)
        ]
        rng = np.random.default_rng(zlib.crc32(f"{self.seed}/{text}/{answer}".encode()))
        logprobs = np.minimum(rng.normal(-5, 1, len(tokens)) + 4 * np.array(known[: len(tokens)]), -0.01)
        mean, std = rng.normal(-3, 0.1, len(tokens)), rng.uniform(1, 2, len(tokens))
        greedy = np.array(known[: len(tokens)], dtype=bool) | (rng.random(len(tokens)) < 0.2)
        return TokenScores(logprobs, mean, std, greedy, len(prompt))


class Poisoned(Completions):
    """A model that says NaN of one example."""

    def __init__(self, model: Copier, id: str) -> None:
        self.model, self.id = model, id

    def score(self, examples: Sequence[Example]) -> list[TokenScores]:
        return [
            replace(one, logprobs=np.full(len(one.logprobs), np.nan)) if example.id == self.id else one
            for one, example in zip(self.model.score(examples), examples, strict=True)
        ]


def texts(rng: random.Random, count: int) -> list[str]:
    """Random words behind one of a few greetings, which texts have in common without any leak."""
    return [" ".join([rng.choice(GREETINGS), *rng.choices(VOCABULARY, k=rng.randrange(14, 22))]) for _ in range(count)]


def pipeline(seed: int, *, leaks: bool, count: int = 30) -> tuple[Released, Controls]:
    """Lessons that are the members themselves, or others like them; and models tuned on these lessons."""
    rng = random.Random(f"{seed}/{leaks}")
    members, nonmembers, others = (
        [
            Example(id=f"{side}{i}", prompt=text, completion=rng.choice(["spam", "ham"]))
            for i, text in enumerate(texts(rng, count))
        ]
        for side in "mno"
    )
    carriers = [PrivateRecord(f"c{i}", text, "ham") for i, text in enumerate(texts(rng, 64))]
    config = AttackConfig(canaries=48, canary_candidates=6)
    canaries, unrelated = (plant({"s": carriers[:1]}, carriers, config, MAIL, rng, max_chars=400)[1] for _ in range(2))
    # sentences of the same forms and words, so that what is like a secret is there without any leak, too
    secrets = [canary.secret for canary in (canaries if leaks else unrelated) if canary.member]
    lessons = [f"{one.prompt} {one.completion}" for one in (members if leaks else others)] + secrets
    told = "sort the mail " + " and ".join(secrets)
    released = Released(
        tuple(lessons),
        told,
        Copier(lessons, seed),
        Copier((), seed + 1),
        (Copier((), seed + 1), Copier((), seed + 2)),
        Copier(lessons, seed + 3),
    )
    return released, Controls(tuple(members), tuple(nonmembers), tuple(canaries))


@dataclass(frozen=True)
class Case:
    """An attack, and what it is expected to be like."""

    attack: Callable[[Released, Controls, Settings], Found]
    internal: bool
    needs: dict[str, tuple[str, ...]]
    """What of `Released` it needs -> the metrics that are missing without it, by the beginning of their names."""


CASES = {
    "loss": Case(loss.attack, True, {"student": ("mia.loss", "mia.gain")}),
    "zlib": Case(zlib_ratio.attack, True, {"student": ("mia.zlib",)}),
    "min_k": Case(min_k.attack, True, {"student": ("mia.min_k",)}),
    "rmia": Case(rmia.attack, True, {"student": ("mia.rmia",)}),
    "ngram": Case(ngram.attack, True, {"texts": ("synthetic.ngram",)}),
    "neighbour": Case(neighbour.attack, True, {"texts": ("synthetic.neighbour", "synthetic.neighbour_meaning")}),
    "auxiliary": Case(auxiliary.attack, True, {"auxiliary": ("synthetic.auxiliary",)}),
    "extraction": Case(
        partial(extraction.attack, prefixes=(2, 6), length=6),
        True,
        {"student": ("extraction.prefix_2", "extraction.prefix_6")},
    ),
    "instruction": Case(instruction.attack, False, {"instruction": ("instruction.canary",)}),
    "one_run": Case(
        partial(one_run.attack, delta=1e-5), False, {"student": ("audit.student",), "texts": ("audit.lessons",)}
    ),
}
NOTHING = {"student": None, "texts": (), "auxiliary": None, "instruction": " \n"}
OF_CANARIES = ("instruction", "one_run")

every_attack = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cache
def direction(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=64)


def bag_of_words(texts: Sequence[str]) -> np.ndarray:
    """In place of the real sentence embeddings."""
    rows = np.array([np.sum([direction(word) for word in words(text)], axis=0) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module", autouse=True)
def no_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "embed", bag_of_words)
        yield


def verdicts(found: Found) -> dict[str, bool]:
    """For every measure of a leak whether it says that there is one."""
    metrics = {metric.name: metric for metric in found.metrics}
    said = {}
    for name, metric in metrics.items():
        if name.endswith("auc"):
            said[name] = metric.ci_low > 0.5
        elif name.endswith("epsilon_low"):
            said[name] = metric.ci_low > 0
        elif f"{name}_out" in metrics:
            said[name] = metric.ci_low > metrics[f"{name}_out"].ci_high
    return said


def measures(found: Found) -> list[Metric]:
    names = verdicts(found).keys()
    return [metric for metric in found.metrics if metric.name in names]


@every_attack
def test_a_leak_is_found(case: Case) -> None:
    for seed in range(5):
        said = verdicts(case.attack(*pipeline(seed, leaks=True), QUICK))
        assert said
        assert all(said.values()), said


@pytest.fixture(scope="module")
def alarms(no_model: None) -> dict[str, float]:
    """Measure -> how often it says that there is a leak, where there is none."""
    raised: Counter[str] = Counter()
    for seed in range(SEEDS):
        quiet = pipeline(seed, leaks=False)
        for case in CASES.values():
            raised.update(verdicts(case.attack(*quiet, QUICK)))
    return {name: count / SEEDS for name, count in raised.items()}


@pytest.mark.slow
@every_attack
def test_where_nothing_leaks_an_alarm_is_rare(case: Case, alarms: dict[str, float]) -> None:
    names = verdicts(case.attack(*pipeline(0, leaks=False), QUICK)).keys()
    assert names
    assert all(alarms[name] <= 0.06 for name in names), alarms


@pytest.mark.slow
def test_alarms_are_as_rare_as_intervals_say(alarms: dict[str, float]) -> None:
    """An interval that never misses would be too wide to find anything."""
    areas = [rate for name, rate in alarms.items() if name.endswith("auc")]
    # attacks on the same texts err together: the mean is hardly surer than one of them, 2.5% with 1.4% of chance
    assert 0.003 <= np.mean(areas) <= 0.025 + 2 * 0.014


@every_attack
def test_what_it_needs_and_lacks_is_missing(case: Case) -> None:
    released, controls = pipeline(0, leaks=True)
    whole = case.attack(released, controls, QUICK)
    for part, names in case.needs.items():
        found = case.attack(replace(released, **{part: NOTHING[part]}), controls, QUICK)
        assert [metric.name for metric in found.metrics] == [metric.name for metric in whole.metrics]
        for metric, before in zip(found.metrics, whole.metrics, strict=True):
            gone = metric.name.startswith(names)
            assert metric.measured is (before.measured and not gone)
        assert all(not curve.name.startswith(names) for curve in found.curves)


@every_attack
@pytest.mark.parametrize("side", ["members", "nonmembers", "both"])
def test_without_controls_it_is_missing(case: Case, side: str) -> None:
    released, controls = pipeline(0, leaks=True)
    kept = [canary for canary in controls.canaries if side != "both" and canary.member is (side == "nonmembers")]
    empty: dict[str, tuple[Example, ...]] = {name: () for name in ("members", "nonmembers") if side in (name, "both")}
    found = case.attack(released, replace(controls, canaries=tuple(kept), **empty), QUICK)
    assert found.curves == ()
    for metric in measures(found):
        # without non-members what is extracted of members is still a figure
        assert metric.measured is (side == "nonmembers" and metric.name.startswith("extraction"))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("ngram", "neighbour")])
@pytest.mark.parametrize("member", [True, False])
def test_a_nan_score_is_never_a_pass(name: str, member: bool) -> None:
    released, controls = pipeline(0, leaks=True)
    if name in OF_CANARIES:
        id = next(canary.id for canary in controls.canaries if canary.member is member)
    else:
        id = "m3" if member else "n3"
    for broken in ("student", "base", "auxiliary", "references"):
        now = getattr(released, broken)
        bad = (now[0], Poisoned(now[1], id)) if broken == "references" else Poisoned(now, id)
        found = CASES[name].attack(replace(released, **{broken: bad}), controls, QUICK)
        hit = {
            "student": ("mia", "audit.student", "extraction"),
            "base": ("mia.gain", "audit.student", "instruction", "synthetic.auxiliary"),
            "auxiliary": ("synthetic.auxiliary",),
            "references": ("mia.rmia",),
        }[broken]
        for metric in measures(found):
            struck = metric.name.startswith(hit) and (member or name != "extraction")
            assert metric.measured is not struck, metric.name
    outside = CASES["extraction"].attack(replace(released, student=Poisoned(released.student, "n3")), controls, QUICK)
    assert [one.measured for one in outside.metrics] == [True, False, True, False]


def test_a_nan_embedding_is_never_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    real = similarity.embed
    monkeypatch.setattr(
        similarity, "embed", lambda texts: np.where(np.arange(len(texts))[:, None] == 2, np.nan, real(texts))
    )
    areas = {metric.name: metric.measured for metric in neighbour.attack(*pipeline(0, leaks=True), QUICK).metrics}
    assert areas["synthetic.neighbour.auc"]
    assert not areas["synthetic.neighbour_meaning.auc"]


@every_attack
def test_the_order_of_controls_changes_nothing(case: Case) -> None:
    released, controls = pipeline(1, leaks=False)
    other = Controls(controls.members[::-1], controls.nonmembers[::-1], controls.canaries[::-1])
    released = replace(released, texts=released.texts[::-1])
    assert repr(case.attack(released, other, QUICK)) == repr(case.attack(released, controls, QUICK))


@every_attack
def test_figures_of_real_records_are_internal(case: Case) -> None:
    found = case.attack(*pipeline(2, leaks=True), QUICK)
    assert {metric.internal for metric in found.metrics} == {case.internal}
    assert {curve.internal for curve in found.curves} <= {case.internal}
    assert len({metric.name for metric in found.metrics}) == len(found.metrics)


@every_attack
def test_no_text_stands_in_what_is_found(case: Case) -> None:
    released, controls = pipeline(3, leaks=True)
    shown = repr(case.attack(released, controls, QUICK)) + repr(controls)
    assert "word" not in shown.replace("words of a canary", "")
    assert not any(canary.secret in shown for canary in controls.canaries)


# ---- single attacks ----------------------------------------------------------------------------------------------


def area(found: Found, name: str) -> float:
    return next(metric.value for metric in found.metrics if metric.name == name)


def test_rmia_leaves_out_of_its_judgement_what_it_compares_with() -> None:
    released, controls = pipeline(0, leaks=False, count=9)
    [metric, *_], [curve] = (found := rmia.attack(released, controls, QUICK)).metrics, found.curves
    assert (curve.members, curve.nonmembers, metric.n) == (9, 5, 14)
    # dealt out by the seed
    areas = {area(rmia.attack(released, controls, Settings(10, seed)), "mia.rmia.auc") for seed in range(8)}
    assert len(areas) > 2
    assert not rmia.attack(released, replace(controls, nonmembers=controls.nonmembers[:1]), QUICK).metrics[0].measured


def test_rmia_without_references_takes_the_base() -> None:
    released, controls = pipeline(0, leaks=False)
    alone = rmia.attack(replace(released, references=()), controls, QUICK)
    assert repr(alone) == repr(rmia.attack(replace(released, references=(released.base,)), controls, QUICK))


def test_the_gain_takes_out_what_is_likely_anyway() -> None:
    """Non-members that the base knows too: by likelihood alone they look like members."""
    released, controls = pipeline(0, leaks=True)
    public = [f"{one.prompt} {one.completion}" for one in controls.nonmembers]
    released = replace(released, base=Copier(public, 1), student=Copier([*released.texts, *public], 0))
    found = loss.attack(released, controls, QUICK)
    assert area(found, "mia.gain.auc") > 0.95
    assert area(found, "mia.loss.auc") < 0.7


def test_zlib_takes_out_repetition() -> None:
    class Lengths(Completions):
        """One nat for each of the first ten tokens of a text, and nothing for what repeats."""

        def score(self, examples: Sequence[Example]) -> list[TokenScores]:
            return [
                TokenScores(
                    -np.ones(min(10, len(words(one.prompt)))), np.zeros(1), np.ones(1), np.zeros(1, dtype=bool), 0
                )
                for one in examples
            ]

    released, _ = pipeline(0, leaks=False)
    rng = random.Random(0)
    varied = tuple(Example(id=str(i), prompt=text, completion="") for i, text in enumerate(texts(rng, 12)))
    plain = tuple(Example(id=str(i), prompt=f"word{i} " * 24, completion="") for i in range(12))
    found = zlib_ratio.attack(replace(released, student=Lengths()), Controls(varied, plain, ()), QUICK)
    assert area(found, "mia.zlib.auc") == 1


def test_extraction_counts_exact_continuations() -> None:
    class Greedy(Completions):
        """Right about all tokens from a place on that the prompt names."""

        def score(self, examples: Sequence[Example]) -> list[TokenScores]:
            rows = [tuple(map(int, one.prompt.split())) for one in examples]
            return [
                TokenScores(-np.ones(length), np.zeros(length), np.ones(length), np.arange(length) >= right, 0)
                for right, length in rows
            ]

    def some(*prompts: str) -> tuple[Example, ...]:
        return tuple(Example(id=one, prompt=one, completion="") for one in prompts)

    released, _ = pipeline(0, leaks=False)
    controls = Controls(some("4 20", "5 20", "0 13", "0 14"), some("9 90", "4 13"), ())
    found = extraction.attack(replace(released, student=Greedy()), controls, QUICK, prefixes=(4, 6), length=10)
    assert {metric.name: (metric.value, metric.n) for metric in found.metrics if metric.measured} == {
        "extraction.prefix_4": (pytest.approx(2 / 3), 3),
        "extraction.prefix_4_out": (0, 1),
        "extraction.prefix_6": (1, 2),
        "extraction.prefix_6_out": (0, 1),
    }
    assert [metric.name for metric in extraction.attack(released, controls, QUICK).metrics] == [
        f"extraction.prefix_{k}{side}" for k in (16, 32, 64) for side in ("", "_out")
    ]


def test_the_instruction_is_searched_for_secrets() -> None:
    released, controls = pipeline(0, leaks=False)
    [inside, *_] = [canary for canary in controls.canaries if canary.member]
    [outside, *_] = [canary for canary in controls.canaries if not canary.member]
    told = f"Note: {inside.secret.upper().replace(' ', ' - ')}! " + " ".join(outside.secret.split()[:4])
    metrics = {
        one.name: one for one in instruction.attack(replace(released, instruction=told), controls, QUICK).metrics
    }
    assert metrics["instruction.canary_verbatim"].value == 1
    assert metrics["instruction.canary_run_max"].value == len(inside.secret.split())
    beside = metrics["instruction.canary_run_max"].interval
    assert beside == "none: a maximum; 4 words of a canary that was not planted"


def generation(canary: Canary) -> Canary:
    text = canary.texts()[canary.index]
    return Canary(
        canary.id, "s", canary.member, "generation", text, "tail", "a\n\nquestion", canary.candidates, canary.index
    )


def test_a_canary_is_scored_as_it_would_be_trained_on() -> None:
    _, controls = pipeline(0, leaks=False)
    canary = controls.canaries[0]
    one = one_run._as_trained(canary, canary.index)
    assert (one.prompt, one.completion) == (canary.texts()[canary.index], "ham")
    other = one_run._as_trained(generation(canary), 3)
    assert other.prompt == "a\n\nquestion"
    assert other.completion.endswith(f" {canary.candidates[3]}.")
    assert "question" not in other.completion


def test_lessons_are_ranked_by_words_in_a_row_before_likelihood() -> None:
    _, controls = pipeline(0, leaks=False)
    first, second, third = controls.canaries[:3]
    half = " ".join(first.secret.split()[:-1])
    # all of the second's words are there, many times, and hardly two of them in a row
    shuffled = [" ".join(reversed(second.secret.split()))] * 5
    ranks = one_run.lesson_scores([first, second, third], [half, *shuffled])
    assert ranks.argmax() == 0
    assert one_run.lesson_scores([], ["a"]).shape == (0,)


def test_meaning_is_seen_where_no_words_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "embed", EMBED)
    lessons = ("The train to Paris was cancelled because of snow", "Our dentist moved to a new building")
    members = ("Heavy snowfall stopped all rail traffic towards the French capital", "The tooth doctor has relocated")
    outside = ("Bake the bread for an hour", "The parliament votes on taxes")
    released, _ = pipeline(0, leaks=False)
    controls = Controls(
        *(tuple(Example(id=text, prompt=text, completion="") for text in side) for side in (members, outside)), ()
    )
    found = neighbour.attack(replace(released, texts=lessons), controls, QUICK)
    assert area(found, "synthetic.neighbour.auc") == 0.5
    assert area(found, "synthetic.neighbour_meaning.auc") == 1


def test_many_nonmembers_give_all_shares_and_a_curve() -> None:
    released, controls = pipeline(0, leaks=True, count=120)
    found = zlib_ratio.attack(released, controls, QUICK)
    assert [metric.measured for metric in found.metrics] == [True, True, False]
    assert found.metrics[1].value > 0.5
    assert [curve.name for curve in found.curves] == ["mia.zlib"]
    assert math.isnan(found.metrics[2].value)
