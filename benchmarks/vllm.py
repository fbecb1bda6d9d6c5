"""The vLLM engine against vLLM's own offline loop, `LLM.generate`, on the same prompts, sampling and seeds.

The loop (vllm_loop.py) runs in vLLM's own environment, in a process that waits while the engine works, and the other
way round. Both are asked for the same texts, and should write the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.suite import Figure, figure, in_turns, ratio, say
from tutelage.configs.models import fetch_mail, resolve_model
from tutelage.configs.schema import VllmConfig
from tutelage.privacy.mail import load_mails
from tutelage.teachers.engines.base import Sampling
from tutelage.teachers.engines.vllm import VllmEngine

PROMPTS, DRAFTS, NEW_TOKENS, ROUNDS, SEED = 8, 4, 32, 5, 0
LOOP = Path(__file__).with_name("vllm_loop.py")


def measure(full: bool) -> list[Figure]:
    """Both in turns, each in its process."""
    config = VllmConfig(kind="vllm", max_model_len=512, kv_cache_gib=1)
    mails = random.Random(0).sample(load_mails(fetch_mail(), 400), PROMPTS)
    prompts = [f"E-mails of one kind.\n\nE-mail: {mail.text}\nE-mail:" for mail in mails]
    sampling = Sampling(NEW_TOKENS, 1.0, 0.95, 100, stop="\0")
    texts: dict[str, Any] = {}
    with contextlib.closing(VllmEngine(resolve_model("smollm2-135m-instruct"), config)) as engine:
        say("two processes start")

        def ours() -> None:
            found = engine.generate(prompts, DRAFTS, sampling, SEED)
            texts["ours"] = [[one.text for one in row] for row in found]

        with _loop(engine, prompts, sampling) as ask:

            def loop() -> float:
                answer = ask()
                texts["loop"] = answer["texts"]
                return float(answer["seconds"])

            seconds = in_turns({"ours": ours, "loop": loop}, ROUNDS)
    same = sum(a == b for row in zip(texts["ours"], texts["loop"], strict=True) for a, b in zip(*row, strict=True))
    tokens = PROMPTS * DRAFTS * NEW_TOKENS
    return [
        ratio("vLLM engine / `LLM.generate`", seconds["ours"], seconds["loop"], at_least=0.95),
        figure("ours, at most", [tokens / one for one in seconds["ours"]], " tokens/s"),
        figure("texts that are the same in both", [100 * same / (PROMPTS * DRAFTS)], "%"),
    ]


@contextlib.contextmanager
def _loop(engine: VllmEngine, prompts: list[str], sampling: Sampling) -> Iterator[Any]:
    """A process that answers each question with its texts and seconds."""
    process = subprocess.Popen(
        [str(engine.python), "-I", str(LOOP)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("TUTELAGE_SHOW_MESSAGES") else subprocess.DEVNULL,
        env=engine._environment(),
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(question: object = None) -> Any:
        process.stdin.write(json.dumps(question) + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        answer = process.stdout.readline()  # type: ignore[union-attr]
        if not answer:
            raise RuntimeError("vLLM's own loop ended; TUTELAGE_SHOW_MESSAGES=1 shows why")
        return json.loads(answer)

    # the same numbers as the engine gives its prompts, so that both draw the same texts
    seeds = [random.Random(f"{SEED}/{i}").getrandbits(48) for i in range(len(prompts))]
    settings = {
        "n": DRAFTS,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop": [sampling.stop],
    }
    try:
        ask({"llm": engine._settings(), "prompts": prompts, "seeds": seeds, "sampling": settings})
        yield ask
    finally:
        process.kill()
        process.wait()
