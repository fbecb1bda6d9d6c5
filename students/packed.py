"""Training rows end to end in one sequence: no padding, and what all rows begin with is run once.

    [what all begin with] [rest of row 1] [rest of row 2] ...

What a model does token by token (projections, norms, the vocabulary) sees one long sequence; only attention must know
where a row begins and ends. So it is done row by row here, each row behind what all begin with: the same sums as for
every row alone, whatever their lengths. Models whose rows cannot be told apart this way are found by `can_pack`, and
are trained on padded rows instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "tutelage_packed"
_TRIED = ([3, 1, 2, 5], [4, 6], [7, 2, 6])
"""A beginning and two rows behind it, to try a model on."""


@dataclass(frozen=True)
class Layout:
    """Where rows stand: the tokens that all begin with, each row's length behind them, and its causal mask."""

    shared: int
    lengths: tuple[int, ...]
    masks: tuple[torch.Tensor, ...]
    """(length, shared + length) each: True where a token (row of the mask) sees another (column)."""


def can_pack(model: Any, longest: int) -> bool:
    """Whether a model's rows of up to `longest` tokens can be run so; lets it attend this way if they can.

    A model may look back a bounded way only, mix tokens outside of attention, or not hand the layout on: it is tried.
    """
    import torch

    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or longest
    everywhere = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    if config._attn_implementation not in ("sdpa", NAME) or window < longest or not everywhere:
        return False
    before = config._attn_implementation
    _use_packed_attention(model)
    training = model.training
    shared, *rows = ([token % config.vocab_size for token in row] for row in _TRIED)
    try:
        with torch.inference_mode():
            model.eval()
            together = logits(model, shared, rows, [len(row) for row in rows])
            alone = [model(input_ids=_ids(model, shared + row), use_cache=False).logits[0] for row in rows]
        expected = torch.cat([one[len(shared) :] for one in alone])
        same = torch.allclose(together, expected, atol=1e-3, rtol=2e-2 if together.dtype == torch.bfloat16 else 1e-3)
    except Exception:  # whatever a model makes of an argument that it does not know
        same = False
    finally:
        model.train(training)
    if not same:
        model.set_attn_implementation(before)
    return same


def logits(model: Any, shared: Sequence[int], rows: Sequence[Sequence[int]], keep: Sequence[int]) -> torch.Tensor:
    """Logits (sum of `keep`, V) of the last `keep` tokens of each row, in the order of the rows.

    Args:
        model: One that `can_pack`.
        shared: What all rows begin with; may be empty. Gradients flow through it.
        rows: The rest of each, at least one token.
        keep: How many of a row's last tokens are asked for.
    """
    import torch

    lengths = [len(row) for row in rows]
    masks = [torch.ones(n, len(shared) + n, dtype=torch.bool, device=model.device).tril(len(shared)) for n in lengths]
    places, kept, at = [torch.arange(len(shared))], [], len(shared)
    for n, last in zip(lengths, keep, strict=True):
        places.append(torch.arange(len(shared), len(shared) + n))
        kept.append(torch.arange(at + n - last, at + n))
        at += n
    output = model(
        input_ids=_ids(model, [*shared, *(token for row in rows for token in row)]),
        position_ids=torch.cat(places)[None].to(model.device),
        use_cache=False,
        logits_to_keep=torch.cat(kept).to(model.device),
        packed_rows=Layout(len(shared), tuple(lengths), tuple(masks)),
    )
    found: torch.Tensor = output.logits[0]
    return found


def _ids(model: Any, row: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.tensor([list(row)], device=model.device)


def _use_packed_attention(model: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    packed_rows: Layout | None = None,
    **settings: Any,
) -> tuple[Any, None]:
    """As transformers' `sdpa_attention_forward`: query (1, heads, T, size) -> (1, T, heads, size)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    attend: Any = torch.nn.functional.scaled_dot_product_attention
    rest = {"scale": settings.get("scaling"), "dropout_p": settings.get("dropout", 0.0), "enable_gqa": True}
    sizes = [packed_rows.shared, *packed_rows.lengths]
    (first, *queries), (key0, *keys), (value0, *values) = (one.split(sizes, 2) for one in (query, key, value))
    found = [attend(first, key0, value0, is_causal=True, **rest)] if packed_rows.shared else []
    for q, k, v, mask in zip(queries, keys, values, packed_rows.masks, strict=True):
        behind = (torch.cat([key0, k], 2), torch.cat([value0, v], 2)) if packed_rows.shared else (k, v)
        found.append(attend(q, *behind, attn_mask=mask, **rest))
    return torch.cat(found, 2).transpose(1, 2), None
