"""Attention for a few new tokens behind a long cache, where several query heads share one key/value head.

Transformers copies every key and value once per query head before it multiplies, unless there is one new token or no
mask. For n drafts that share a prompt's cache there are n new tokens and a mask, and at each step the copies cost more
than the attention itself. Here the query heads of one key/value head are stacked as further queries instead: the same
sums, nothing copied.
"""

from __future__ import annotations

from typing import Any

NAME = "tutelage_stacked"


def use_stacked_attention(model: Any) -> None:
    """Let a model attend this way, if it does so by `sdpa` now; others are left alone."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any) -> tuple[Any, None]:
    """As transformers' `sdpa_attention_forward`: query (P, heads, n, size) -> (P, n, heads, size)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    prompts, heads, n, size = query.shape
    shared = heads // key.shape[1]
    few = 1 < n <= key.shape[2] // 4  # reading a prompt, there are as many queries as keys, and the mask would grow
    if shared == 1 or not few or attention_mask is None or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    stacked = query.reshape(prompts, key.shape[1], shared * n, size)
    found = torch.nn.functional.scaled_dot_product_attention(
        stacked, key, value, attn_mask=attention_mask.repeat(1, 1, shared, 1), scale=settings.get("scaling")
    )
    return found.view(prompts, heads, n, size).transpose(1, 2).contiguous(), None
