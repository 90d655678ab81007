"""Converts a quantized weight to the tensors of a checkpoint, and back with every value checked.

The layout is that of compressed-tensors: `int-quantized` for int8 weights with int8 activations, else `pack-quantized`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from tritonq.numerics import int32_words, qparams
from tritonq.numerics.config import QuantConfig

#: Rows → their codes, int8 [rows, K].
CodeReader = Callable[[slice], Tensor]


def is_packed(config: QuantConfig) -> bool:
    """True for `pack-quantized`: weight-only schemes, and int4 weights with any activation."""
    return config.weight_only or config.weight.bits == 4


def zero_points_are_packed(config: QuantConfig) -> bool:
    """True if zero points are packed into int32 words: with packed codes, unless one serves the whole tensor."""
    return is_packed(config) and config.weight.granularity != "tensor"


def weight_state(
    config: QuantConfig, codes: Tensor, scale: Tensor, zero_point: Tensor | None
) -> dict[str, Tensor]:
    """Tensors by name from codes int8 [N, K], scale [N, G] and zero point int8 [N, G] or None.

    With granularity "tensor", all rows of scale and zero point must be equal: only the first is stored.
    """
    bits = config.weight.bits
    per_tensor = config.weight.granularity == "tensor"
    if per_tensor:
        scale, zero_point = scale[:1, 0], None if zero_point is None else zero_point[:1]
    state = {"weight_scale": scale.contiguous()}
    if is_packed(config):
        state["weight_packed"] = int32_words.pack_int32(codes, bits)
        state["weight_shape"] = torch.tensor(codes.shape, dtype=torch.int64, device=codes.device)
    else:
        state["weight"] = codes.contiguous()
    if zero_point is not None and zero_points_are_packed(config):
        state["weight_zero_point"] = int32_words.pack_int32(zero_point.t(), bits).t().contiguous()
    elif zero_point is not None:
        state["weight_zero_point"] = zero_point[:, 0].contiguous() if per_tensor else zero_point.contiguous()
    return state


def empty_weight_state(
    config: QuantConfig,
    in_features: int,
    out_features: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> dict[str, Tensor]:
    """The tensors of a weight [N, K] with all codes, scales and zero points 0, the scale first.

    Args:
        dtype: the scale's.
    """
    spec = config.weight
    groups = -(-in_features // spec.resolve_group_size(in_features))
    per_tensor = spec.granularity == "tensor"

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    state = {
        "weight_scale": zeros(1, dtype=dtype) if per_tensor else zeros(out_features, groups, dtype=dtype)
    }
    if is_packed(config):
        state["weight_packed"] = zeros(out_features, int32_words.packed_width(in_features, spec.bits))
        state["weight_shape"] = torch.tensor([out_features, in_features], dtype=torch.int64, device=device)
    else:
        state["weight"] = zeros(out_features, in_features, dtype=torch.int8)
    if not spec.symmetric and zero_points_are_packed(config):
        state["weight_zero_point"] = zeros(int32_words.packed_width(out_features, spec.bits), groups)
    elif not spec.symmetric:
        shape = (1,) if per_tensor else (out_features, groups)
        state["weight_zero_point"] = zeros(*shape, dtype=torch.int8)
    return state


def read_weight_state(
    config: QuantConfig, in_features: int, out_features: int, state: Mapping[str, Tensor]
) -> tuple[CodeReader, Tensor, Tensor | None]:
    """The inverse of `weight_state`: a reader of codes, scale [N or 1, G], zero point int8 [N or 1, G] or None.

    The reader takes a slice of rows and returns their codes, int8 [rows, K], so a large weight can be unpacked in
    parts. Tensors on the meta device have no values, which then go unchecked.

    Raises:
        ValueError: a tensor is missing or has a wrong dtype, shape or value; the message names it.
    """
    spec = config.weight
    groups = -(-in_features // spec.resolve_group_size(in_features))
    per_tensor = spec.granularity == "tensor"
    if is_packed(config):  # first: the shapes checked below follow from it
        stored_shape = expect(state, "weight_shape", (2,), (torch.int64,))
        if not stored_shape.is_meta and stored_shape.tolist() != [out_features, in_features]:
            raise ValueError(
                f"weight_shape must be {[out_features, in_features]}, found {stored_shape.tolist()}"
            )
    rows = 1 if per_tensor else out_features
    scale = expect(state, "weight_scale", (1,) if per_tensor else (rows, groups), qparams.FLOAT_DTYPES)
    check_scale(scale, "weight_scale")
    zero_point = None
    if is_packed(config):
        width = int32_words.packed_width(in_features, spec.bits)
        words = expect(state, "weight_packed", (out_features, width), (torch.int32,))
        read_codes: CodeReader = functools.partial(_unpacked, words, spec.bits, in_features)
    else:
        read_codes = functools.partial(
            _stored, expect(state, "weight", (out_features, in_features), (torch.int8,))
        )
    if not spec.symmetric:
        if zero_points_are_packed(config):
            width = int32_words.packed_width(rows, spec.bits)
            zero_words = expect(state, "weight_zero_point", (width, groups), (torch.int32,))
            zero_point = int32_words.unpack_int32(zero_words.t(), spec.bits, rows).t()
        else:
            shape = (1,) if per_tensor else (rows, groups)
            zero_point = expect(state, "weight_zero_point", shape, (torch.int8,)).reshape(rows, groups)
            if not zero_point.is_meta and (zero_point.amin() < spec.qmin or zero_point.amax() > spec.qmax):
                raise ValueError(
                    f"weight_zero_point must lie in {spec.qmin} … {spec.qmax}, found other values"
                )
    return read_codes, scale.reshape(rows, groups), zero_point


def check_scale(scale: Tensor, name: str) -> None:
    """Raise a ValueError unless all scales of a weight are finite and ≥ 0.

    0 is allowed because other programs write it for rows of zeros.
    """
    if not scale.is_meta and not (torch.isfinite(scale) & (scale >= 0)).all():
        found = "NaN or Inf" if not torch.isfinite(scale).all() else f"{scale.amin().item()}"
        raise ValueError(f"{name} must be finite and not negative, found {found}")


def group_of_column(order: Tensor, group_size: int) -> Tensor:
    """weight_g_idx int32 [K], the group of each column, from the order int32 [K] that sorts columns by group."""
    groups = torch.arange(order.numel(), dtype=torch.int32, device=order.device) // group_size
    return torch.empty_like(groups).index_copy_(0, order.long(), groups)


def read_input_order(
    in_features: int, group_size: int, state: Mapping[str, Tensor], name: str = "weight_g_idx"
) -> Tensor | None:
    """The inverse of `group_of_column`: the order int32 [K] that sorts columns by group; stable within a group.

    None if the columns are in order already, if the tensor is missing, or if it is all -1, which is how
    compressed-tensors marks an unset one.

    Raises:
        ValueError: the tensor has a wrong dtype or shape, names groups that do not exist, or does not give each group
            `group_size` columns (the last group takes the rest).
    """
    if name not in state:
        return None
    groups = expect(state, name, (in_features,), (torch.int32,))
    order = torch.argsort(groups, stable=True).to(torch.int32)
    if groups.is_meta:
        return order
    low, high, last = int(groups.amin()), int(groups.amax()), (in_features - 1) // group_size
    if low == high == -1:
        return None
    if low < 0 or high > last:
        raise ValueError(f"{name} must hold groups 0 … {last}, found {low} … {high}")
    in_order = torch.arange(in_features, dtype=torch.int32, device=groups.device)
    if not torch.equal(groups[order], in_order // group_size):
        counts = torch.bincount(groups, minlength=last + 1).tolist()
        raise ValueError(
            f"{name} must give each group {group_size} columns and the last one the rest, found {_some(counts)}"
        )
    return None if torch.equal(order, in_order) else order


def _unpacked(words: Tensor, bits: int, in_features: int, rows: slice) -> Tensor:
    return int32_words.unpack_int32(words[rows], bits, in_features)


def _stored(codes: Tensor, rows: slice) -> Tensor:
    return codes[rows]


def read_activation_qparams(state: Mapping[str, Tensor], side: str, affine: bool) -> tuple[Tensor, Tensor]:
    """(scale float32 [1], zero point int8 [1]) of `side` "input" or "output"; without `affine` the zero point is 0."""
    scale = expect(state, f"{side}_scale", (1,), qparams.FLOAT_DTYPES).float()
    if not scale.is_meta and not (torch.isfinite(scale) & (scale > 0)).all():
        raise ValueError(f"{side}_scale must be finite and positive, found {scale.item()}")
    if not affine:
        return scale, torch.zeros(1, dtype=torch.int8, device=scale.device)
    return scale, expect(state, f"{side}_zero_point", (1,), (torch.int8,))


def expect(
    state: Mapping[str, Tensor], name: str, shape: tuple[int, ...], dtypes: Collection[torch.dtype]
) -> Tensor:
    """The tensor `name`, or a ValueError if it is missing or has another shape or dtype."""
    if name not in state:
        raise ValueError(f"{name} is missing")
    tensor = state[name]
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise ValueError(f"{name} must be {allowed} {list(shape)}, found {found}")
    return tensor


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" …" if len(numbers) > 8 else "")
