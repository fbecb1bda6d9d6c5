"""Several processes with vLLM side by side, each with a copy of the model and a part of the prompts.

vLLM's own data parallelism is no matter of one process, so each rank here is an engine of vllm.py. A text's seed comes
from its prompt's place among all, whoever writes it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tutelage.configs.schema import VllmConfig
from tutelage.teachers.engines.base import Generation, Sampling
from tutelage.teachers.engines.vllm import VllmEngine, prompt_seeds

_Written = tuple[int, list[list[Generation]]]


class ParallelVllm:
    """`config.data_parallel_size` engines as one; arguments and errors as for `VllmEngine`."""

    def __init__(self, folder: Path, config: VllmConfig, adapter: Path | None = None) -> None:
        self.engines = [VllmEngine(folder, config, adapter, rank) for rank in range(config.data_parallel_size)]

    def chat(self, system: str, user: str) -> str:
        """See `Engine.chat`."""
        return self.engines[0].chat(system, user)

    def most_read(self, prompt: str, n: int) -> int:
        """See `Engine.most_read`."""
        return self.engines[0].most_read(prompt, n)

    def close(self) -> None:
        """See `VllmEngine.close`."""
        for engine in self.engines:
            engine.close()

    def generate(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        seed: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[list[Generation]]:
        """See `VllmEngine.generate`. What goes wrong with one ends all."""
        seeds, count = prompt_seeds(seed, len(prompts)), len(self.engines)
        told: queue.Queue[int | _Written | BaseException] = queue.Queue()

        def write(rank: int) -> None:
            try:
                own = prompts[rank::count], seeds[rank::count]
                told.put((rank, self.engines[rank].write(*own, n, sampling, told.put)))
            except BaseException as error:
                told.put(error)

        threads = [threading.Thread(target=write, args=(rank,), daemon=True) for rank in range(count)]
        written: list[list[Generation]] = [[] for _ in prompts]
        try:
            for thread in threads:
                thread.start()
            left = count
            while left:
                match told.get():
                    case BaseException() as error:
                        raise error
                    case (rank, texts):
                        written[rank::count] = texts
                        left -= 1
                    case done if on_progress:
                        on_progress(done)
        except BaseException:
            for engine in self.engines:
                engine.end()  # so that no thread waits for it any more
            for thread in threads:
                thread.join()
            self.close()
            raise
        for thread in threads:
            thread.join()
        return written
