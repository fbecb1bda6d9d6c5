"""LoRA training of a student (Hu et al. 2021, arXiv:2106.09685) on lessons, loss on the completions only.

A compact loop of its own: it repeats bit for bit under its seed, a killed run picks up at its last checkpoint and
ends in the same adapter, and nothing is handed over before a probe has seen that the weights moved and load again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import load_model
from tutelage.configs.records import CurvePoint, Example
from tutelage.configs.schema import StudentConfig
from tutelage.configs.store import canonical_json, digest
from tutelage.privacy.vault import PrivateRecord, inside_vault
from tutelage.students import chat
from tutelage.students.loop import Row, Trainer, copied

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tutelage.privacy.release import LessonSet

MIN_LESSONS = 2


@dataclass(frozen=True)
class TrainResult:
    """A trained adapter's folder, its losses, and the step whose weights were kept."""

    adapter: Path
    curve: tuple[CurvePoint, ...]
    kept_step: int


def train_student(
    lessons: LessonSet,
    *,
    instruction: str | None,
    base: Path,
    base_name: str,
    out: Path,
    config: StudentConfig,
    seed: int,
    progress: bool = True,
) -> TrainResult:
    """Train a student on released lessons.

    Args:
        lessons: Verified lessons; those that are instructions aren't trained on.
        instruction: The system prompt, as the student will meet it later.
        base: Folder of the base model with its tokenizer and chat template.
        base_name: The base's public name, written into the adapter's config in place of the folder.
        out: The adapter's folder; replaced if it exists. The checkpoint lies beside it until the end.
        config: The recipe's student section.
        seed: Seeds initial weights, order, dropout and the held-back split.
        progress: Whether to show a bar, if standard error is a terminal.

    Raises:
        PrivacyError: `lessons` is not a `LessonSet`.
        UserError: there is nothing to train on, or a row can't be cut to `config.max_tokens`.
        RuntimeError: the probe failed.
    """
    from tutelage.privacy.release import LessonSet

    if not isinstance(lessons, LessonSet):
        raise PrivacyError("a student is trained on a verified lesson set only")
    examples = lessons.examples()
    return _fit(examples, instruction, base, out, config, seed, progress, base_name)


def train_upper_line(
    records: Sequence[PrivateRecord],
    *,
    instruction: str | None,
    base: Path,
    base_name: str,
    out: Path,
    config: StudentConfig,
    seed: int,
    progress: bool = True,
) -> TrainResult:
    """Train the reference student on original records: what no screening would give. It never leaves the vault.

    Args and errors are those of `train_student`.

    Raises:
        PrivacyError: `out` is not inside a `vault` folder.
    """
    inside_vault(out)
    return _fit([record.example() for record in records], instruction, base, out, config, seed, progress, base_name)


def load_student(base: Path, adapter: Path, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with an adapter merged into it (no cost at inference), and the tokenizer."""
    from peft import PeftModel

    model, tokenizer = load_model(base, dtype)
    with _quiet():
        merged: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()  # type: ignore
    return merged.eval(), tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """peft asks transformers under a name that it is giving up: a warning nobody here can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _fit(
    examples: Sequence[Example],
    instruction: str | None,
    base: Path,
    out: Path,
    config: StudentConfig,
    seed: int,
    progress: bool,
    base_name: str,
) -> TrainResult:
    if len(examples) < MIN_LESSONS:
        raise UserError(
            f"{len(examples)} lessons are too few to train a student",
            key="aggregate.lessons_per_class",
            remedy="look in the report's counts at why drafts were dropped",
        )
    inputs = [example.model_dump() for example in examples]
    key = digest([inputs, instruction, base_name, str(base.resolve()), config.model_dump(mode="json"), seed])
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    with _repeatable(seed):
        model, tokenizer = load_model(base, config.dtype)
        rows = [_encode(tokenizer, example, instruction, config.max_tokens) for example in examples]
        adapted = _adapt(model, config)
        trainer = Trainer(adapted, chat.pad_id(tokenizer), rows, config, seed)
        before = copied(trainer.trained)
        trainer.run(checkpoint, key, progress)
        _check_moved(before, trainer.trained)
        _save_adapter(adapted, out, base_name)
        _check_reloads(adapted, base, out, config.dtype, rows[0])
    checkpoint.unlink(missing_ok=True)
    curve = tuple(CurvePoint(**point) for point in trainer.state.curve)
    return TrainResult(out, curve, trainer.state.kept_step)


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seed torch and ask it for repeatable kernels; the caller's settings and random state come back afterwards."""
    import torch
    import torch.utils.deterministic

    settings: Any = torch.utils.deterministic

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = settings.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling fresh memory is an aid for finding bugs; it costs time at every operation.
        settings.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            settings.fill_uninitialized_memory = fill


def _adapt(model: PreTrainedModel, config: StudentConfig) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules if isinstance(config.target_modules, str) else [*config.target_modules],
        task_type=TaskType.CAUSAL_LM,
    )
    try:
        with _quiet():
            return get_peft_model(model, lora)
    except ValueError:
        raise UserError(
            "the base model has no modules of these names", key="student.target_modules", remedy="use `all-linear`"
        ) from None


def _encode(tokenizer: PreTrainedTokenizerBase, example: Example, instruction: str | None, max_tokens: int) -> Row:
    """An example as token ids, its prompt text cut in the middle until the row fits."""
    completion = chat.completion_ids(tokenizer, example.completion, end_of_turn=True)
    text, kept = example.prompt, len(example.prompt)
    while True:
        prompt = chat.prompt_ids(tokenizer, chat.prompt_messages(text, instruction))
        excess = len(prompt) + len(completion) - max_tokens
        if excess <= 0:
            return Row(prompt, completion)
        if kept == 0:
            raise UserError(
                "instruction and completion alone are longer than a row may be",
                key="student.max_tokens",
                remedy="raise student.max_tokens",
            )
        # A token is at least one character in ordinary text, so this never cuts more than needed by much.
        kept = max(0, kept - excess)
        text = example.prompt[: (kept + 1) // 2] + " ... " + example.prompt[len(example.prompt) - kept // 2 :]


def _save_adapter(model: Any, out: Path, base_name: str) -> None:
    """Write the adapter beside its place and move it there, free of local paths and of anything that varies."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        staged = Path(folder) / "adapter"
        model.save_pretrained(staged, save_embedding_layers=False)
        (staged / "README.md").unlink(missing_ok=True)
        settings = json.loads((staged / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = base_name
        # peft writes a set's elements in an order that changes from process to process
        settings["target_modules"] = sorted(settings["target_modules"])
        (staged / "adapter_config.json").write_text(canonical_json(settings) + "\n")
        if out.exists():
            shutil.rmtree(out)
        staged.replace(out)


def _check_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Training has been seen to leave LoRA weights untouched while the loss looked normal (opacus #820)."""
    import torch

    for name, weight in after.items():
        if not bool(torch.isfinite(weight).all()):
            raise RuntimeError(f"training diverged: {name} is not finite; lower student.learning_rate")
        # lora_A stays as it is until lora_B has left zero, which takes a step or two; lora_B must have moved.
        if "lora_B" in name and torch.equal(weight.detach().cpu(), before[name]):
            raise RuntimeError(f"training left {name} unchanged")


def _check_reloads(model: Any, base: Path, adapter: Path, dtype: str, row: Row) -> None:
    """The adapter on disk, on a fresh base model, gives the logits of the model in memory."""
    import torch
    from peft import PeftModel

    with _quiet():
        again = PeftModel.from_pretrained(load_model(base, dtype)[0], str(adapter)).eval()
    ids = torch.tensor([row.prompt + row.completion], device=again.device)
    keep = len(row.completion) + 1
    with torch.inference_mode():
        expected, got = (m(input_ids=ids, logits_to_keep=keep).logits.float() for m in (model.eval(), again))
    if not torch.allclose(expected, got, atol=1e-3, rtol=1e-3):
        raise RuntimeError("the saved adapter does not give the logits of the student that was trained")
