from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from tiny_model import make_tiny_model

from tutelage.configs.models import load_model
from tutelage.configs.records import Example
from tutelage.students import baselines, chat, score
from tutelage.students import evaluate as students_evaluate
from tutelage.students.neutral import NEUTRAL_TEXTS

LABELS = ("ham", "spam")


def example(prompt: str, completion: str = "ham") -> Example:
    return Example(id=prompt, prompt=prompt, completion=completion)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_model(make_tiny_model(tmp_path_factory.mktemp("model")), "float32")


def test_modules_load_offline_and_combine() -> None:
    paths = [str(students_evaluate.METRICS / f"{name}.py") for name in ("classification", "generation")]
    both = evaluate.combine([evaluate.load(path, keep_in_memory=True) for path in paths])
    found = both.compute(predictions=["ham", "spam", "ham", "ham"], references=["ham", "spam", "spam", "ham"])
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert found["exact_match"] == 0.75
    assert 0 < found["rouge_l"] <= 1
    assert 0 < found["chrf"] <= 1


def test_the_generation_module_on_known_answers() -> None:
    module = evaluate.load(str(students_evaluate.METRICS / "generation.py"), keep_in_memory=True)
    answers = ["The  cat sat", "a b c d", "nothing", "running dogs"]
    truth = ["the cat sat", "a x c y", "else", "run dog"]
    found = module.compute(predictions=answers, references=truth, per_item=True)
    assert found["exact_match"] == [1, 0, 0, 0]
    assert found["rouge_l"] == [1, 0.5, 0, 1]
    assert found["chrf"][0] > found["chrf"][3] > found["chrf"][2]


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=60),
    seed=st.integers(0, 3),
)
def test_metrics_agree_with_scikit_learn(pairs: list[tuple[str, str]], seed: int) -> None:
    predicted, truth = zip(*pairs, strict=True)
    found = {m.name: m for m in students_evaluate.metrics_of("x", predicted, truth, "abc", draws=200, seed=seed)}
    right = sum(a == b for a, b in pairs)
    accuracy = found["accuracy.x"]
    assert accuracy.value == pytest.approx(right / len(pairs))
    assert accuracy.ci_low <= accuracy.value <= accuracy.ci_high
    f1 = found["macro_f1.x"]
    assert f1.value == pytest.approx(f1_score(truth, predicted, labels=list("abc"), average="macro", zero_division=0))
    assert 0 <= f1.ci_low <= f1.ci_high <= 1
    for label in "abc":
        recall, n = found[f"recall.x.{label}"], truth.count(label)
        assert recall.n == n
        if n:
            assert recall.value == pytest.approx(sum(a == b == label for a, b in pairs) / n)
        else:
            assert not recall.measured
    again = students_evaluate.metrics_of("x", predicted, truth, "abc", draws=200, seed=seed)
    assert found["macro_f1.x"] == again[1]


def test_the_f1_interval_is_that_of_drawing_items() -> None:
    chance = np.random.default_rng(0)
    truth = chance.choice(["a", "b", "c"], 150, p=[0.6, 0.3, 0.1])
    predicted = np.where(chance.random(150) < 0.7, truth, chance.choice(["a", "b", "c"], 150))
    found = students_evaluate.metrics_of("x", list(predicted), list(truth), "abc", draws=4000, seed=1)[1]
    draws = []
    for _ in range(400):
        chosen = chance.integers(150, size=150)
        draws.append(f1_score(truth[chosen], predicted[chosen], labels=list("abc"), average="macro", zero_division=0))
    low, high = np.percentile(draws, [2.5, 97.5])
    assert found.ci_low == pytest.approx(low, abs=0.02)
    assert found.ci_high == pytest.approx(high, abs=0.02)


def test_nothing_measured_is_nan_and_internal_is_kept() -> None:
    empty = students_evaluate.metrics_of("x", [], [], LABELS, draws=100, seed=0, internal=True)
    assert [metric.name for metric in empty] == ["accuracy.x", "macro_f1.x", "recall.x.ham", "recall.x.spam"]
    assert not any(metric.measured for metric in empty)
    assert all(metric.internal for metric in empty)
    assert not any(m.measured for m in students_evaluate.generation_metrics("x", [], [], draws=100, seed=0))
    full = students_evaluate.metrics_of("x", ["ham"], ["ham"], LABELS, draws=100, seed=0, internal=True)
    assert all(metric.internal for metric in full)


def test_answers_and_references_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default evaluate keeps both in a file while it computes, and a crash leaves that file behind."""
    private = "Zyxwv Qponm's telephone"
    seen: list[str] = []

    def look(*_: object, **__: object) -> None:
        seen.extend(str(p) for p in tmp_path.rglob("*") if p.is_file() and private.encode() in p.read_bytes())
        raise RuntimeError("stopped while computing")

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    students_evaluate._module.cache_clear()
    for name in ("classification", "generation"):
        module = students_evaluate._module(name)
        monkeypatch.setattr(module, "_compute", look)
        with pytest.raises(RuntimeError, match="stopped"):
            module.compute(predictions=[private], references=[private])
    students_evaluate._module.cache_clear()
    assert not seen


def test_generation_metrics() -> None:
    truth = ["the cat sat on the mat", "yes", "no", "forty two"]
    found = students_evaluate.generation_metrics(
        "student", ["the cat lay on the mat", "yes", "maybe", "forty two"], truth, draws=300, seed=0
    )
    assert [m.name for m in found] == ["exact_match.student", "rouge_l.student", "chrf.student"]
    assert found[0].value == 0.5
    assert "Wilson" in found[0].interval
    assert found[1].value == pytest.approx((5 / 6 + 1 + 0 + 1) / 4)
    assert all(m.ci_low <= m.value <= m.ci_high for m in found)


def test_classify_chooses_the_likeliest_label(tiny: Any) -> None:
    model, tokenizer = tiny
    test = [example(f"the meeting {'is moved ' * i}{i}") for i in range(5)]
    shots = [example("free prize", "spam")]
    found = students_evaluate.classify(
        model, tokenizer, test, LABELS, instruction="Which is it?", batch_rows=2, few_shot=shots
    )
    for row, label, one in zip(found.scores, found.labels, test, strict=True):
        messages = [
            {"role": "system", "content": "Which is it?"},
            {"role": "user", "content": "free prize"},
            {"role": "assistant", "content": "spam"},
            {"role": "user", "content": one.prompt},
        ]
        alone = [score.completion_logprobs(model, tokenizer, [messages], [each], 1)[0].sum() for each in LABELS]
        np.testing.assert_allclose(row, alone, atol=1e-4)
        assert label == LABELS[int(np.argmax(alone))]


def test_a_label_that_begins_another_must_end_too(tiny: Any) -> None:
    model, tokenizer = tiny
    labels = ("free", "free prize")
    found = students_evaluate.classify(model, tokenizer, [example("x")], labels, instruction=None, batch_rows=1)
    messages = chat.prompt_messages("x", None)
    expected = [
        score.completion_logprobs(model, tokenizer, [messages], [label], 1, end_of_turn=True)[0].sum()
        for label in labels
    ]
    np.testing.assert_allclose(found.scores[0], expected, atol=1e-4)


def test_calibration_takes_a_prompts_bias_away(tiny: Any) -> None:
    chance = np.random.default_rng(0)
    truth = np.arange(200) % 2
    logits = chance.normal(size=(200, 2)) + 2 * np.eye(2)[truth] + [4.0, 0.0]
    scores = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) - 7
    bias = students_evaluate.calibrate(scores)
    assert (scores.argmax(1) == truth).mean() < 0.65
    assert ((scores - bias).argmax(1) == truth).mean() > 0.88
    model, tokenizer = tiny
    found = students_evaluate.classify(
        model, tokenizer, [example("a"), example("b")], LABELS, instruction=None, batch_rows=2
    )
    for label, push in (("ham", [-99.0, 0.0]), ("spam", [0.0, -99.0])):
        assert found.without(np.array(push)) == (label, label)


def test_answers_are_greedy_whatever_the_batch(tiny: Any) -> None:
    model, tokenizer = tiny
    test = [example("the meeting " * n + "x") for n in (1, 9, 4, 2, 6)]
    settings = {"instruction": None, "max_new_tokens": 6, "progress": False}
    together = students_evaluate.generate_answers(model, tokenizer, test, batch_rows=3, **settings)
    alone = [students_evaluate.generate_answers(model, tokenizer, [one], batch_rows=1, **settings)[0] for one in test]
    assert together == alone
    assert any(together)
    assert not any("<|" in answer for answer in together)


def test_forgetting() -> None:
    before = np.array([2.0, 3.0, 2.5, 2.0])
    found = students_evaluate.forgetting(before, before + np.array([0.1, 0.3, 0.2, 0.2]), draws=500, seed=0)
    assert [m.name for m in found] == ["forgetting.loss_before", "forgetting.loss_after", "forgetting.increase"]
    assert found[2].value == pytest.approx(0.2)
    assert 0.1 <= found[2].ci_low <= 0.2 <= found[2].ci_high <= 0.3
    assert found[1].value == pytest.approx(found[0].value + 0.2)
    lost = students_evaluate.forgetting(before, np.array([2.0, math.nan, 2.0, 2.0]), draws=500, seed=0)
    assert not lost[1].measured
    assert not lost[2].measured


def test_neutral_texts() -> None:
    assert len(set(NEUTRAL_TEXTS)) == len(NEUTRAL_TEXTS) >= 32
    assert all(15 <= len(text.split()) <= 60 for text in NEUTRAL_TEXTS)


def test_tfidf() -> None:
    train = [example(f"free prize money {i}", "spam") for i in range(8)]
    train += [example(f"meeting on friday {i}", "ham") for i in range(8)]
    test = [example("the meeting is on friday"), example("win a free prize")]
    found = baselines.tfidf(train, test, ("spam", "other", "ham"))
    assert found.labels == ("ham", "spam")
    assert found.scores.shape == (2, 3)
    assert np.isneginf(found.scores[:, 1]).all()
    np.testing.assert_allclose(np.exp(found.scores).sum(1), 1)
