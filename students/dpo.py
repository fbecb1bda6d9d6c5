"""Direct preference optimisation (DPO; Rafailov et al. 2023, arXiv:2305.18290) of a student that knows its lessons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tutelage.configs.schema import DpoConfig, StudentConfig
from tutelage.students import score
from tutelage.students.loop import Row, Trainer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pair(Row):
    """A prompt, the completion that was chosen, and the one that was rejected."""

    rejected: list[int]
    reference: float = 0.0
    """Log-probability of the chosen completion minus that of the rejected one, in nats, before the first step."""


class PreferenceTrainer(Trainer[Pair]):
    """Trains the adapter that `Trainer` trained, on pairs. The student as it is now is the reference.

    Args:
        model: A student that has learned its lessons, its adapter trainable.
        pad: Token id that fills short rows.
        pairs: Without references: those are computed here.
        config: The student's settings. Rate and epochs are those of `dpo`, no pair is held back, and a batch has
            `batch_rows` pairs.
        dpo: The pass's own settings.
        seed: Seeds the order.
    """

    name = "preferences"
    rate = "student.dpo.learning_rate"
    # Beside dropout's noise the margins of the first steps would be lost, and the reference has none.
    dropout = False

    def __init__(
        self, model: Any, pad: int, pairs: Sequence[Pair], config: StudentConfig, dpo: DpoConfig, seed: int
    ) -> None:
        changes = {"learning_rate": dpo.learning_rate, "epochs": dpo.epochs, "heldback_share": 0.0}
        margins = reference_margins(model, pad, pairs, config.batch_rows)
        rows = [replace(pair, reference=margin) for pair, margin in zip(pairs, margins, strict=True)]
        super().__init__(model, pad, rows, config.model_copy(update=changes), seed)
        self.beta = dpo.beta

    def _loss(self, batch: Sequence[Pair]) -> torch.Tensor:
        """The mean of -log sigmoid(beta * (margin - reference margin)) (equation 7), in float32."""
        import torch

        rows = [*batch, *(Row(pair.prompt, pair.rejected) for pair in batch)]
        chosen, rejected = -torch.stack([nll.sum() for nll in self._nll(rows)]).reshape(2, len(batch))
        reference = torch.tensor([pair.reference for pair in batch], device=chosen.device)
        return -torch.nn.functional.logsigmoid(self.beta * (chosen - rejected - reference)).mean()


def reference_margins(model: Any, pad: int, pairs: Sequence[Pair], batch_pairs: int) -> list[float]:
    """Log-probability of each pair's chosen completion minus that of its rejected one, in nats, without dropout."""
    model.eval()
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    completions = [completion for pair in pairs for completion in (pair.completion, pair.rejected)]
    sums = [float(row.sum()) for row in score.score_ids(model, pad, prompts, completions, 2 * batch_pairs)]
    return [chosen - rejected for chosen, rejected in zip(sums[::2], sums[1::2], strict=True)]
