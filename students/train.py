"""LoRA training of a student (Hu et al. 2021, arXiv:2106.09685) on lessons, loss on the completions only.

A compact loop of its own: it repeats bit for bit under its seed, a killed run picks up at its last checkpoint and
ends in the same adapter, and nothing is handed over before a probe has seen that the weights moved and load again.
Where the recipe asks for it, the same adapter then learns what reviewers preferred (students/dpo.py).
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
from tutelage.configs.progress import Bar
from tutelage.configs.records import CurvePoint, Example
from tutelage.configs.schema import StudentConfig
from tutelage.configs.store import canonical_json, digest
from tutelage.privacy.vault import PrivateRecord, inside_vault
from tutelage.students import chat
from tutelage.students.dpo import Pair, PreferenceTrainer
from tutelage.students.loop import Row, Trainer, copied

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tutelage.privacy.preferences import Preferences
    from tutelage.privacy.release import LessonSet

MIN_LESSONS = 2


@dataclass(frozen=True)
class TrainResult:
    """A trained adapter's folder, its losses on lessons, and the step there whose weights were kept."""

    adapter: Path
    curve: tuple[CurvePoint, ...]
    kept_step: int
    preference_pairs: int = 0
    """How many pairs it was trained on afterwards."""


def train_student(
    lessons: LessonSet,
    *,
    instruction: str | None,
    base: Path,
    base_name: str,
    out: Path,
    config: StudentConfig,
    seed: int,
    preferences: Preferences | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a student on released lessons, then on reviewers' preferences.

    Args:
        lessons: Verified lessons; those that are instructions aren't trained on.
        instruction: The system prompt, as the student will meet it later.
        base: Folder of the base model with its tokenizer and chat template.
        base_name: The base's public name, written into the adapter's config in place of the folder.
        out: The adapter's folder; replaced if it exists. Checkpoints lie beside it until the end.
        config: The recipe's student section.
        seed: Seeds initial weights, order, dropout and the held-back split.
        preferences: Pairs of lessons, used where `config.dpo` is set.
        progress: Whether to show a bar, if standard error is a terminal.

    Raises:
        PrivacyError: `lessons` is not a `LessonSet`, or `preferences` are no `Preferences`.
        UserError: there is nothing to train on, or a row can't be cut to `config.max_tokens`.
        RuntimeError: the probe failed.
    """
    from tutelage.privacy.preferences import Preferences
    from tutelage.privacy.release import LessonSet

    if not isinstance(lessons, LessonSet):
        raise PrivacyError("a student is trained on a verified lesson set only")
    if preferences is not None and not isinstance(preferences, Preferences):
        raise PrivacyError("a student is trained on pairs of verified lessons only")
    pairs = preferences.pairs() if preferences and config.dpo else []
    return _fit(lessons.examples(), instruction, base, out, config, seed, progress, base_name, pairs)


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

    Args and errors are those of `train_student`. Nobody reviews records, so there are no preferences.

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
    pairs: Sequence[tuple[Example, Example]] = (),
) -> TrainResult:
    if len(examples) < MIN_LESSONS:
        raise UserError(
            f"{len(examples)} lessons are too few to train a student",
            key="aggregate.lessons_per_class",
            remedy="look in the report's counts at why drafts were dropped",
        )
    inputs = [example.model_dump() for example in [*examples, *(one for pair in pairs for one in pair)]]
    key = digest([inputs, instruction, base_name, str(base.resolve()), config.model_dump(mode="json"), seed])
    checkpoint, second = (out.with_name(f"{out.name}.{kind}") for kind in ("checkpoint", "dpo-checkpoint"))
    with _repeatable(seed):
        model, tokenizer = load_model(base, config.dtype)
        rows = [_encode(tokenizer, example, instruction, config.max_tokens) for example in examples]
        adapted = _adapt(model, config)
        pad = chat.pad_id(tokenizer)
        trainer = Trainer(adapted, pad, rows, config, seed)
        before = copied(trainer.trained)
        with Bar(2 if pairs and config.dpo else 1) as parts:
            trainer.run(checkpoint, key, progress)
            _check_moved(before, trainer)
            parts.update()
            if pairs and config.dpo:
                trainer.save(checkpoint, key)  # a run that is killed from now on has no lesson to learn again
                encoded = [_encode_pair(tokenizer, *pair, instruction, config.max_tokens) for pair in pairs]
                before = copied(trainer.trained)
                tuner = PreferenceTrainer(adapted, pad, encoded, config, config.dpo, seed)
                tuner.run(second, key, progress)
                _check_moved(before, tuner)
        _save_adapter(adapted, out, base_name)
        _check_reloads(adapted, base, out, config.dtype, rows[0])
    checkpoint.unlink(missing_ok=True)
    second.unlink(missing_ok=True)
    curve = tuple(CurvePoint(**point) for point in trainer.state.curve)
    return TrainResult(out, curve, trainer.state.kept_step, len(pairs))


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
    return Row(_prompt_ids(tokenizer, example.prompt, instruction, max_tokens - len(completion)), completion)


def _encode_pair(
    tokenizer: PreTrainedTokenizerBase, chosen: Example, rejected: Example, instruction: str | None, max_tokens: int
) -> Pair:
    """A pair as token ids, its one prompt cut until the longer of the rows fits."""
    better, worse = (chat.completion_ids(tokenizer, one.completion, end_of_turn=True) for one in (chosen, rejected))
    longer = max(len(better), len(worse))
    return Pair(_prompt_ids(tokenizer, chosen.prompt, instruction, max_tokens - longer), better, worse)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, whole: str, instruction: str | None, max_tokens: int) -> list[int]:
    """A prompt as token ids, its text cut in the middle until it fits."""
    text, kept = whole, len(whole)
    while True:
        prompt = chat.prompt_ids(tokenizer, chat.prompt_messages(text, instruction))
        excess = len(prompt) - max_tokens
        if excess <= 0:
            return prompt
        if kept == 0:
            raise UserError(
                "instruction and completion alone are longer than a row may be",
                key="student.max_tokens",
                remedy="raise student.max_tokens",
            )
        # A token is at least one character in ordinary text, so this never cuts more than needed by much.
        kept = max(0, kept - excess)
        text = whole[: (kept + 1) // 2] + " ... " + whole[len(whole) - kept // 2 :]


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


def _check_moved(before: dict[str, torch.Tensor], trainer: Trainer[Any]) -> None:
    """Training has been seen to leave LoRA weights untouched while the loss looked normal (opacus #820)."""
    import torch

    for name, weight in trainer.trained.items():
        if not bool(torch.isfinite(weight).all()):
            raise RuntimeError(f"training diverged: {name} is not finite; lower {trainer.rate}")
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
