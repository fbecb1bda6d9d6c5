"""A model as the attacks ask it: how every token of a text stands among all others, in one batched path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import TokenScores
from tutelage.students import score
from tutelage.students.chat import completion_ids, pad_id, prompt_ids, prompt_messages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelScorer:
    """`privacy.attacks.base.Scorer` of a causal language model.

    Rows are what training sees: chat template, instruction, prompt, completion with the end of its turn. What the
    template and the instruction put before the prompt is run once and not scored. Answers are kept, so that several
    attacks on the same texts cost one pass.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        instruction: The system prompt.
        batch_rows: Rows computed together, at most.
        max_tokens: Prompts are cut to their first tokens, so that no row is longer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str | None,
        batch_rows: int,
        max_tokens: int = 512,
    ) -> None:
        self.model, self.tokenizer, self.instruction, self.batch_rows = model, tokenizer, instruction, batch_rows
        self.max_tokens = max_tokens
        self._known: dict[tuple[str, str], TokenScores] = {}

    def score(self, examples: Sequence[Example]) -> list[TokenScores]:
        """One for each example, in the same order."""
        new = list({(one.prompt, one.completion): None for one in examples}.keys() - self._known.keys())
        new.sort()  # a set's order differs between processes, and batches with it
        self._known |= dict(zip(new, self._compute(new), strict=True))
        return [self._known[one.prompt, one.completion] for one in examples]

    def _compute(self, pairs: Sequence[tuple[str, str]]) -> list[TokenScores]:
        import torch

        if not pairs:
            return []
        header = self._header()
        prompts, completions = [], []
        for prompt, completion in pairs:
            ids = prompt_ids(self.tokenizer, prompt_messages(prompt, self.instruction))
            answer = completion_ids(self.tokenizer, completion, end_of_turn=True)
            prompts.append(ids[: max(len(header) + 1, self.max_tokens - len(answer))])
            completions.append(answer)
        found: list[TokenScores | None] = [None] * len(pairs)
        start = len(header)
        with torch.inference_mode():
            # The header's last token predicts the text's first, so it is run with the rows.
            prefix = score.extend_prefix(self.model, score.NO_PREFIX, header[:-1])
            rows = [(prompt + answer)[start - 1 :] for prompt, answer in zip(prompts, completions, strict=True)]
            lengths = [len(row) - 1 for row in rows]
            for batch in score.batches(lengths, lengths, self.batch_rows):
                keep = max(lengths[i] for i in batch)
                logits, _, _ = score.run_rows(
                    self.model, pad_id(self.tokenizer), [rows[i][:-1] for i in batch], prefix, keep
                )
                for index, row in zip(batch, logits, strict=True):
                    scored = _token_scores(row[-lengths[index] :], rows[index][1:])
                    found[index] = TokenScores(*scored, completion=len(prompts[index]) - start)
        return [one for one in found if one is not None]

    def _header(self) -> list[int]:
        """What stands before every prompt's text, at least one token."""
        two = [prompt_ids(self.tokenizer, prompt_messages(text, self.instruction)) for text in ("a", "1")]
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*two, strict=False))
        header = [own for own, _ in alike]
        if not header:
            raise ValueError("this chat template puts nothing before a prompt: its first token has no context")
        return header


def _token_scores(logits: torch.Tensor, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """From logits (T, V) and T ids: log-probabilities, mean and standard deviation of log p under p, and hits."""
    import torch

    # Four passes over the vocabulary and one copy of it: at this width memory is what costs.
    own = torch.tensor(list(ids), device=logits.device)[:, None]
    hits = logits.argmax(-1) == own[:, 0]
    shifted = (logits.float() - logits.amax(-1, keepdim=True).float()).clamp_(min=_LEAST)
    weights = shifted.exp()
    total = weights.sum(-1)
    first = torch.linalg.vecdot(weights, shifted) / total
    second = torch.linalg.vecdot(weights.mul_(shifted), shifted) / total
    chosen = shifted.gather(1, own)[:, 0] - total.log()
    std = (second - first**2).clamp_(min=0).sqrt()
    figures = [one.double().cpu().numpy() for one in (chosen, first - total.log(), std)]
    return figures[0], figures[1], figures[2], hits.cpu().numpy()


_LEAST = -1e4
"""In the place of minus infinity, which a model may give to what it must not say: 0 times that is no number."""
