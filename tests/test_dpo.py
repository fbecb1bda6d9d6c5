"""Direct preference optimisation: its loss, that it does what it is for, that it repeats and resumes bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lesson_sets import signed

from tutelage.configs.errors import PrivacyError
from tutelage.configs.models import load_model
from tutelage.configs.records import Example
from tutelage.configs.schema import DpoConfig, StudentConfig
from tutelage.configs.store import file_digest
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.preferences import Preferences
from tutelage.students import chat, dpo, loop, score, train

INSTRUCTION = "Answer the question."
DPO = DpoConfig(beta=0.5, epochs=3, learning_rate=1e-3)
SETTINGS = StudentConfig(
    rank=4,
    alpha=8,
    dropout=0.1,
    learning_rate=1e-2,
    epochs=2,
    batch_rows=4,
    dtype="float32",
    checkpoint_every_steps=3,
    heldback_share=0.2,
    dpo=DPO,
)
LESSONS = [Example(id=str(i), prompt=f"when is train {i}", completion=f"it leaves at {i}") for i in range(16)]
PAIRS = [
    (
        Example(id=f"good-{i}", prompt=f"where is train {i}", completion="look at the report"),
        Example(id=f"bad-{i}", prompt=f"where is train {i}", completion=f"click {'now ' * (i % 3)}for a prize"),
    )
    for i in range(10)
]


def fit(base: Path, out: Path, config: StudentConfig = SETTINGS, **over: Any) -> train.TrainResult:
    settings: dict[str, Any] = {"examples": LESSONS, "instruction": INSTRUCTION, "seed": 1, "pairs": PAIRS} | over
    return train._fit(base=base, out=out, config=config, progress=False, base_name="somebody/tiny", **settings)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def margins(base: Path, adapter: Path, pairs: list[tuple[Example, Example]]) -> np.ndarray:
    """Log-probability of each chosen completion minus that of the rejected one, in nats."""
    model, tokenizer = train.load_student(base, adapter)
    sides = [
        score.completion_logprobs(
            model,
            tokenizer,
            [chat.prompt_messages(one.prompt, INSTRUCTION) for one in side],
            [one.completion for one in side],
            4,
            end_of_turn=True,
        )
        for side in zip(*pairs, strict=True)
    ]
    return np.array([a.sum() - b.sum() for a, b in zip(*sides, strict=True)])


@pytest.fixture(scope="module")
def result(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> train.TrainResult:
    return fit(tiny_model, tmp_path_factory.mktemp("trained") / "adapter")


@pytest.fixture(scope="module")
def without(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> train.TrainResult:
    """The student that has learned the same lessons and no pairs."""
    return fit(tiny_model, tmp_path_factory.mktemp("without") / "adapter", pairs=())


def tuner(base: Path, **changes: Any) -> dpo.PreferenceTrainer:
    import torch

    torch.manual_seed(0)
    config = SETTINGS.model_copy(update=changes)
    model, tokenizer = load_model(base)
    pairs = [train._encode_pair(tokenizer, *pair, INSTRUCTION, 256) for pair in PAIRS]
    return dpo.PreferenceTrainer(train._adapt(model, config), chat.pad_id(tokenizer), pairs, config, DPO, 0)


def test_the_loss_is_the_papers(tiny_model: Path) -> None:
    import torch

    trainer = tuner(tiny_model)
    trainer.model.eval()
    batch = trainer.train_rows[:5]

    def summed(prompt: list[int], completion: list[int]) -> torch.Tensor:
        ids = torch.tensor([prompt + completion])
        table = trainer.model(input_ids=ids).logits[0].log_softmax(-1)
        return table[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None]).sum()

    with torch.no_grad():
        before = [[float(summed(one.prompt, c)) for c in (one.completion, one.rejected)] for one in batch]
        for weight in trainer.trained.values():
            weight += 0.05 * torch.randn_like(weight)
    losses = []
    for one, (chosen, rejected) in zip(batch, before, strict=True):
        ratios = summed(one.prompt, one.completion) - chosen, summed(one.prompt, one.rejected) - rejected
        losses.append(-torch.sigmoid(DPO.beta * (ratios[0] - ratios[1])).log())
    expected = torch.stack(losses).mean()
    assert abs(float(expected.detach()) - math.log(2)) > 0.01, "the weights have moved, so that something is tested"
    gradients = []
    for loss in (expected, trainer._loss(batch)):
        trainer.optimizer.zero_grad()
        loss.backward()
        gradients.append([weight.grad.clone() for weight in trainer.trained.values()])
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert trainer.shared, "the system prompt is shared, so that the gradient through it is tested"
    assert len({len(one.rejected) for one in batch}) > 1, "completions of several lengths"
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])


def test_the_first_loss_is_that_of_no_preference_whatever_the_dropout(tiny_model: Path) -> None:
    import torch

    trainer = tuner(tiny_model, dropout=0.9)
    with torch.no_grad():
        for weight in trainer.trained.values():
            weight += 0.2  # else there is nothing for dropout to act on: lora_B is zero
    again = dpo.PreferenceTrainer(trainer.model, trainer.pad, trainer.train_rows, trainer.config, DPO, 0)
    assert again._step(again.train_rows[:4]) == pytest.approx(math.log(2), abs=1e-4)


def test_it_teaches_what_was_preferred(
    tiny_model: Path, result: train.TrainResult, without: train.TrainResult, tmp_path: Path
) -> None:
    unseen = [
        (a.model_copy(update={"prompt": "where is train 77"}), b.model_copy(update={"prompt": "where is train 77"}))
        for a, b in PAIRS[:3]
    ]
    assert result.preference_pairs == len(PAIRS)
    for pairs in (PAIRS, unseen):
        before, after = (margins(tiny_model, one.adapter, pairs) for one in (without, result))
        assert (after > before + 1).all()
    turned = fit(tiny_model, tmp_path / "turned", pairs=[pair[::-1] for pair in PAIRS])
    assert (margins(tiny_model, turned.adapter, PAIRS) < margins(tiny_model, without.adapter, PAIRS) - 1).all()
    held = SETTINGS.model_copy(update={"dpo": DPO.model_copy(update={"learning_rate": 1e-5})})
    gentle = fit(tiny_model, tmp_path / "gentle", held)
    moved = margins(tiny_model, gentle.adapter, PAIRS) - margins(tiny_model, without.adapter, PAIRS)
    assert 0 < moved.mean() < 1, "the rate is that of the recipe's dpo section"


def test_without_pairs_or_without_the_section_nothing_is_added(
    tiny_model: Path, result: train.TrainResult, without: train.TrainResult, tmp_path: Path
) -> None:
    off = fit(tiny_model, tmp_path / "off", SETTINGS.model_copy(update={"dpo": None}), pairs=())
    assert without.preference_pairs == off.preference_pairs == 0
    assert digests(off.adapter) == digests(without.adapter)
    assert digests(result.adapter) != digests(without.adapter)
    assert result.curve == without.curve, "the curve is that of the lessons"


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_stopped_anywhere_and_resumed_it_ends_in_the_same_adapter(
    tiny_model: Path, result: train.TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    steps: list[tuple[str, int]] = []
    original = loop.Trainer._step

    def counted(self: Any, batch: Any) -> float:
        steps.append((self.name, self.state.step))
        if steps[-1] == ("preferences", stop) and not resumed:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(loop.Trainer, "_step", counted)
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    steps.clear()
    resumed = True
    again = fit(tiny_model, tmp_path / "adapter")
    every = SETTINGS.checkpoint_every_steps
    assert steps == [("preferences", step) for step in range(stop // every * every, 9)], "from its last checkpoint"
    assert digests(again.adapter) == digests(result.adapter)
    assert again == train.TrainResult(tmp_path / "adapter", result.curve, result.kept_step, len(PAIRS))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "no checkpoint is left"


def test_a_checkpoint_on_other_pairs_is_not_taken_up(
    tiny_model: Path, result: train.TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_save_adapter", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_model, tmp_path / "adapter", pairs=[pair[::-1] for pair in PAIRS])
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.checkpoint", "adapter.dpo-checkpoint"}
    assert digests(fit(tiny_model, tmp_path / "adapter").adapter) == digests(result.adapter)


def test_a_long_prompt_is_cut_alike_on_both_sides(tiny_model: Path) -> None:
    _, tokenizer = load_model(tiny_model)
    prompt = "first " + "word " * 500 + "last"
    sides = [Example(id=str(i), prompt=prompt, completion="free " * n) for i, n in enumerate((1, 12))]
    for chosen, rejected in (sides, sides[::-1]):
        pair = train._encode_pair(tokenizer, chosen, rejected, INSTRUCTION, 128)
        longer = max(len(pair.completion), len(pair.rejected))
        assert 100 <= len(pair.prompt) + longer <= 128
        assert "word last<|im_end|>" in tokenizer.decode(pair.prompt)
        assert pair.completion == chat.completion_ids(tokenizer, chosen.completion, end_of_turn=True)
        assert pair.rejected == chat.completion_ids(tokenizer, rejected.completion, end_of_turn=True)


def test_a_student_is_trained_on_verified_preferences(tiny_model: Path, tmp_path: Path) -> None:
    key = SiloKey.create(tmp_path / "vault" / "silo.pem")
    lessons, *sides = (
        signed(key, [(one.prompt, one.completion) for one in some]) for some in (LESSONS, *zip(*PAIRS, strict=True))
    )
    preferences = Preferences(*sides)
    same = fit(tiny_model, tmp_path / "same", examples=lessons.examples(), pairs=preferences.pairs())
    settings: dict[str, Any] = {"instruction": INSTRUCTION, "base": tiny_model, "base_name": "somebody/tiny", "seed": 1}
    found = train.train_student(lessons, out=tmp_path / "adapter", config=SETTINGS, preferences=preferences, **settings)
    assert found.preference_pairs == same.preference_pairs == len(PAIRS)
    assert digests(found.adapter) == digests(same.adapter)
    off = SETTINGS.model_copy(update={"dpo": None, "epochs": 1})
    unasked = train.train_student(lessons, out=tmp_path / "off", config=off, preferences=preferences, **settings)
    assert unasked.preference_pairs == 0
    unverified: Any = PAIRS
    with pytest.raises(PrivacyError):
        train.train_student(lessons, out=tmp_path / "x", config=SETTINGS, preferences=unverified, **settings)
