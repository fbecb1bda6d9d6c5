"""The comparison: every method answers the same test set, and is measured alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.configs.load import parse_recipe
from tutelage.configs.models import load_model
from tutelage.configs.records import Example, Metric
from tutelage.configs.schema import Recipe
from tutelage.students import compare, evaluate
from tutelage.students.compare import Comparison, balanced, few_shot

GATE = {"rules": [{"metric": "accuracy.student", "op": ">=", "value": 0.5}]}
MAIL_TASK = {"kind": "classification", "description": "Sort mail.", "labels": {"ham": "wanted", "spam": "unwanted"}}
HELP_TASK = {"kind": "generation", "description": "Answer the customer."}
FILE = {"records": {"source": "files", "path": "x.jsonl"}}


def recipe(task: dict[str, Any] = MAIL_TASK, **changes: Any) -> Recipe:
    data = {"name": "test", "task": task, "gate": GATE, "data": FILE, "teach": {"max_new_tokens": 8}, **changes}
    return parse_recipe({"measure": {"bootstrap": 100}, **data})


def examples(count: int, label: str, start: int = 0) -> list[Example]:
    words = {"ham": "the meeting moved to friday", "spam": "claim a free prize", "news": "train stop"}
    return [
        Example(id=f"{label}{i}", prompt=f"{words[label]} {i}", completion=label) for i in range(start, start + count)
    ]


TEST = [one for pair in zip(examples(10, "ham"), examples(10, "spam"), strict=True) for one in pair]
LESSONS = examples(8, "ham", 100) + examples(8, "spam", 100)
ANSWERS = [Example(id=str(i), prompt=f"where is it {i}", completion=f"over there {i}") for i in range(6)]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> tuple[Any, Any]:
    return load_model(tiny_model)


def by_name(metrics: Sequence[Metric]) -> dict[str, Metric]:
    assert len({one.name for one in metrics}) == len(metrics)
    return {one.name: one for one in metrics}


def sound(metric: Metric, n: int) -> bool:
    return metric.measured and 0 <= metric.ci_low <= metric.value <= metric.ci_high <= 1 and metric.n == n


# ---- who is shown ---------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["ham", "spam", "news"])), st.integers(0, 5), st.integers(0, 99))
def test_balanced_draws_as_many_of_each_as_there_are(labels: list[str], per_class: int, seed: int) -> None:
    items = [Example(id=str(i), prompt=f"text {i}", completion=label) for i, label in enumerate(labels)]
    chosen = balanced(items, per_class, seed)
    assert len({one.id for one in chosen}) == len(chosen)
    expected = {label: min(per_class, count) for label, count in Counter(labels).items()}
    assert Counter(one.completion for one in chosen) == Counter(expected)
    assert chosen == balanced(items, per_class, seed)


def test_the_seed_decides_who_is_drawn() -> None:
    assert balanced(LESSONS, 3, 0) != balanced(LESSONS, 3, 1)
    assert few_shot(LESSONS, recipe(seed=0)) != few_shot(LESSONS, recipe(seed=1))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_shot_takes_the_same_number_per_label(count: int) -> None:
    measure = {"few_shot_per_label": count}
    shots = few_shot(LESSONS, recipe(measure=measure))
    assert Counter(one.completion for one in shots) == {"ham": count, "spam": count}
    assert shots == few_shot(LESSONS, recipe(measure=measure))
    answered = few_shot(ANSWERS, recipe(HELP_TASK, measure=measure))
    assert len(answered) == len({one.id for one in answered}) == min(2 * count, len(ANSWERS))
    assert few_shot([], recipe(measure=measure)) == few_shot([], recipe(HELP_TASK, measure=measure)) == []


def test_the_shots_are_not_sorted_by_label() -> None:
    orders = {
        tuple(one.completion for one in few_shot(LESSONS, recipe(seed=seed, measure={"few_shot_per_label": 4})))
        for seed in range(8)
    }
    assert len(orders) > 4


# ---- measured on a real (tiny) model --------------------------------------------------------------------------------


def test_classification_is_measured_with_intervals(tiny: tuple[Any, Any]) -> None:
    comparison = Comparison(recipe(), TEST)
    plain = comparison.measure("zero_shot", *tiny, instruction="Sort mail.")
    taught = comparison.measure(
        "few_shot",
        *tiny,
        instruction="Sort mail.",
        taught_with=LESSONS,
        shots=LESSONS[:1] + LESSONS[-1:],
        internal=True,
    )
    for name, metrics, internal in (("zero_shot", plain, False), ("few_shot", taught, True)):
        found = by_name(metrics)
        assert set(found) == {
            f"accuracy.{name}", f"macro_f1.{name}", f"recall.{name}.ham", f"recall.{name}.spam",
        }  # fmt: skip
        assert all(sound(one, 10 if one.name.startswith("recall") else 20) for one in metrics)
        assert all(one.internal is internal and one.interval.startswith("95%") for one in metrics)
        recalls = [found[f"recall.{name}.{label}"].value for label in ("ham", "spam")]
        assert found[f"accuracy.{name}"].value == pytest.approx(np.mean(recalls))
    again = comparison.measure("zero_shot", *tiny, instruction="Sort mail.")
    assert again == plain


def test_generation_is_measured_with_intervals(tiny: tuple[Any, Any]) -> None:
    comparison = Comparison(recipe(HELP_TASK), ANSWERS)
    metrics = comparison.measure(
        "student", *tiny, instruction="Answer.", taught_with=ANSWERS, shots=ANSWERS[:1], internal=True
    )
    assert set(by_name(metrics)) == {"exact_match.student", "rouge_l.student", "chrf.student"}
    assert all(sound(one, 6) and one.internal for one in metrics)
    right = [one.completion for one in ANSWERS]
    assert all(one.value == pytest.approx(1) for one in comparison.score("perfect", right))
    assert comparison.tfidf(ANSWERS) == ()


def test_answers_that_must_fit_are_counted() -> None:
    task = {**HELP_TASK, "completion": {"choice": ["yes", "no"]}}
    metrics = Comparison(recipe(task), ANSWERS).score("student", ["yes", "no", "maybe", "no", "", "Yes"])
    fits = by_name(metrics)["fits.student"]
    assert (fits.value, fits.n) == (0.5, 6)
    assert sound(fits, 6)


def test_the_model_gets_instruction_and_shots(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    real = evaluate.classify

    def spy(*args: Any, **kwargs: Any) -> evaluate.Predictions:
        seen.append({**kwargs, "texts": args[2]})
        return real(*args, **kwargs)

    monkeypatch.setattr(compare.evaluate, "classify", spy)
    shots = [LESSONS[0], LESSONS[-1]]
    comparison = Comparison(recipe(), TEST)
    comparison.measure("few_shot", *tiny, instruction="Sort mail.", taught_with=LESSONS, shots=shots)
    test, handful = seen
    assert all(call["instruction"] == "Sort mail." and call["few_shot"] == shots for call in seen)
    assert test["texts"] is TEST
    assert Counter(one.completion for one in handful["texts"]) == {"ham": 8, "spam": 8}
    assert {one.id for one in handful["texts"]} <= {one.id for one in LESSONS}
    seen.clear()
    comparison.measure("zero_shot", *tiny, instruction="Sort mail.")
    [only] = seen
    assert only["texts"] is TEST  # nothing to calibrate on
    seen.clear()
    comparison.measure("instruction", *tiny, instruction="Sort mail.", taught_with=LESSONS)
    [only] = seen
    assert only["texts"] is not TEST  # the same question has been answered
    comparison.measure("instruction", *tiny, instruction="Sort mails.")
    assert seen[-1]["texts"] is TEST


# ---- calibration ----------------------------------------------------------------------------------------------------


def biased(monkeypatch: pytest.MonkeyPatch, bias: float) -> None:
    """In place of a model: it sees what a text is, and likes `spam` better by `bias` whatever it sees."""

    def scores(model: Any, tokenizer: Any, prompts: Any, labels: Sequence[str], *_: Any, **__: Any) -> np.ndarray:
        raw = [[float("meeting" in one[-1]["content"]), float("prize" in one[-1]["content"]) + bias] for one in prompts]
        table = np.array(raw)
        return np.asarray(table - np.logaddexp.reduce(table, axis=1, keepdims=True))

    monkeypatch.setattr(evaluate.score, "label_scores", scores)


@pytest.mark.parametrize("bias", [-30.0, -5.0, 5.0, 30.0])
def test_calibration_mends_a_model_that_favours_a_label(
    tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    biased(monkeypatch, bias)
    comparison, favoured = Comparison(recipe(), TEST), "spam" if bias > 0 else "ham"
    zero = by_name(comparison.measure("zero", SimpleNamespace(), tiny[1], instruction="x"))  # type: ignore[arg-type]
    assert zero["accuracy.zero"].value == 0.5
    assert zero[f"recall.zero.{favoured}"].value == 1
    student = comparison.measure("student", SimpleNamespace(), tiny[1], instruction="x", taught_with=LESSONS)  # type: ignore[arg-type]
    assert by_name(student)["accuracy.student"].value == 1


def test_calibration_leaves_an_even_model_alone(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    biased(monkeypatch, 0.0)
    comparison = Comparison(recipe(), TEST)
    for taught_with in ((), LESSONS):
        metrics = comparison.measure("m", SimpleNamespace(), tiny[1], instruction="x", taught_with=taught_with)  # type: ignore[arg-type]
        assert by_name(metrics)["accuracy.m"].value == 1


# ---- TF-IDF and scores ----------------------------------------------------------------------------------------------


def test_tfidf_learns_the_lessons() -> None:
    comparison = Comparison(recipe(), TEST)
    found = by_name(comparison.tfidf(LESSONS))
    assert found["accuracy.tfidf"].value == 1
    assert not found["accuracy.tfidf"].internal
    assert comparison.tfidf(LESSONS[:8]) == ()  # one label only
    assert comparison.tfidf([]) == ()


def test_scores_are_those_of_the_answers() -> None:
    comparison = Comparison(recipe(), TEST)
    answers = ["ham"] * 20
    found = by_name(comparison.score("always_ham", answers))
    assert found["accuracy.always_ham"].value == 0.5
    assert found["recall.always_ham.ham"].value == 1
    assert found["recall.always_ham.spam"].value == 0
    assert found["macro_f1.always_ham"].value == pytest.approx(1 / 3)


def test_a_comparison_shows_no_test_text() -> None:
    assert "meeting" not in repr(Comparison(recipe(), TEST))
