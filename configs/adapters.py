"""LoRA adapters in peft's format: found, checked against the model they are for, and merged into it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.errors import UserError
from tutelage.configs.models import hub_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_adapter(name: str, model: str) -> None:
    """Refuse what cannot be an adapter of a model. Fetches and loads nothing.

    Args:
        name: A folder or a hub id.
        model: The model's name, as `resolve_model` takes it.

    Raises:
        UserError: it is neither; it is no LoRA adapter; it names another base.
    """
    folder = Path(name)
    if folder.exists():
        config = _config(folder)
        named = str(config.get("base_model_name_or_path") or "")
        base = hub_name(model)
        # Local paths tell nothing about which model it is; then only the shapes tell, when it is loaded.
        if "/" in named and "/" in base and not Path(named).is_absolute() and named.lower() != base.lower():
            raise UserError(
                f"this adapter was tuned on {named}, not on {base}", file=folder, key="teach.adapter",
                remedy="name its base as teach.model",
            )  # fmt: skip
    elif name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError("no such adapter: neither a folder nor a hub id", key="teach.adapter", remedy="check the path")


def resolve_adapter(name: str, model: str) -> Path:
    """A local folder with the adapter, fetched on first use; arguments and errors as for `check_adapter`."""
    check_adapter(name, model)
    if Path(name).exists():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=[_CONFIG, WEIGHTS])
    except Exception as error:
        raise UserError(
            f"the hub did not give this adapter ({type(error).__name__})", key="teach.adapter",
            remedy="check the name and the network, or name a local folder",
        ) from None  # fmt: skip
    check_adapter(folder, model)
    return Path(folder)


def rank_of(folder: Path) -> int:
    """The largest rank of its matrices."""
    config = _config(folder)
    return max(int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values()), 1)


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A model with the adapter added to its weights: one that is dense as before, and as fast.

    Raises:
        UserError: it does not fit the model.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            tuned: Any = PeftModel.from_pretrained(model, folder)
        found: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft and safetensors raise what they like
        raise UserError(
            f"this adapter does not fit the model ({type(error).__name__})", file=folder, key="teach.adapter",
            remedy="name its base as teach.model",
        ) from None  # fmt: skip
    return found.eval()


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"this folder holds no adapter ({_CONFIG} and {WEIGHTS})", file=folder, key="teach.adapter",
            remedy="name a folder written by peft's `save_pretrained`",
        )  # fmt: skip
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise UserError("this adapter is no LoRA", file=folder, key="teach.adapter", remedy="merge it into a model")
    return config
