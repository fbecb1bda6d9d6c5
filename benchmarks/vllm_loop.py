"""vLLM's own offline loop, run by vLLM's own Python: prompts come in once, then every line asks for `LLM.generate`."""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Load, say so, and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints
    asked = json.loads(sys.stdin.readline())
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    settings = asked["llm"]
    here = current_platform.is_cpu()
    if settings["enforce_eager"] is None:
        settings["enforce_eager"] = here
    if here:
        settings["enable_chunked_prefill"] = False
    llm = LLM(**settings, disable_log_stats=True)
    tokenizer = llm.get_tokenizer()
    sampling = [SamplingParams(**asked["sampling"], seed=seed) for seed in asked["seeds"]]
    answers.write("{}\n")
    answers.flush()
    for _ in sys.stdin:
        started = time.perf_counter()
        prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in asked["prompts"]]
        made = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        texts = [[one.text for one in output.outputs] for output in made]
        answers.write(json.dumps({"seconds": seconds, "texts": texts}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
