"""What decoding many rows side by side needs of a model: its body and vocabulary head apart, and a cache in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage.configs.errors import UserError

if TYPE_CHECKING:
    import torch

_TRIED_TOKENS = 8
_FEW = 0.1
"""Share of the vocabulary up to which picked rows are multiplied instead of all."""


def refuse_shared_rows(model: Any) -> None:
    """Stop where what stands in one row moves another's scores: no clip bounds what a record does that way.

    Raises:
        UserError: it is such a model.
    """
    import torch

    refuse_kind(model.config)
    own = torch.arange(_TRIED_TOKENS) % model.config.get_text_config().vocab_size
    others = (torch.zeros_like(own), model.config.get_text_config().vocab_size - 1 - own)
    with torch.inference_mode():
        first, second = (
            model(input_ids=torch.stack([own, one, one]).to(model.device), use_cache=False).logits[0] for one in others
        )
    if not bool((first == second).all()):
        raise shared_rows("gives a row other scores when other rows change")


def refuse_kind(config: Any) -> None:
    """Stop at a kind of model whose rows are not computed apart on some texts, whatever shows on those that are tried.

    Mixtures of experts share their experts' places. Quantised models may scale activations by the largest in the whole
    batch, or choose columns by it.

    Raises:
        UserError: it is such a kind.
    """
    text = config.get_text_config()
    if any((getattr(text, name, None) or 0) > 1 for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        raise shared_rows("is a mixture of experts")
    if getattr(config, "quantization_config", None) is not None:
        raise shared_rows("is quantised")


def shared_rows(fault: str) -> UserError:
    """What is said of a model whose rows are not computed apart."""
    return UserError(
        f"private prediction needs a model whose rows are computed apart; this one {fault}",
        key="teach.model",
        remedy="take a dense model with unquantised weights, or privacy.mechanism private_evolution",
    )


class Head:
    """A model as body and vocabulary head, so that private rows are scored on the candidates alone.

    Where the model does more to its logits than multiply (it caps or scales them), `state` holds whole logits instead.
    """

    def __init__(self, model: Any) -> None:
        import torch

        self.model, self.body, self.head = model, model.get_decoder(), model.get_output_embeddings()
        probe = torch.arange(4, device=model.device)[None]
        with torch.inference_mode():
            split = self.head(self.body(input_ids=probe, use_cache=False).last_hidden_state[:, -1])
            whole = model(input_ids=probe, use_cache=False, logits_to_keep=1).logits[:, -1]
        self.plain = bool(torch.equal(split, whole))
        self.size: int = self.head.weight.shape[1] if self.plain else whole.shape[-1]

    def run(self, **inputs: Any) -> torch.Tensor:
        """The last position's state (rows, size)."""
        if self.plain:
            state: torch.Tensor = self.body(**inputs).last_hidden_state[:, -1]
        else:
            state = self.model(**inputs, logits_to_keep=1).logits[:, -1]
        return state

    def scores(self, state: torch.Tensor) -> torch.Tensor:
        """(..., size) -> (..., V)."""
        return self.head(state) if self.plain else state

    def scores_of(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(S, places, size) and tokens (S, texts, K) -> (S, texts, places, K)."""
        import torch

        texts = tokens.shape[1]
        # Picking rows of the vocabulary pays while there are few: unclipped, there are thousands.
        if not self.plain or texts * tokens.shape[-1] > _FEW * self.head.weight.shape[0]:
            wide = self.scores(state)[:, None].expand(-1, texts, -1, -1)
            return wide.gather(-1, tokens[:, :, None].expand(-1, -1, state.shape[1], -1))
        found = torch.einsum("smd,sykd->symk", state, self.head.weight[tokens])
        if self.head.bias is not None:
            found = found + self.head.bias[tokens][:, :, None]
        return found


class RowCache:
    """Keys and values of all rows, allocated once and written in place, each row at a column of its own."""

    def __init__(self, model: Any, rows: int, capacity: int) -> None:
        from transformers import DynamicCache

        self.rows, self.capacity, self.used = rows, capacity, 0
        self.columns: torch.Tensor
        self.layers: list[Any] = [_layer(self) for _ in range(model.config.get_text_config().num_hidden_layers)]
        self.made = DynamicCache()
        self.made.layers = self.layers

    def put(self, rows: torch.Tensor, prompts: Any) -> None:
        """Copy the keys and values of prompts into rows."""
        for own, layer in zip(self.layers, prompts.layers, strict=True):
            own.put(rows, layer.keys, layer.values)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep some rows only."""
        self.rows = len(rows)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]


def _layer(owner: RowCache) -> Any:
    """One layer's keys and values (rows, heads, capacity, head size), as transformers' caches hold them."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):
        keys: torch.Tensor
        values: torch.Tensor

        def put(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
            if not self.is_initialized:
                shape = (owner.rows, keys.shape[1], owner.capacity, keys.shape[3])
                self.keys, self.values = keys.new_zeros(shape), values.new_zeros(shape)
                self.is_initialized = True
            self.keys[rows, :, : keys.shape[2]] = keys
            self.values[rows, :, : values.shape[2]] = values

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            every = torch.arange(owner.rows, device=key_states.device)
            self.keys[every, :, owner.columns] = key_states[:, :, 0]
            self.values[every, :, owner.columns] = value_states[:, :, 0]
            return self.keys[:, :, : owner.used], self.values[:, :, : owner.used]

        def get_seq_length(self) -> int:
            return owner.used

    return Layer()
