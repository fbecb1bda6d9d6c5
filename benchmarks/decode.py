"""Decoding rate of the transformers engine against `model.generate`, on the same prompts.

Both sample from the same model with the same settings, in batches of all texts; neither stops early, so both write the
same number of tokens.
"""

from __future__ import annotations

from unittest import mock

from benchmarks.suite import Figure, figure, in_turns, ratio
from tutelage.configs.models import resolve_model
from tutelage.teachers.engines import transformers
from tutelage.teachers.engines.base import Sampling

WORD = "mail about the meeting on friday and the price of a ticket "
PROMPTS, DRAFTS, PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 4, 8, 160, 24, 3


def measure(full: bool) -> list[Figure]:
    """Both ways in turns."""
    import torch

    engine = transformers.TransformersEngine(resolve_model("smollm2-135m-instruct"), PROMPTS * DRAFTS)
    ids = engine.tokenizer(WORD * PROMPT_TOKENS)["input_ids"][:PROMPT_TOKENS]
    prompts = [engine.tokenizer.decode(ids)] * PROMPTS
    sampling = Sampling(NEW_TOKENS, 0.9, 0.95, 100, stop="\0")
    batch = engine.tokenizer(prompts, return_tensors="pt").to(engine.model.device)

    def generate() -> None:
        with torch.inference_mode():
            engine.model.generate(
                **batch,
                do_sample=True,
                num_return_sequences=DRAFTS,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                temperature=0.9,
                top_p=0.95,
                top_k=100,
            )

    with mock.patch.object(transformers, "end_tokens", return_value=set()):
        ways = {"ours": lambda: engine.generate(prompts, DRAFTS, sampling, seed=0) and None, "generate": generate}
        seconds = in_turns(ways, ROUNDS)
    tokens = PROMPTS * DRAFTS * NEW_TOKENS
    return [
        ratio("transformers engine / `model.generate`", seconds["ours"], seconds["generate"], at_least=1.0),
        figure("ours", [tokens / one for one in seconds["ours"]], " tokens/s"),
    ]
