from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import make_tiny_model

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import load_model
from tutelage.configs.records import Example, Lesson
from tutelage.configs.schema import StudentConfig
from tutelage.configs.store import file_digest
from tutelage.privacy import release
from tutelage.privacy.vault import PrivateRecord
from tutelage.students import chat, loop, score, train

INSTRUCTION = "Say whether the message is ham or spam."
NAME = "somebody/tiny"
SETTINGS = StudentConfig(
    rank=4,
    alpha=8,
    dropout=0.1,
    learning_rate=1e-2,
    epochs=4,
    batch_rows=4,
    dtype="float32",
    checkpoint_every_steps=3,
    heldback_share=0.2,
    patience_epochs=4,
)


def examples(count: int = 24) -> list[Example]:
    words = {"ham": "the meeting is moved to friday", "spam": "you won a free prize, click now"}
    labels = ["ham", "spam"]
    return [
        Example(id=str(i), prompt=f"{words[labels[i % 2]]} {'very ' * (i % 5)}{i}", completion=labels[i % 2])
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


def fit(base: Path, out: Path, config: StudentConfig = SETTINGS, **over: Any) -> train.TrainResult:
    settings: dict[str, Any] = {"examples": examples(), "instruction": INSTRUCTION, "seed": 1} | over
    return train._fit(base=base, out=out, config=config, progress=False, base_name=NAME, **settings)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def result(base: Path, tmp_path_factory: pytest.TempPathFactory) -> train.TrainResult:
    return fit(base, tmp_path_factory.mktemp("trained") / "adapter")


def test_it_learns(base: Path, tmp_path: Path) -> None:
    config = SETTINGS.model_copy(update={"epochs": 25, "dropout": 0.0, "patience_epochs": 25})
    result = fit(base, tmp_path / "adapter", config, examples=examples(40))
    model, tokenizer = load_model(base)
    taught, _ = train.load_student(base, result.adapter)
    unseen = examples(60)[40:]
    prompts = [chat.prompt_messages(example.prompt, INSTRUCTION) for example in unseen]
    truth = [["ham", "spam"].index(example.completion) for example in unseen]
    before, after = (
        score.label_scores(m, tokenizer, prompts, ["ham", "spam"], 4, end_of_turn=True) for m in (model, taught)
    )
    rows = np.arange(len(truth))
    assert (after.argmax(1) == truth).all()
    assert after[rows, truth].mean() > before[rows, truth].mean() + 1
    losses = [point.heldback_loss for point in result.curve if point.heldback_loss is not None]
    assert len(losses) == 25
    assert losses[-1] < losses[0]


def test_the_folder_names_the_public_base_and_no_path(base: Path, result: train.TrainResult) -> None:
    assert {path.name for path in result.adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    settings = json.loads((result.adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == NAME
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert str(base) not in (result.adapter / "adapter_config.json").read_text()
    assert not list(result.adapter.parent.glob("*.checkpoint"))
    assert [path.name for path in result.adapter.parent.iterdir()] == ["adapter"]


def test_the_seed_decides(base: Path, result: train.TrainResult, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = fit(base, tmp_path / "again")
    assert torch.equal(state, torch.get_rng_state()), "the caller's random state is left alone"
    assert digests(again.adapter) == digests(result.adapter)
    assert again.curve == result.curve
    assert digests(fit(base, tmp_path / "other", seed=2).adapter) != digests(result.adapter)


def test_a_killed_run_ends_in_the_same_adapter(base: Path, result: train.TrainResult, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    checkpoint = tmp_path / "adapter.checkpoint"
    code = (
        "import sys, time; from pathlib import Path; import test_train, tutelage.students.loop as loop\n"
        "step = loop.Trainer._step\n"
        "def slow(self, batch):\n"
        "    time.sleep(0.1)\n"
        "    return step(self, batch)\n"
        "loop.Trainer._step = slow\n"
        "test_train.fit(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(base), str(out)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    try:
        deadline = time.monotonic() + 120
        # The third checkpoint is in the middle of the second epoch, with a best epoch behind it.
        stamps: set[int] = set()
        while len(stamps) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            if checkpoint.exists():
                stamps.add(checkpoint.stat().st_mtime_ns)
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    steps: list[int] = []
    original = loop.Trainer._step

    def counted(self: loop.Trainer, batch: list[loop.Row]) -> float:
        steps.append(self.state.step)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", counted)
        resumed = fit(base, out)
    assert steps[0] >= 3 * SETTINGS.checkpoint_every_steps, "the finished steps weren't done again"
    assert digests(resumed.adapter) == digests(result.adapter)
    assert resumed == train.TrainResult(out, result.curve, result.kept_step)
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_run_is_not_taken_up(base: Path, result: train.TrainResult, tmp_path: Path) -> None:
    out = tmp_path / "adapter"

    def stop(self: loop.Trainer, *_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_end_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(base, out, seed=5)
    assert (tmp_path / "adapter.checkpoint").exists()
    assert digests(fit(base, out).adapter) == digests(result.adapter)


@pytest.mark.parametrize(
    ("heldback", "kept_epoch"),
    [
        ([[2.0, 2.1], [1.0, 1.0], [3.0, 3.1], [4.0, 4.1]], 2),
        ([[2.0, 2.1], [1.0, 0.0], [0.0, 1.2], [4.0, 4.1], [4.0, 4.1]], 3),  # 0.1 worse on average, by chance
        ([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0], [8.0], [9.0]], 9),  # one row says nothing
        ([[2.0, 2.0], [3.0, 3.0], [1.0, 1.0], [math.nan, 1.0], [math.nan, 1.0]], 3),
    ],
)
def test_the_last_epoch_that_is_not_clearly_worse_is_kept(
    base: Path, tmp_path: Path, heldback: list[list[float]], kept_epoch: int
) -> None:
    losses = iter(heldback)
    seen: list[dict[str, Any]] = []

    def heldback_nll(self: loop.Trainer) -> list[float]:
        seen.append(loop.copied(self.trained))
        return next(losses)

    def save(model: Any, out: Path, base_name: str) -> None:
        seen.append(loop.copied({name: p for name, p in model.named_parameters() if p.requires_grad}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_heldback_nll", heldback_nll)
        patch.setattr(train, "_save_adapter", save)
        patch.setattr(train, "_check_reloads", lambda *_: None)
        found = fit(base, tmp_path / "adapter", SETTINGS.model_copy(update={"epochs": 9, "patience_epochs": 2}))
    assert len(seen) == len(heldback) + 1, "each epoch, then the adapter"
    assert found.kept_step == kept_epoch * 5
    assert all((seen[-1][name] == seen[kept_epoch - 1][name]).all() for name in seen[-1])
    assert len(heldback) == kept_epoch or any((seen[-1][name] != seen[-2][name]).any() for name in seen[-1])


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=20), st.floats(0.5, 50))
def test_a_loss_is_clearly_worse_beyond_one_standard_error(rows: list[tuple[float, float]], shift: float) -> None:
    now, best = [list(column) for column in zip(*rows, strict=True)]
    differences = np.subtract(now, best)
    if len(rows) > 1:
        error = differences.std(ddof=1) / math.sqrt(len(rows))
        if abs(differences.mean() - error) > 1e-9:
            assert loop.clearly_worse(now, best) == (differences.mean() > error)
        assert loop.clearly_worse([one + shift for one in best], best), "worse in every row alike"
    assert not loop.clearly_worse(best, best)
    assert not loop.clearly_worse([one - shift for one in best], best)
    assert not loop.clearly_worse(now, [])


def test_the_loss_is_the_completions_alone(base: Path) -> None:
    import torch

    model, tokenizer = load_model(base)
    batch = [train._encode(tokenizer, example, INSTRUCTION, 256) for example in examples(5)]
    trainer = loop.Trainer(train._adapt(model, SETTINGS), chat.pad_id(tokenizer), batch * 4, SETTINGS, 0)
    trainer.model.eval()
    total = torch.zeros(())
    for row in batch:
        ids = torch.tensor([row.prompt + row.completion])
        table = trainer.model(input_ids=ids).logits[0].log_softmax(-1)
        total = total - table[len(row.prompt) - 1 : -1].gather(1, ids[0, len(row.prompt) :, None]).sum()
    expected = total / sum(len(row.completion) for row in batch)
    gradients = []
    for loss in (expected, trainer._loss(batch)):
        trainer.optimizer.zero_grad()
        loss.backward()
        gradients.append([weight.grad.clone() for weight in trainer.trained.values()])
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert trainer.shared, "the system prompt is shared, so that the gradient through it is tested"
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])
    assert batch[0].completion[-1] == chat.end_of_turn_id(tokenizer)


def test_long_prompts_are_cut_in_the_middle(base: Path) -> None:
    _, tokenizer = load_model(base)
    example = Example(id="1", prompt="first " + "word " * 500 + "last", completion="spam")
    row = train._encode(tokenizer, example, INSTRUCTION, 128)
    text = tokenizer.decode(row.prompt)
    assert 100 <= len(row.prompt) + len(row.completion) <= 128
    assert "first word" in text
    assert "word last<|im_end|>" in text
    assert INSTRUCTION in text
    assert tokenizer.decode(row.completion) == "spam<|im_end|>"
    with pytest.raises(UserError, match=r"student\.max_tokens"):
        train._encode(tokenizer, example, INSTRUCTION * 20, 128)


def test_the_heldback_rows_are_stratified() -> None:
    completions = [[1], [2], [2], [2]] * 25
    kept, held = loop._split(completions, 0.2, 0)
    assert sorted(kept + held) == list(range(100))
    assert len(held) == 20
    assert sum(completions[i] == [1] for i in held) == 5
    assert (kept, held) == loop._split(completions, 0.2, 0)
    assert held != loop._split(completions, 0.2, 1)[1]
    assert len(loop._split([[i] for i in range(40)], 0.1, 0)[1]) == 4
    assert loop._split(completions, 0.0, 0)[1] == []


def test_every_row_is_in_every_epoch_once(base: Path) -> None:
    model, _ = load_model(base)
    rows = [loop.Row([1, 2, i], [i]) for i in range(101)]
    trainer = loop.Trainer(train._adapt(model, SETTINGS), 0, rows, SETTINGS, 0)
    first, second = trainer._batches(0), trainer._batches(1)
    assert first != second
    assert first == trainer._batches(0)
    for batches in (first, second):
        assert len(batches) == trainer.steps_per_epoch
        assert sorted(row.prompt[2] for batch in batches for row in batch) == sorted(
            row.prompt[2] for row in trainer.train_rows
        )


def test_the_probe_sees_frozen_weights_and_a_wrong_file(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", lambda self, batch: 1.0)
        with pytest.raises(RuntimeError, match="unchanged"):
            fit(base, tmp_path / "adapter")
    original = train._save_adapter

    def corrupt(model: Any, out: Path, base_name: str) -> None:
        original(model, out, base_name)
        settings = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 80}))

    monkeypatch.setattr(train, "_save_adapter", corrupt)
    with pytest.raises(RuntimeError, match="does not give the logits"):
        fit(base, tmp_path / "adapter")


def test_no_heldback_share_trains_to_the_end(base: Path, tmp_path: Path) -> None:
    config = SETTINGS.model_copy(update={"heldback_share": 0.0, "epochs": 2})
    found = fit(base, tmp_path / "adapter", config)
    assert found.kept_step == found.curve[-1].step == 2 * 6
    assert all(point.heldback_loss is None for point in found.curve)


def test_what_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few"):
        fit(base, tmp_path / "adapter", examples=[])
    with pytest.raises(UserError, match="target_modules"):
        fit(base, tmp_path / "adapter", SETTINGS.model_copy(update={"target_modules": ("nothing",)}))
    settings: Any = {"instruction": None, "base": base, "base_name": NAME, "config": SETTINGS, "seed": 0}
    with pytest.raises(PrivacyError):
        train.train_upper_line([], out=tmp_path / "adapter", **settings)
    with pytest.raises(PrivacyError):
        train.train_student(examples(), out=tmp_path / "adapter", **settings)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_student_is_trained_on_example_lessons(base: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {
        "silo": "silo-0", "round": 1, "mechanism": "screened", "prompt_version": "1", "signature": "",
    }  # fmt: skip
    lessons = [Lesson(kind="example", id=e.id, prompt=e.prompt, completion=e.completion, **shared) for e in examples()]
    lessons.append(Lesson(kind="instruction", id="i", prompt="Sort them.", completion="", **shared))
    result = train.train_student(
        release.LessonSet(lessons, "run", release._SEAL),
        instruction=INSTRUCTION,
        base=base,
        base_name=NAME,
        out=tmp_path / "adapter",
        config=SETTINGS,
        seed=1,
    )
    assert digests(result.adapter) == digests(fit(base, tmp_path / "same").adapter)


def test_the_upper_line_stays_in_the_vault(base: Path, tmp_path: Path) -> None:
    records = [PrivateRecord(e.id, e.prompt, e.completion) for e in examples(8)]
    config = SETTINGS.model_copy(update={"epochs": 1})
    found = train.train_upper_line(
        records, instruction=None, base=base, base_name=NAME, out=tmp_path / "vault" / "upper", config=config, seed=0
    )
    assert found.adapter == tmp_path / "vault" / "upper"
