"""The training loop: batches, steps, early stopping on held-back rows, and checkpoints that resume bit for bit."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from tutelage.configs.progress import Bar
from tutelage.configs.schema import StudentConfig
from tutelage.configs.store import write_atomic
from tutelage.students import packed, score

if TYPE_CHECKING:
    import torch

_CURVE_EVERY_STEPS = 5
_CHUNK_BATCHES = 16
"""Batches whose rows are sorted by length together: wide enough to save padding, narrow enough to stay random."""
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Row:
    prompt: list[int]
    completion: list[int]


@dataclass
class State:
    """Where a training run stands; with weights, optimizer and random state, all that a checkpoint holds."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Since the last point of the curve."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    best_nll: list[float] = field(default_factory=list)
    """Of every held-back row, after the epoch with the lowest sum so far."""
    kept_step: int = 0
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    waited: int = 0
    """Epochs since the weights that are kept."""

    def point(self, heldback: float | None) -> None:
        train = sum(self.losses) / len(self.losses)
        self.curve.append({"step": self.step, "train_loss": train, "heldback_loss": heldback})
        self.losses = []


AnyRow = TypeVar("AnyRow", bound=Row)


class Trainer(Generic[AnyRow]):
    """A model with everything that changes while it is trained; its loss is the completions' (see students/dpo.py)."""

    name = "student"
    """On the progress bar."""
    rate = "student.learning_rate"
    """The recipe's key of the learning rate."""
    dropout = True
    """Whether the recipe's dropout holds."""

    def __init__(self, model: Any, pad: int, rows: list[AnyRow], config: StudentConfig, seed: int) -> None:
        import torch
        from transformers import get_cosine_schedule_with_warmup

        self.model, self.pad, self.config, self.seed = model, pad, config, seed
        train, heldback = _split([row.completion for row in rows], config.heldback_share, seed)
        self.train_rows, self.heldback_rows = [rows[i] for i in train], [rows[i] for i in heldback]
        self.steps_per_epoch = math.ceil(len(train) / config.batch_rows)
        self.steps = self.steps_per_epoch * config.epochs
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            [{"params": [*self.trained.values()], "initial_lr": config.learning_rate}],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        # The schedule is zero at both its ends: started one step in and ending one late, no step is wasted.
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, int(config.warmup_share * self.steps), self.steps + 1, last_epoch=0
        )
        self.shared = score.common_prefix([row.prompt for row in self.train_rows])
        self.packed = packed.can_pack(model, config.max_tokens)
        self.state = State()

    def run(self, checkpoint: Path, key: str, progress: bool) -> None:
        """Train to the end, or from the checkpoint to the end, and leave the kept weights in the model.

        Kept are those of the last epoch that isn't worse than the best one by more than the standard error of the
        difference (the one-standard-error rule: Breiman et al. 1984, chapter 3): few rows are held back, and
        the lowest of their losses alone is luck, which here ends training long before the student is done.
        """
        self._resume(checkpoint, key)
        state = self.state
        batches: list[list[AnyRow]] = []
        with Bar(self.steps, self.name if progress else None, "step", done=state.step) as bar:
            while state.step < self.steps and state.waited < self.config.patience_epochs:
                epoch, place = divmod(state.step, self.steps_per_epoch)
                if place == 0 or not batches:
                    batches = self._batches(epoch)
                state.losses.append(self._step(batches[place]))
                state.step += 1
                bar.update()
                if place == self.steps_per_epoch - 1:
                    self._end_epoch()
                    bar.note(loss=state.curve[-1]["train_loss"], heldback=state.curve[-1]["heldback_loss"])
                elif state.step % _CURVE_EVERY_STEPS == 0:
                    state.point(None)
                if state.step % self.config.checkpoint_every_steps == 0:
                    self.save(checkpoint, key)
        _load(self.trained, state.kept)

    def _batches(self, epoch: int) -> list[list[AnyRow]]:
        """An epoch's batches: rows shuffled, sorted by length within chunks, the batches shuffled again."""
        chance = random.Random(f"{self.seed}/{epoch}")
        rows = list(self.train_rows)
        chance.shuffle(rows)
        size = self.config.batch_rows
        batches = []
        for start in range(0, len(rows), size * _CHUNK_BATCHES):
            chunk = sorted(rows[start : start + size * _CHUNK_BATCHES], key=lambda row: len(row.prompt))
            batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        chance.shuffle(batches)
        return batches

    def _step(self, batch: Sequence[AnyRow]) -> float:
        """One optimizer step; returns the loss."""
        import torch

        self.model.train(self.dropout)
        loss = self._loss(batch)
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(f"training diverged at step {self.state.step}; lower {self.rate}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), _MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def _loss(self, batch: Sequence[AnyRow]) -> torch.Tensor:
        """The mean loss per completion token, in nats."""
        import torch

        return torch.cat(self._nll(batch)).mean()

    def _nll(self, batch: Sequence[Row]) -> tuple[torch.Tensor, ...]:
        """Negative log-likelihood of each row's completion, (tokens,), in nats, in float32.

        What all prompts begin with goes through the model once per batch; gradients flow back through it. The
        vocabulary is computed at the places alone that a completion's token is predicted from.
        """
        import torch

        rest = [(row.prompt[len(self.shared) :] + row.completion)[:-1] for row in batch]
        lengths = [len(row.completion) for row in batch]
        if self.packed:
            logits = packed.logits(self.model, self.shared, rest, lengths)
        else:
            prefix = score.extend_prefix(self.model, score.NO_PREFIX, self.shared)
            padded, _, _ = score.run_rows(self.model, self.pad, rest, prefix, max(lengths))
            logits = torch.cat([row[-kept:] for row, kept in zip(padded, lengths, strict=True)])
        targets = torch.tensor([token for row in batch for token in row.completion], device=logits.device)
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").split(lengths)

    def _end_epoch(self) -> None:
        state, nll = self.state, self._heldback_nll()
        tokens = sum(len(row.completion) for row in self.heldback_rows)
        state.point(sum(nll) / tokens if tokens else None)
        if clearly_worse(nll, state.best_nll):
            state.waited += 1
        else:
            state.kept_step, state.waited, state.kept = state.step, 0, copied(self.trained)
        if not state.best_nll or sum(nll) < sum(state.best_nll):
            state.best_nll = nll

    def _heldback_nll(self) -> list[float]:
        """The negative log-likelihood of every held-back completion, in nats."""
        if not self.heldback_rows:
            return []
        self.model.eval()
        prompts, completions = zip(*((row.prompt, row.completion) for row in self.heldback_rows), strict=True)
        scored = score.score_ids(self.model, self.pad, prompts, completions, 2 * self.config.batch_rows)
        return [float(-row.sum()) for row in scored]

    def save(self, checkpoint: Path, key: str) -> None:
        """Write down where it stands, for `run` to go on from."""
        import torch

        stream = io.BytesIO()
        saved = {
            "key": key,
            "state": vars(self.state),
            "weights": copied(self.trained),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        torch.save(saved, stream)
        write_atomic(checkpoint, stream.getvalue(), mode=0o600)

    def _resume(self, checkpoint: Path, key: str) -> None:
        """Take up a checkpoint of the same run, if there is one."""
        import torch

        if not checkpoint.is_file():
            return
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if saved["key"] != key:
            return
        self.state = State(**saved["state"])
        _load(self.trained, saved["weights"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"]:
            torch.cuda.set_rng_state_all(saved["random_cuda"])


def clearly_worse(losses: Sequence[float], best: Sequence[float]) -> bool:
    """Whether losses exceed the best ones of the same rows by more than the standard error of their mean difference."""
    if not best:
        return False
    differences = np.subtract(losses, best)
    error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return not bool(differences.mean() <= error)  # NaN is worse than anything


def _split(completions: Sequence[Sequence[int]], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold back, every completion held back in proportion."""
    held = round(share * len(completions))
    order = list(range(len(completions)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda index: list(completions[index]))
    # Every n-th of the rows in order of their completions: a stratified draw that also works where all differ.
    chosen = {order[int((i + 0.5) * len(order) / held)] for i in range(held)}
    return [i for i in range(len(order)) if i not in chosen], sorted(chosen)


def copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


def _load(weights: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
