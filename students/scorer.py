"""A model as the attacks ask it: how every token of a text stands among all others, in one batched path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tutelage.configs.progress import Bar
from tutelage.configs.records import Example
from tutelage.privacy.attacks.base import TokenScores
from tutelage.students import score
from tutelage.students.chat import completion_ids, pad_id, prompt_ids, prompt_messages
from tutelage.students.score import Prefix

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

    def told(self, instruction: str | None) -> ModelScorer:
        """The same model under another instruction."""
        return ModelScorer(self.model, self.tokenizer, instruction, self.batch_rows, self.max_tokens)

    def score(self, examples: Sequence[Example]) -> list[TokenScores]:
        """One for each example, in the same order."""
        new = list({(one.prompt, one.completion): None for one in examples}.keys() - self._known.keys())
        new.sort()  # a set's order differs between processes, and batches with it
        self._known |= dict(zip(new, self._compute(new), strict=True))
        return [self._known[one.prompt, one.completion] for one in examples]

    def completion_logprobs(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Log-probability of each of the completion's tokens alone: the vocabulary is computed behind these only."""
        pairs = {(one.prompt, one.completion): None for one in examples}
        new = [pair for pair in pairs if pair not in self._known]
        prompts, completions = self._rows(new, len(self._header()))
        scored = score.score_ids(self.model, pad_id(self.tokenizer), prompts, completions, self.batch_rows)
        found = dict(zip(new, scored, strict=True))
        for pair in pairs.keys() & self._known.keys():
            known = self._known[pair]
            found[pair] = known.logprobs[max(0, known.completion) :]
        return [found[one.prompt, one.completion] for one in examples]

    def _rows(self, pairs: Sequence[tuple[str, str]], header: int) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of prompts, cut to fit, and of completions with the end of their turn."""
        prompts, completions = [], []
        for prompt, completion in pairs:
            ids = prompt_ids(self.tokenizer, prompt_messages(prompt, self.instruction))
            answer = completion_ids(self.tokenizer, completion, end_of_turn=True)
            prompts.append(ids[: max(header + 1, self.max_tokens - len(answer))])
            completions.append(answer)
        return prompts, completions

    def _compute(self, pairs: Sequence[tuple[str, str]]) -> list[TokenScores]:
        import torch

        if not pairs:
            return []
        header = self._header()
        start = len(header)
        prompts, completions = self._rows(pairs, start)
        # The header's last token predicts the text's first, so it is run with the rows.
        rows = [(prompt + answer)[start - 1 :] for prompt, answer in zip(prompts, completions, strict=True)]
        columns: list[_Columns] = [_Columns()] * len(rows)
        with torch.inference_mode(), Bar(len(rows)) as bar:
            prefix = score.extend_prefix(self.model, score.NO_PREFIX, header[:-1])
            alone = []
            for group, length in _alike(rows):
                if length == 0:
                    alone += group
                    continue
                # Candidates of one canary, say: what they begin with is run once, and scored once.
                shared = rows[group[0]][:length]
                logits, cache, _ = score.run_rows(self.model, 0, [shared[:-1]], prefix, keep=length - 1)
                common = _columns(logits[0], shared[1:])
                behind = Prefix.of(cache, prefix.length + length - 1)
                tails = self._score([rows[i][length - 1 :] for i in group], behind, bar)
                for i, tail in zip(group, tails, strict=True):
                    columns[i] = common.followed_by(tail)
            for i, own in zip(alone, self._score([rows[i] for i in alone], prefix, bar), strict=True):
                columns[i] = own
        return [
            TokenScores(*one.arrays(), completion=len(prompt) - start)
            for one, prompt in zip(columns, prompts, strict=True)
        ]

    def _score(self, rows: Sequence[list[int]], prefix: Prefix, bar: Bar) -> list[_Columns]:
        """All tokens of each row but its first, behind a prefix."""
        found = [_Columns()] * len(rows)
        lengths = [len(row) - 1 for row in rows]
        for batch in score.batches(lengths, lengths, self.batch_rows):
            fed, keep = [rows[i][:-1] for i in batch], max(lengths[i] for i in batch)
            logits, _, _ = score.run_rows(self.model, pad_id(self.tokenizer), fed, prefix, keep)
            for i, row in zip(batch, logits, strict=True):
                found[i] = _columns(row[-lengths[i] :], rows[i][1:])
            bar.update(len(batch))
        return found

    def _header(self) -> list[int]:
        """What stands before every prompt's text, at least one token."""
        two = [prompt_ids(self.tokenizer, prompt_messages(text, self.instruction)) for text in ("a", "1")]
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*two, strict=False))
        header = [own for own, _ in alike]
        if not header:
            raise ValueError("this chat template puts nothing before a prompt: its first token has no context")
        return header


@dataclass(frozen=True)
class _Columns:
    """(T, 4): log-probability, mean and standard deviation of log p, and whether the token is the likeliest."""

    table: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    def followed_by(self, other: _Columns) -> _Columns:
        return _Columns(np.concatenate([self.table, other.table]))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        logprobs, mean, std, greedy = self.table.T
        return logprobs, mean, std, greedy.astype(bool)


def _alike(rows: Sequence[list[int]]) -> list[tuple[list[int], int]]:
    """Rows in groups that begin alike for half their length or more, and how far; 0 for rows that are alone."""
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    groups: list[tuple[list[int], int]] = []
    for i in order:
        if groups:
            group, length = groups[-1]
            ends = min(len(rows[i]), len(rows[group[0]])) - 1  # a token of each is left to predict
            alike = next((at for at in range(ends) if rows[i][at] != rows[group[0]][at]), ends)
            grown = min(alike, length or alike)
            if 2 * grown >= len(rows[i]) and grown >= _MIN_SHARED:
                groups[-1] = ([*group, i], grown)
                continue
        groups.append(([i], 0))
    return groups


_MIN_SHARED = 16
"""Fewer tokens are not worth a pass of their own."""
_CHUNK = 16
"""Positions whose scores over the vocabulary are held at a time: they should fit into the processor's cache."""


def _columns(logits: torch.Tensor, ids: Sequence[int]) -> _Columns:
    """From logits (T, V) and T ids."""
    import torch

    own = torch.tensor(list(ids), device=logits.device)[:, None]
    parts = []
    for at in range(0, len(own), _CHUNK):
        wide, tokens = logits[at : at + _CHUNK].float(), own[at : at + _CHUNK]
        top, best = wide.max(-1, keepdim=True)
        shifted = (wide - top).clamp_(min=_LEAST)
        weights = shifted.exp()
        total = weights.sum(-1)
        first = torch.linalg.vecdot(weights, shifted) / total
        second = torch.linalg.vecdot(weights.mul_(shifted), shifted) / total
        chosen = shifted.gather(1, tokens)[:, 0] - total.log()
        std = (second - first**2).clamp_(min=0).sqrt()
        parts.append(torch.stack([chosen, first - total.log(), std, (best == tokens)[:, 0].float()], dim=1))
    return _Columns(torch.cat(parts).double().cpu().numpy())


_LEAST = -1e4
"""In the place of minus infinity, which a model may give to what it must not say: 0 times that is no number."""
