"""Log-likelihoods under a causal language model, each token of context computed once.

What all prompts have in common (system prompt, few-shot turns) is run once and its key/value cache handed to every
batch; several completions of one prompt share that prompt's cache; the vocabulary head runs on scored positions only.
All of it is exact: the figures are those of scoring every row alone, up to the rounding of the dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tutelage.configs.progress import Bar
from tutelage.students.chat import Messages, completion_ids, pad_id, prompt_ids

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

_MIN_PREFIX = 8
"""A shorter common prefix isn't worth its own forward pass."""
_MAX_HEAD_POSITIONS = 2048
"""Positions whose logits are held at a time: 400 MB at a vocabulary of 49,152 in float32."""


def completion_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    completions: Sequence[str],
    batch_rows: int,
    *,
    end_of_turn: bool = False,
    progress: str | None = None,
) -> list[np.ndarray]:
    """Log-probability of every completion token given its prompt.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        prompts: n chats that end before the assistant's turn. Equal ones are run once.
        completions: n answers.
        batch_rows: Rows computed together.
        end_of_turn: Whether the token that ends the assistant's turn is scored too, as the last one.
        progress: What to call the progress bar; None: no bar.

    Returns:
        n float64 arrays of natural logarithms, one entry per completion token.
    """
    return score_ids(
        model,
        pad_id(tokenizer),
        [prompt_ids(tokenizer, prompt) for prompt in prompts],
        [completion_ids(tokenizer, completion, end_of_turn=end_of_turn) for completion in completions],
        batch_rows,
        progress=progress,
    )


def score_ids(
    model: PreTrainedModel,
    pad: int,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    batch_rows: int,
    *,
    progress: str | None = None,
) -> list[np.ndarray]:
    """As `completion_logprobs`, on token ids; every prompt has at least one token.

    Group calls so that their prompts share a long beginning (all candidates of one canary, say): it is run once.
    """
    import torch

    scores = [np.zeros(0)] * len(prompts)
    members: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if completion:
            members.setdefault(tuple(prompt), []).append(index)
    rows_to_do = sum(map(len, members.values()))
    with torch.inference_mode(), Bar(rows_to_do, progress, "text") as bar:
        shared = shared_prefix(model, list(members), rows_to_do)
        alone = [group[0] for group in members.values() if len(group) == 1]
        rows = [(list(prompts[i][shared.length :]), list(completions[i])) for i in alone]
        for index, logprobs in zip(alone, _score_rows(model, pad, rows, shared, batch_rows, bar), strict=True):
            scores[index] = logprobs
        for prompt, group in members.items():
            if len(group) > 1:
                own = extend_prefix(model, shared, [*prompt[shared.length : -1]])
                rows = [([prompt[-1]], list(completions[i])) for i in group]
                for index, logprobs in zip(group, _score_rows(model, pad, rows, own, batch_rows, bar), strict=True):
                    scores[index] = logprobs
    return scores


def label_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    labels: Sequence[str],
    batch_rows: int,
    *,
    end_of_turn: bool = False,
    progress: str | None = None,
) -> np.ndarray:
    """Log-probability of every label as the answer to every prompt.

    A prompt is run once for all labels: labels of one token are read from its last logits, the further tokens of
    longer ones are run behind its cache.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        prompts: n chats that end before the assistant's turn.
        labels: The possible answers.
        batch_rows: Prompts computed together.
        end_of_turn: Whether a label counts as complete only with the end of the turn; needed where one label is the
            beginning of another.
        progress: What to call the progress bar; None: no bar.

    Returns:
        Array (n, labels) of natural logarithms, summed over a label's tokens.
    """
    import torch

    candidates = [completion_ids(tokenizer, label, end_of_turn=end_of_turn) for label in labels]
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    scores = np.zeros((len(rows), len(candidates)))
    with torch.inference_mode(), Bar(len(rows), progress, "text") as bar:
        shared = shared_prefix(model, rows, len(rows))
        suffixes = [row[shared.length :] for row in rows]
        for batch in batches([len(row) for row in suffixes], [1] * len(rows), batch_rows):
            scores[batch] = _score_labels(model, pad_id(tokenizer), [suffixes[i] for i in batch], candidates, shared)
            bar.update(len(batch))
    return scores


def sequence_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_rows: int,
    *,
    reduce: Literal["mean", "sum"] = "mean",
) -> np.ndarray:
    """Negative log-likelihood of plain texts, in nats; the first token is context only.

    What all texts begin with is run once: pass texts that share a long beginning in a call of their own.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        texts: n texts.
        batch_rows: Texts computed together, at most.
        reduce: `mean` per predicted token, or `sum` over a text's tokens.

    Returns:
        Array (n,). A text with fewer than two tokens has nothing to predict: NaN as a mean, 0 as a sum.
    """
    import torch

    rows = [list(tokenizer(text).input_ids) for text in texts]
    losses = np.full(len(rows), np.nan if reduce == "mean" else 0.0)
    long = [i for i, row in enumerate(rows) if len(row) > 1]
    with torch.inference_mode(), Bar(len(long)) as bar:
        pad = pad_id(tokenizer)
        shared = common_prefix([rows[i] for i in long]) if len(long) > 1 else []
        start = max(1, len(shared))
        behind = extend_prefix(model, NO_PREFIX, shared[:-1])
        (common,) = _score_rows(model, pad, [(shared[:1], shared[1:])], NO_PREFIX, 1, bar) if shared else [np.zeros(0)]
        split = [(rows[i][behind.length : start], rows[i][start:]) for i in long]
        scored = _score_rows(model, pad, split, behind, batch_rows, bar)
    for index, own in zip(long, scored, strict=True):
        logprobs = np.concatenate([common, own])
        losses[index] = -(logprobs.mean() if reduce == "mean" else logprobs.sum())
    return losses


@dataclass(frozen=True)
class Prefix:
    """The keys and values of `length` tokens that rows have in common; per layer (1, heads, length, head size)."""

    length: int
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @classmethod
    def of(cls, cache: DynamicCache, length: int) -> Prefix:
        """What a pass over one row left behind."""
        layers: Any = tuple((layer.keys, layer.values) for layer in cache.layers)  # type: ignore[union-attr]
        return cls(length, layers)

    def cache(self, rows: int) -> DynamicCache:
        """A cache for a batch, which the model may add to."""
        from transformers import DynamicCache

        # Without a config no layer forgets what lies outside a sliding window; the mask sees to that instead.
        return DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers])


NO_PREFIX = Prefix(0, ())


def shared_prefix(model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: int) -> Prefix:
    """The prefix of all prompts, but for at least one token of each, which rows need to predict from."""
    if rows < 2:
        return NO_PREFIX
    return extend_prefix(model, NO_PREFIX, common_prefix(prompts))


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all prompts begin with, leaving at least one token of each to predict from; empty if it's short."""
    # The first and the last in lexicographic order differ the earliest.
    first, last = min(prompts, key=list), max(prompts, key=list)
    longest = min(map(len, prompts)) - 1
    length = next((i for i in range(longest) if first[i] != last[i]), longest)
    return list(first[:length]) if length >= _MIN_PREFIX else []


def extend_prefix(model: PreTrainedModel, prefix: Prefix, ids: list[int]) -> Prefix:
    """The prefix with further tokens behind it; differentiable where gradients are on."""
    if not ids:
        return prefix
    _, cache, _ = run_rows(model, 0, [ids], prefix, keep=1)
    return Prefix.of(cache, prefix.length + len(ids))


def batches(lengths: Sequence[int], kept: Sequence[int], batch_rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, bounded in rows and in logits."""
    batch: list[int] = []
    widest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        grown = max(widest, kept[index])
        if batch and (len(batch) == batch_rows or grown * (len(batch) + 1) > _MAX_HEAD_POSITIONS):
            yield batch
            batch, grown = [], kept[index]
        batch.append(index)
        widest = grown
    if batch:
        yield batch


def padded(
    rows: Sequence[Sequence[int]], pad: int, prefix_length: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Rows of ids padded on the left, as a model takes them behind a prefix of `prefix_length` cached tokens.

    Returns:
        Ids (rows, width), attention mask (rows, prefix_length + width) or None where nothing is padded, and
        positions (rows, width).
    """
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    gaps = torch.tensor([width - len(row) for row in rows], device=device)[:, None]
    places = torch.arange(width, device=device)[None]
    mask = None
    if bool(gaps.any()):
        seen = torch.ones(len(rows), prefix_length, dtype=torch.long, device=device)
        mask = torch.cat([seen, (places >= gaps).long()], dim=1)
    return ids, mask, prefix_length + (places - gaps).clamp(min=0)


def run_rows(
    model: PreTrainedModel, pad: int, rows: Sequence[Sequence[int]], prefix: Prefix, keep: int
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor | None]:
    """One pass behind the prefix: logits (rows, keep, vocabulary) of the last positions, the cache, the mask."""
    ids, mask, positions = padded(rows, pad, prefix.length, model.device)
    cache = prefix.cache(len(rows))
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    )
    return output.logits, cache, mask


def _score_rows(
    model: PreTrainedModel,
    pad: int,
    rows: Sequence[tuple[list[int], list[int]]],
    prefix: Prefix,
    batch_rows: int,
    bar: Bar,
) -> list[np.ndarray]:
    """Log-probabilities of the completion ids in rows of (context ids behind the prefix, completion ids)."""
    scores = [np.zeros(0)] * len(rows)
    kept = [len(completion) for _, completion in rows]
    for batch in batches([len(context) + len(completion) for context, completion in rows], kept, batch_rows):
        fed = [(rows[i][0] + rows[i][1])[:-1] for i in batch]
        logits, _, _ = run_rows(model, pad, fed, prefix, max(kept[i] for i in batch))
        for index, row in zip(batch, logits, strict=True):
            scores[index] = _chosen(row[-kept[index] :], rows[index][1])
        bar.update(len(batch))
    return scores


def _score_labels(
    model: PreTrainedModel, pad: int, rows: Sequence[list[int]], candidates: Sequence[list[int]], prefix: Prefix
) -> np.ndarray:
    """Summed log-probabilities (rows, candidates) of every candidate behind every row."""
    import torch

    logits, cache, mask = run_rows(model, pad, rows, prefix, keep=1)
    first = logits[:, -1].float().log_softmax(-1)
    ends = prefix.length + torch.tensor([len(row) for row in rows], device=first.device)[:, None]
    scores = np.zeros((len(rows), len(candidates)))
    for column, candidate in enumerate(candidates):
        if not candidate:
            continue
        scores[:, column] = first[:, candidate[0]].double().cpu().numpy()
        fed, rest = candidate[:-1], candidate[1:]
        if not rest:
            continue
        ids = torch.tensor([fed] * len(rows), device=first.device)
        output = model(
            input_ids=ids,
            attention_mask=None if mask is None else torch.cat([mask, torch.ones_like(ids)], dim=1),
            position_ids=ends + torch.arange(len(fed), device=first.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        cache.crop(-len(fed))
        scores[:, column] += [_chosen(row, rest).sum() for row in output.logits]
    return scores


def _chosen(logits: torch.Tensor, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities (positions,) of one id per position, from logits (positions, vocabulary)."""
    import torch

    wide = logits.float()
    picked = wide.gather(1, torch.tensor(ids, device=wide.device)[:, None])[:, 0]
    values: np.ndarray = (picked - wide.logsumexp(1)).double().cpu().numpy()
    return values
