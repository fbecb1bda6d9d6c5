"""The transformers engine: batched sampling where all texts of one prompt share its keys and values.

A prompt with private references is several times longer than a draft. Copied for each of its n drafts, its cache
would be read n times at every step, which on a processor costs more than the model itself. So a prompt is one row of
the batch, and its n drafts are n query positions of that row: each sees the prompt and its own tokens, by the mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.configs.adapters import merged
from tutelage.configs.models import load_model
from tutelage.teachers.engines.attention import use_stacked_attention
from tutelage.teachers.engines.base import Generation, Sampling, chat_prompt, too_long
from tutelage.teachers.engines.structure import Structured

if TYPE_CHECKING:
    import torch

    from tutelage.teachers.engines.transformers_private import TransformersDecoder


class TransformersEngine:
    """Continues text with a local model.

    Args:
        folder: The model's folder.
        batch_rows: Texts decoded together.
        adapter: A LoRA adapter's folder; None: the model as it is.

    Raises:
        UserError: the adapter does not fit the model.
    """

    def __init__(self, folder: Path, batch_rows: int, adapter: Path | None = None) -> None:
        self.model, self.tokenizer = load_model(folder, dtype="auto")
        if adapter is not None:
            self.model = merged(self.model, adapter)
        use_stacked_attention(self.model)
        self.batch_rows = batch_rows

    def chat(self, system: str, user: str) -> str:
        """See `Engine.chat`."""
        return chat_prompt(self.tokenizer, system, user)

    def decoder(self, tail_tokens: int) -> TransformersDecoder:
        """See `PrivateEngine.decoder`."""
        from tutelage.teachers.engines.transformers_private import TransformersDecoder

        return TransformersDecoder(self.model, self.tokenizer, self.batch_rows, tail_tokens)

    def most_read(self, prompt: str, n: int) -> int:
        """See `Engine.most_read`."""
        return len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def close(self) -> None:
        """See `Engine.close`. The model stays, for the next silo's teacher and for whoever has loaded it."""

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
            UserError: a prompt and its draft are longer than what the model attends to.
        """
        import torch

        generator = torch.Generator(self.model.device).manual_seed(seed)
        encoded: list[list[int]] = [self.tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
        check_length(self.model, max(map(len, encoded), default=0) + sampling.max_new_tokens)
        # Prompts of like length share a batch, so that little is spent on padding.
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        per_batch = max(1, self.batch_rows // n)
        out: list[list[Generation]] = [[] for _ in prompts]
        for start in range(0, len(order), per_batch):
            chosen = order[start : start + per_batch]
            with torch.inference_mode():
                texts = self._sample([encoded[i] for i in chosen], n, sampling, generator)
            for i, index in enumerate(chosen):
                out[index] = texts[i * n : (i + 1) * n]
            if on_progress:
                on_progress(len(texts))
        return out

    @functools.cached_property
    def _structures(self) -> Any:
        """The tokenizer as llguidance knows it, which takes it a second."""
        from llguidance.hf import from_tokenizer

        tokenizer: Any = self.tokenizer
        size = self.model.config.get_text_config().vocab_size
        return from_tokenizer(tokenizer, size, sorted(end_tokens(self.model, self.tokenizer)))

    def _sample(
        self, prompts: list[list[int]], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[Generation]:
        """Sample `n` texts for each of P prompts; text i * n + j is the j-th of prompt i."""
        import torch
        from transformers import DynamicCache

        batch = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        batch = batch.to(self.model.device)
        attention = batch["attention_mask"]  # (P, L)
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=attention,
            position_ids=(attention.cumsum(-1) - 1).clamp(min=0),
            # Made without the model's config it drops nothing: a sliding window would count the drafts of all n.
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logits = output.logits[:, -1].repeat_interleave(n, 0)  # (P * n, V)
        position = attention.sum(-1, keepdim=True).expand(-1, n)  # (P, n)
        mask = attention.bool()[:, None, None].expand(-1, 1, n, -1)  # (P, 1, n, L): all of the prompt
        own = torch.eye(n, dtype=torch.bool, device=self.model.device)[None, None]  # (1, 1, n, n): itself alone

        tokens: list[list[int]] = [[] for _ in range(len(prompts) * n)]
        finished, counts = [False] * len(tokens), [0] * len(tokens)
        alive = list(range(len(prompts)))  # which prompt each row of the batch is
        ends = end_tokens(self.model, self.tokenizer)
        structured = sampling.structure and Structured(sampling.structure, self._structures, len(tokens))
        window = len(sampling.stop.encode())  # a token is at least one byte of the stop string
        for step in range(sampling.max_new_tokens):
            texts = [prompt * n + j for prompt in alive for j in range(n)]
            logits = logits.float()
            if structured:
                logits = structured.masked(logits, [None if finished[text] else text for text in texts])
            drawn = _draw(logits, sampling, generator)  # (len(alive) * n,)
            for text, token in zip(texts, drawn.tolist(), strict=True):
                if finished[text]:
                    continue
                counts[text] += 1
                if token in ends:
                    finished[text] = True
                else:
                    tokens[text].append(token)
                    finished[text] = sampling.stop in self.tokenizer.decode(tokens[text][-window:])
                    if structured and structured.take(text, token):
                        finished[text] = True
            going = [i for i, prompt in enumerate(alive) if not all(finished[prompt * n : (prompt + 1) * n])]
            if not going or step == sampling.max_new_tokens - 1:
                break
            drawn = drawn.view(len(alive), n)
            if len(going) < len(alive):
                index = torch.tensor(going, device=self.model.device)
                cache.batch_select_indices(index)
                drawn, position, mask = drawn[index], position[index], mask[index]
                alive = [alive[i] for i in going]
            mask = torch.cat([mask, own.expand(len(alive), -1, -1, -1)], -1)
            output = self.model(
                input_ids=drawn,
                attention_mask=additive_mask(mask, self.model.dtype),
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            position = position + 1
            logits = output.logits.flatten(0, 1)
        decoded = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        # A whole text can hold a stop its tails did not show: special tokens stood between its parts.
        cut = [text.partition(sampling.stop) for text in decoded]
        read = [len(prompt) if j == 0 else 0 for prompt in prompts for j in range(n)]
        return [
            Generation(text, end or bool(stop), read=prompt, drawn=own)
            for (text, stop, _), end, prompt, own in zip(cut, finished, read, counts, strict=True)
        ]


def check_length(model: Any, tokens: int) -> None:
    """Refuse texts that with their prompts become longer than what a model attends to.

    Raises:
        UserError: they do.
    """
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    limit = min((one for one in limits if one), default=tokens)
    if tokens > limit:
        raise too_long(tokens, limit)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a text: the tokenizer's and the generation config's end-of-sequence tokens."""
    return end_ids(model.generation_config, tokenizer)


def end_ids(config: Any, tokenizer: Any) -> set[int]:
    """See `end_tokens`; `config`: a generation config, or None."""
    ids = getattr(config, "eos_token_id", None)
    listed = ids if isinstance(ids, list) else [ids]
    return {i for i in [*listed, tokenizer.eos_token_id] if i is not None}


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the attention scores: eager attention would add a boolean mask as 0 and 1."""
    import torch

    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """One token per row: temperature, top-k, then top-p. (R, V) float32 -> (R,)."""
    import torch

    k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    top, index = torch.topk(logits / sampling.temperature, k, dim=-1)  # sorted, so top-p is a prefix
    probabilities = torch.softmax(top, -1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    choice = torch.multinomial(probabilities, 1, generator=generator)
    return index.gather(-1, choice)[:, 0]
