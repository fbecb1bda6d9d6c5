"""Token scores for the attacks: the same as the plainest forward pass, whatever stands in one batch with a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.configs.models import load_model
from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import TokenScores
from tutelage.students.chat import completion_ids, prompt_ids, prompt_messages
from tutelage.students.scorer import ModelScorer

INSTRUCTION = "Say spam or ham."
MAILS = [
    ("the meeting is moved to friday", "ham"),
    ("x", "spam"),
    ("click now to claim your money, and then click once more, and again until nothing is left", "spam"),
    ("", "ham"),
    ("where does the train stop", ""),
]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    return load_model(tiny_model, dtype="float32")


def examples(pairs: list[tuple[str, str]]) -> list[Example]:
    return [Example(id=str(i), prompt=prompt, completion=completion) for i, (prompt, completion) in enumerate(pairs)]


def plainly(model: Any, tokenizer: Any, example: Example, instruction: str | None) -> TokenScores:
    """One text at a time, and everything from the whole softmax."""
    prompt = prompt_ids(tokenizer, prompt_messages(example.prompt, instruction))
    other = prompt_ids(tokenizer, prompt_messages("0", instruction))
    third = prompt_ids(tokenizer, prompt_messages("b", instruction))
    start = next(i for i in range(len(other)) if other[i] != third[i])
    ids = prompt + completion_ids(tokenizer, example.completion, end_of_turn=True)
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)[start - 1 : -1].numpy()
    own = ids[start:]
    mean = (np.exp(logprobs) * logprobs).sum(-1)
    std = np.sqrt((np.exp(logprobs) * (logprobs - mean[:, None]) ** 2).sum(-1))
    chosen = logprobs[np.arange(len(own)), own]
    return TokenScores(chosen, mean, std, logprobs.argmax(-1) == own, len(prompt) - start)


@pytest.mark.parametrize("instruction", [INSTRUCTION, None])
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_the_same_as_one_text_at_a_time(loaded: tuple[Any, Any], instruction: str | None, rows: int) -> None:
    scorer = ModelScorer(*loaded, instruction, rows)
    for example, found in zip(examples(MAILS), scorer.score(examples(MAILS)), strict=True):
        expected = plainly(*loaded, example, instruction)
        for name in ("logprobs", "mean", "std"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-4)
        assert found.greedy.tolist() == expected.greedy.tolist()
        assert found.completion == expected.completion
        assert len(found.logprobs) > found.completion


def test_completions_alone_are_the_same_for_less(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    real = loaded[0].get_output_embeddings().forward

    def counted(states: torch.Tensor) -> torch.Tensor:
        computed.append(states.shape[:-1].numel())
        return real(states)  # type: ignore[no-any-return]

    monkeypatch.setattr(loaded[0].get_output_embeddings(), "forward", counted)
    scorer, work = ModelScorer(*loaded, INSTRUCTION, 2), examples([*MAILS, MAILS[0]])
    alone = scorer.completion_logprobs(work)
    few, computed[:] = sum(computed), []
    whole = scorer.score(work)
    assert few < 0.5 * sum(computed)
    for one, found in zip(whole, alone, strict=True):
        np.testing.assert_allclose(found, one.logprobs[one.completion :], atol=2e-4)
    computed.clear()
    for one, found in zip(whole, scorer.completion_logprobs(work), strict=True):
        np.testing.assert_array_equal(found, one.logprobs[one.completion :])
    assert not computed  # what is known is not computed again
    assert scorer.completion_logprobs([]) == []


def test_a_text_is_scored_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ModelScorer(*loaded, INSTRUCTION, 4)
    first = scorer.score(examples([*MAILS, MAILS[0]]))
    assert first[0] is first[-1]
    monkeypatch.setattr(loaded[0], "forward", lambda *_, **__: pytest.fail("scored again"))
    assert scorer.score(examples(MAILS[:2])) == first[:2]
    assert scorer.score([]) == []


def test_what_texts_begin_with_is_run_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a canary's candidates do: the same figures for fewer tokens."""
    carrier = "the report will follow by then and nobody knows when or where or why it was asked for, and yet "
    texts = [(carrier + end, "ham") for end in ("a green hat", "two red boats", "a", "a green hat is here")]
    work = examples([*texts, MAILS[0], (carrier, "spam")])
    seen: list[int] = []
    real = loaded[0].forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].numel())
        return real(*args, **kwargs)

    monkeypatch.setattr(loaded[0], "forward", counted)
    found = ModelScorer(*loaded, INSTRUCTION, 4).score(work)
    together, seen[:] = sum(seen), []
    for example in work:
        ModelScorer(*loaded, INSTRUCTION, 4).score([example])
    assert together < 0.5 * sum(seen)
    monkeypatch.undo()
    for example, one in zip(work, found, strict=True):
        expected = plainly(*loaded, example, INSTRUCTION)
        np.testing.assert_allclose(one.logprobs, expected.logprobs, atol=2e-4)
        np.testing.assert_allclose(one.std, expected.std, atol=2e-4)
        assert one.completion == expected.completion


def test_long_prompts_are_cut_and_keep_their_completion(loaded: tuple[Any, Any]) -> None:
    long = Example(id="", prompt="word " * 400, completion="ham")
    [found] = ModelScorer(*loaded, INSTRUCTION, 4, max_tokens=60).score([long])
    assert found.completion < len(found.logprobs) < 60
    assert np.isfinite(found.logprobs).all()
