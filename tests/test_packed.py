"""Rows end to end in one sequence: the loss and its gradients are those of every row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import make_tiny_model

from tutelage.configs.models import load_model
from tutelage.configs.schema import StudentConfig
from tutelage.students import loop, packed, score, train

SETTINGS = StudentConfig(rank=4, alpha=8, dropout=0.0, batch_rows=4, dtype="float32", heldback_share=0.0)
IDS = st.integers(0, 300)
BATCHES = st.tuples(
    st.lists(IDS, max_size=20),  # what all begin with
    st.lists(
        st.tuples(st.lists(IDS, min_size=1, max_size=12), st.lists(IDS, min_size=1, max_size=9)), min_size=1, max_size=5
    ),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapted(base: Path) -> Any:
    import torch

    torch.manual_seed(0)
    model = train._adapt(load_model(base)[0], SETTINGS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)  # at zero, half of the gradients would be zero too
    return model


def plain(model: Any, rows: list[loop.Row]) -> Any:
    """The mean over all completion tokens, each row by itself, without a cache."""
    import torch

    losses = []
    for row in rows:
        ids = torch.tensor([row.prompt + row.completion])
        table = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
        losses.append(-table.gather(1, ids[0, len(row.prompt) :, None])[:, 0])
    return torch.cat(losses).mean()


def gradients(trainer: loop.Trainer[loop.Row], loss: Any) -> list[Any]:
    trainer.optimizer.zero_grad()
    loss.backward()
    return [weight.grad.clone() for weight in trainer.trained.values()]


@pytest.mark.parametrize("as_packed", [True, False])
@given(made=BATCHES)
@settings(max_examples=25, deadline=None)
def test_loss_and_gradients_are_those_of_every_row_alone(adapted: Any, as_packed: bool, made: Any) -> None:
    import torch

    shared, parts = made
    rows = [loop.Row([*shared, *prompt], completion) for prompt, completion in parts]
    trainer = loop.Trainer(adapted, 0, rows, SETTINGS, 0)
    assert trainer.packed, "this model can"
    trainer.packed = as_packed
    trainer.model.eval()
    expected, got = plain(adapted, rows), trainer._loss(rows)
    assert float(got) == pytest.approx(float(expected), abs=1e-5)
    for a, b in zip(gradients(trainer, expected), gradients(trainer, got), strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3)


def test_no_row_sees_another(adapted: Any) -> None:
    import torch

    with torch.inference_mode():
        first, second = (
            packed.logits(adapted.eval(), [1, 2, 3], [[4, 5], other, [6, 7]], [2, 1, 2]) for other in ([8, 9], [10])
        )
    assert torch.allclose(first[[0, 1, 3, 4]], second[[0, 1, 3, 4]], atol=1e-5)
    assert not torch.allclose(first[2], second[2], atol=1e-3)


def test_a_model_whose_attention_is_not_told_of_the_rows_trains_on_padded_ones(base: Path) -> None:
    """Attention that looks past a row's border would learn from other rows, and nothing would say so."""
    model, _ = load_model(base)
    attend = packed._attend

    def deaf(*arguments: Any, packed_rows: Any = None, **settings: Any) -> Any:
        return attend(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_attend", deaf)
        assert not packed.can_pack(model, 64)
        assert model.config._attn_implementation == "sdpa", "as it was"
    assert packed.can_pack(model, 64)
    model.config.sliding_window = 32
    assert not packed.can_pack(model, 64), "what a row sees would depend on how far back"
    model.config.sliding_window = None
    model.set_attn_implementation("eager")
    assert not packed.can_pack(model, 64)


def test_scoring_with_a_cache_is_as_before(base: Path) -> None:
    model, _ = load_model(base)
    rows = [[1, 2, 3, 4, 5], [6, 7, 8, 9]]
    before = score.score_ids(model, 0, rows, [[5, 6], [7]], 2)
    assert packed.can_pack(model, 64)
    after = score.score_ids(model, 0, rows, [[5, 6], [7]], 2)
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(before, after, strict=True))
