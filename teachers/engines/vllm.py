"""The vLLM engine: vLLM in a process and a Python environment of its own, and what this side says to it.

The process and its pipes are in vllm_process.py; the protocol is told in vllm_worker.py, which is what runs over there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.adapters import WEIGHTS, rank_of
from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import best_dtype, load_tokenizer
from tutelage.configs.schema import VllmConfig
from tutelage.configs.store import file_digest
from tutelage.teachers.engines.base import Generation, Sampling, chat_prompt, too_long
from tutelage.teachers.engines.rows import shared_rows
from tutelage.teachers.engines.vllm_process import VllmProcess

if TYPE_CHECKING:
    from tutelage.teachers.engines.vllm_private import VllmDecoder

Send = Callable[[dict[str, Any]], None]
Receive = Callable[[], dict[str, Any]]

PYTHON = "TUTELAGE_VLLM"
"""Names the Python of the environment that has vLLM."""

_SHOWN_CHARS = 300


def vllm_python() -> Path:
    """The Python that has vLLM: `$TUTELAGE_VLLM`, or that of `.vllm` beside the environment this runs in.

    Raises:
        UserError: there is none.
    """
    named = os.environ.get(PYTHON)
    path = Path(named) if named else Path(sys.prefix).parent / ".vllm" / "bin" / "python"
    if not os.access(path, os.X_OK) or path.is_dir():
        raise UserError(
            "there is no Python with vLLM here", file=path, key="teach.engine",
            remedy=f"`make vllm` builds one, or set {PYTHON} to the python of an environment that has vLLM",
        )  # fmt: skip
    return path


class VllmEngine:
    """Continues text with vLLM. The process begins with the first text and lasts until `close`.

    Args:
        folder: The model's folder.
        config: The recipe's.
        adapter: A LoRA adapter's folder; None: the model as it is.
        rank: Its number among `config.data_parallel_size` of them.

    Raises:
        UserError: there is no environment with vLLM.
    """

    def __init__(self, folder: Path, config: VllmConfig, adapter: Path | None = None, rank: int = 0) -> None:
        self.folder, self.config, self.python = folder, config, vllm_python()
        self.adapter, self.rank = adapter, rank
        self.tokenizer = load_tokenizer(folder)
        self._process: VllmProcess | None = None
        self._private: dict[str, Any] | None = None
        """What it was begun with for private prediction."""

    def decoder(self, tail_tokens: int) -> VllmDecoder:
        """See `PrivateEngine.decoder`."""
        from tutelage.teachers.engines.vllm_private import VllmDecoder

        return VllmDecoder(self, tail_tokens)

    def chat(self, system: str, user: str) -> str:
        """See `Engine.chat`."""
        return chat_prompt(self.tokenizer, system, user)

    def generate(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:
        """See `Engine.generate`.

        Raises:
            UserError: vLLM could not be started, or died; a prompt and its draft are too long.
        """
        return self.write(prompts, prompt_seeds(seed, len(prompts)), n, sampling, on_progress)

    def write(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        n: int,
        sampling: Sampling,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:
        """The same with a seed for each prompt."""
        if not prompts:
            return []
        request = {
            "prompts": list(prompts),
            "seeds": list(seeds),
            "sampling": {
                "n": n,
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "stop": [sampling.stop],
            },
            "structure": sampling.structure and sampling.structure.model_dump(exclude_none=True),
        }
        with self.at_work() as (send, receive):
            send(request)
            while "done" in (answer := receive()):
                if on_progress:
                    on_progress(answer["done"])
        if "too_long" in answer:
            raise too_long(*answer["too_long"])
        return [
            [
                Generation(text, end, 0 if j else self.most_read(prompt, n), drawn)
                for j, (text, end, drawn) in enumerate(row)
            ]
            for row, prompt in zip(answer["texts"], prompts, strict=True)
        ]

    def most_read(self, prompt: str, n: int) -> int:
        """See `Engine.most_read`."""
        return len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def end(self) -> None:
        """End the process while another thread waits for it, which then hears so and closes."""
        if self._process is not None:
            self._process.end()

    def close(self) -> None:
        """End the process and all that it began. The next text begins another."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    @contextlib.contextmanager
    def at_work(self, private: dict[str, Any] | None = None) -> Iterator[tuple[Send, Receive]]:
        """The process, begun if need be: how to ask it, and how to hear what it says.

        Whatever goes wrong ends it: half an answer would be taken for the next.

        Args:
            private: What private prediction needs it to be begun with; None: anything but that.
        """
        try:
            if self._process is not None and not _serves(self._private, private):
                self.close()
            process = self._process or self._start(private)
            yield process.send, functools.partial(self._hear, process)
        except BaseException:
            self.close()
            raise

    def _start(self, private: dict[str, Any] | None) -> VllmProcess:
        self._private = private
        process = self._process = VllmProcess(self.python, self._environment())
        process.send({"llm": self._settings(), "private": private, "adapter": self._adapter()})
        limit = self.config.start_timeout_s
        answer = process.receive(limit, f"vLLM was not ready after {limit} s", "start_timeout_s")
        if "failed" in answer:
            why = " ".join(str(answer["why"]).split())[:_SHOWN_CHARS]
            raise UserError(
                f"vLLM did not load the model ({answer['failed']}: {why})", key="teach.engine",
                remedy="mend the settings; TUTELAGE_SHOW_MESSAGES=1 shows all that it prints",
            )  # fmt: skip
        if "shared" in answer:
            raise shared_rows("gives a row other scores with vLLM when other rows change")
        return process

    def _hear(self, process: VllmProcess) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            PrivacyError: rows that are drawn for together were not together.
            UserError: vLLM failed, died or hangs.
        """
        limit = self.config.timeout_s
        silent = f"vLLM was silent for {limit} s while it wrote"
        while "alive" in (answer := process.receive(limit, silent, "timeout_s")):
            pass
        if answer.get("failed") == "Torn":
            raise PrivacyError(
                "vLLM did not keep the rows of a batch together: what was being written has not been released"
            )
        if "failed" in answer:
            raise UserError(
                f"vLLM failed with {answer['failed']}", key="teach.engine",
                remedy="TUTELAGE_SHOW_MESSAGES=1 shows what it prints, which may quote private text",
            )  # fmt: skip
        return answer

    def _adapter(self) -> dict[str, Any] | None:
        if self.adapter is None:
            return None
        # vLLM may give what it has kept under a name
        name = file_digest(self.adapter / WEIGHTS)
        return {"name": name, "path": str(self.adapter.resolve()), "rank": rank_of(self.adapter)}

    def _settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "model": str(self.folder.resolve()),
            "dtype": _dtype(config),
            "max_model_len": config.max_model_len,
            "tensor_parallel_size": config.tensor_parallel_size,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "quantization": config.quantization,
            "enforce_eager": config.enforce_eager,
            "enable_prefix_caching": config.enable_prefix_caching,
        }

    def _environment(self) -> dict[str, str]:
        gpus = {}
        if self.config.data_parallel_size > 1:
            each, named = self.config.tensor_parallel_size, os.environ.get("CUDA_VISIBLE_DEVICES")
            every = named.split(",") if named else [str(i) for i in range(each * self.config.data_parallel_size)]
            gpus["CUDA_VISIBLE_DEVICES"] = ",".join(every[self.rank * each :][:each])
        return {
            **os.environ,
            **gpus,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",  # the model is in a folder
            "VLLM_CPU_KVCACHE_SPACE": str(self.config.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else two silos' processes would share the same cores
        }


def prompt_seeds(seed: int, count: int) -> list[int]:
    """A seed for each of so many prompts."""
    return [random.Random(f"{seed}/{i}").getrandbits(48) for i in range(count)]


def _serves(begun: dict[str, Any] | None, private: dict[str, Any] | None) -> bool:
    """Whether a process that was begun with the one can do what needs the other."""
    if begun is None or private is None:
        return begun is private
    return all(begun[key] >= private[key] for key in ("rows", "width", "longest", "max_model_len"))


def _dtype(config: VllmConfig) -> str:
    """vLLM's `auto` takes bfloat16 on every processor, and emulated it is some twenty times slower than float32."""
    return "float32" if config.dtype == "auto" and best_dtype() == "float32" else config.dtype
