"""Converts a layer's tensors from other programs' layouts to tritonq's (numerics/checkpoint_layout.py).

Other programs may store the same codes in other ways than tritonq does:

    int8 × int8 packed into words               → weight int8 [N, K]
    weight-only or int4, one int8 per code      → weight_packed, weight_shape
    their zero points                           → packed or not, like the weight
    a zero point of a symmetric tensor, all 0   → dropped
    a scalar scale or zero point                → [1]
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tritonq.numerics import checkpoint_layout, int32_words
from tritonq.numerics.config import QuantConfig


def weight_names(config: QuantConfig, packed: bool) -> list[str]:
    """The names of a weight's tensors in a file, without bias."""
    names = ["weight_packed", "weight_shape"] if packed else ["weight"]
    return [*names, "weight_scale", *([] if config.weight.symmetric else ["weight_zero_point"])]


def needless_names(config: QuantConfig) -> list[str]:
    """Zero points that a symmetric scheme does not need but that some writers store."""
    symmetric_input = config.static and config.activation is not None and config.activation.symmetric
    return [
        *(["weight_zero_point"] if config.weight.symmetric else []),
        *(["input_zero_point"] if symmetric_input else []),
    ]


def to_canonical(
    config: QuantConfig, packed: bool, in_features: int, out_features: int, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A layer's tensors in tritonq's layout for `config`.

    Args:
        config: of the layer.
        packed: True if the file's codes are packed into int32 words.
        in_features, out_features: K and N.
        state: tensors by name, as they are in the file.

    Raises:
        ValueError: a tensor does not fit; the message begins with its name. Properties common to both layouts are
            checked later, by `read_weight_state`.
    """
    result = {name: tensor.reshape(1) if tensor.dim() == 0 else tensor for name, tensor in state.items()}
    _drop_zeros(config, result)
    spec = config.weight
    groups = -(-in_features // spec.resolve_group_size(in_features))
    zero_shape = (1, 1) if spec.granularity == "tensor" else (out_features, groups)
    if checkpoint_layout.is_packed(config):
        if not packed:
            _pack_weight(result, spec.bits, (out_features, in_features))
    elif packed:
        _unpack_weight(result, spec.bits, (out_features, in_features))
    if not spec.symmetric:
        stored = result["weight_zero_point"].dtype
        if checkpoint_layout.zero_points_are_packed(config) and stored == torch.int8:
            _pack_zero_point(result, spec.bits, zero_shape)
        elif not checkpoint_layout.zero_points_are_packed(config) and stored == torch.int32:
            _unpack_zero_point(result, spec.bits, zero_shape)
            if spec.granularity == "tensor":
                result["weight_zero_point"] = result["weight_zero_point"].reshape(1)
    return result


def _pack_weight(state: dict[str, Tensor], bits: int, shape: tuple[int, int]) -> None:
    codes = checkpoint_layout.expect(state, "weight", shape, (torch.int8,))
    _check_range(codes, "weight", bits)
    state["weight_packed"] = int32_words.pack_int32(codes, bits)
    state["weight_shape"] = torch.tensor(shape, dtype=torch.int64)


def _unpack_weight(state: dict[str, Tensor], bits: int, shape: tuple[int, int]) -> None:
    words = checkpoint_layout.expect(
        state, "weight_packed", (shape[0], int32_words.packed_width(shape[1], bits)), (torch.int32,)
    )
    found = checkpoint_layout.expect(state, "weight_shape", (2,), (torch.int64,)).tolist()
    if found != list(shape):
        raise ValueError(f"weight_shape must be {list(shape)}, found {found}")
    state["weight"] = int32_words.unpack_int32(words, bits, shape[1])


def _pack_zero_point(state: dict[str, Tensor], bits: int, shape: tuple[int, int]) -> None:
    """[N, G] → words along N."""
    zero_point = checkpoint_layout.expect(state, "weight_zero_point", shape, (torch.int8,))
    _check_range(zero_point, "weight_zero_point", bits)
    state["weight_zero_point"] = int32_words.pack_int32(zero_point.t(), bits).t().contiguous()


def _unpack_zero_point(state: dict[str, Tensor], bits: int, shape: tuple[int, int]) -> None:
    """Words along N → [N, G]."""
    width = int32_words.packed_width(shape[0], bits)
    words = checkpoint_layout.expect(state, "weight_zero_point", (width, shape[1]), (torch.int32,))
    state["weight_zero_point"] = int32_words.unpack_int32(words.t(), bits, shape[0]).t()


def _check_range(codes: Tensor, name: str, bits: int) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if codes.numel() and (codes.amin() < low or codes.amax() > high):
        found = f"{int(codes.amin())} … {int(codes.amax())}"
        raise ValueError(f"{name} must hold codes in {low} … {high}, found {found}")


def _drop_zeros(config: QuantConfig, state: dict[str, Tensor]) -> None:
    for name in needless_names(config):
        if name in state and state.pop(name).any():
            raise ValueError(f"{name} must be absent or zero in a symmetric scheme, found other values")
