"""Layers that are quantized as several Linears: which they are, and what takes their place.

    nn.LSTM, nn.GRU, nn.RNN                 recurrent.py
    nn.LSTMCell, nn.GRUCell, nn.RNNCell     recurrent_cells.py
    nn.MultiheadAttention                   attention.py
    nn.Embedding, nn.EmbeddingBag           embedding.py

Each of these computes what torch's layer does, with Linears that hold its values.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tritonq.nn import attention, embedding, recurrent, recurrent_cells

_REPLACEMENTS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.LSTM: recurrent.LSTM,
    nn.GRU: recurrent.GRU,
    nn.RNN: recurrent.RNN,
    nn.LSTMCell: recurrent_cells.LSTMCell,
    nn.GRUCell: recurrent_cells.GRUCell,
    nn.RNNCell: recurrent_cells.RNNCell,
    nn.MultiheadAttention: attention.MultiheadAttention,
    nn.Embedding: embedding.Embedding,
    nn.EmbeddingBag: embedding.EmbeddingBag,
}
_SPLIT = (
    recurrent.Recurrent,
    recurrent_cells.RecurrentCell,
    attention.MultiheadAttention,
    embedding.Embedding,
    embedding.EmbeddingBag,
)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
#: What torch's quantize_dynamic passes over, and so do configs that do not name it.
_ONLY_NAMED = (nn.RNN, *_TABLES)


def is_splittable(module: nn.Module) -> bool:
    """True for a layer of torch that computes with its own Parameters, not through Linears."""
    kind = _kind(module)
    return (
        kind is not None
        and type(module).forward is kind.forward
        and "forward" not in vars(module)
        and getattr(module, "max_norm", None) is None  # an embedding's lookups would change the table
        and all(module._parameters.get(name) is not None for name in _weight_names(module))
    )


def is_split(module: nn.Module) -> bool:
    """True for what took the place of a splittable layer, and has other names for its tensors."""
    return isinstance(module, _SPLIT)


def only_named(module: nn.Module) -> bool:
    """True for a splittable layer that is quantized only where a config names it."""
    return isinstance(module, _ONLY_NAMED)


def is_table(module: nn.Module) -> bool:
    """True for an embedding, whose weight may be that of a head too."""
    return isinstance(module, _TABLES)


def split(module: nn.Module, name: str, head: nn.Module | None = None) -> nn.Module:
    """What takes the place of a splittable layer: Linears on its Parameters.

    Args:
        name: for messages.
        head: of an embedding, the Linear that has the same weight, and is then shared.
    """
    kind = _kind(module)
    assert kind is not None
    return _REPLACEMENTS[kind](module, name) if head is None else _REPLACEMENTS[kind](module, name, head)


def _kind(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in _REPLACEMENTS if isinstance(module, kind)), None)


def _weight_names(module: nn.Module) -> list[str]:
    """Names of Parameters that weight_norm, pruning and the like take away to compute them."""
    if isinstance(module, nn.RNNBase):
        return [name for names in module._all_weights for name in names if name.startswith("weight")]
    if isinstance(module, nn.MultiheadAttention):
        one = module._qkv_same_embed_dim
        return ["in_proj_weight"] if one else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    return ["weight_ih", "weight_hh"] if isinstance(module, nn.RNNCellBase) else ["weight"]
