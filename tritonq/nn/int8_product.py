"""The product of a layer whose activations are int8: from codes or floats to codes or floats.

int8_product       codes, or floats on a static layer's grid, × int8 or int4, with an epilogue
dynamic_product    floats, which it quantizes per token, × int8 or int4
gated_product      two static layers of one input, multiplied
activated          the activation between two dynamic layers, which it quantizes per token
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonq import ops
from tritonq.nn.packed_weight import PackedWeight
from tritonq.nn.quantized_tensor import QuantizedTensor


def int8_product(
    layer: PackedWeight,
    x: Tensor | QuantizedTensor,
    activation: str = "none",
    residual: Tensor | QuantizedTensor | None = None,
    in_float: bool = False,
) -> Tensor | QuantizedTensor:
    """activation(x · Wᵀ + b + residual) of int8 codes.

    Args:
        layer: if x is float, a static layer with input qparams. With int4 weights there can be neither activation nor
            residual.
        x: [..., K].
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        residual: [..., N] or None.
        in_float: return float even if the layer has output qparams.

    Returns:
        [..., N]: a QuantizedTensor if the layer has output qparams, else float. The dtype is x's, promoted with the
        residual's.
    """
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    codes, scale, zero_point = _codes(layer, x)
    grid = layer.grid("output")
    if layer.layout.form != "int8":
        return shaped_like(x, ops.int4_int8_linear(codes, scale, *_int4_weight(layer), dtype))
    epilogue: tuple[Any, ...] = (activation, None, None, None)
    if residual is not None:
        values: Any = residual
        own_grid: Any = (None, None)
        if isinstance(residual, QuantizedTensor):
            values, own_grid = residual.data, (residual.scale, residual.zero_point)
        values = values.expand(*x.shape[:-1], layer.out_features).reshape(-1, layer.out_features)
        epilogue = (activation, values, *own_grid)
    inputs = (codes, scale, zero_point, *_weight(layer))
    if in_float or grid[0] is None:
        return shaped_like(x, ops.int8_linear(*inputs, dtype, *epilogue))
    out = ops.int8_linear_requantize(*inputs, *grid, layer.activation_symmetric, *epilogue)
    return _on_output_grid(layer, shaped_like(x, out), scale, dtype)


def gated_product(
    gate: PackedWeight, up: PackedWeight, x: Tensor | QuantizedTensor, activation: str
) -> QuantizedTensor:
    """activation(gate(x)) · up(x) in one kernel, on the grid of gate's output qparams: [..., K] → [..., N]."""
    codes, scale, zero_point = _codes(gate, x)
    assert gate.output_scale is not None
    assert gate.output_zero_point is not None
    out = ops.int8_gated_linear_requantize(
        codes,
        scale,
        zero_point,
        *_weight(gate),
        *_weight(up),
        gate.output_scale,
        gate.output_zero_point,
        gate.activation_symmetric,
        activation,
    )
    return _on_output_grid(gate, out.reshape(*x.shape[:-1], gate.out_features), scale, x.dtype)


def dynamic_product(layer: PackedWeight, x: Tensor) -> Tensor:
    """x · Wᵀ + b of a dynamic layer: float [M, K], columns in the order of its weight, → [M, N] of x's dtype."""
    if layer.layout.form != "int8":
        return ops.int4_int8_linear_dynamic(x, *_int4_weight(layer))
    return ops.int8_linear_dynamic(x, layer.activation_symmetric, *_weight(layer))


def activated(value: Tensor, other: Tensor | None, activation: str, symmetric: bool) -> QuantizedTensor:
    """activation(value) · other, float tensors [..., K] of one shape, None for 1, quantized per token in one pass."""
    features = value.shape[-1]
    factor = None if other is None else other.reshape(-1, features)
    found = ops.gated_quantize_per_token(value.reshape(-1, features), factor, activation, symmetric)
    dtype = value.dtype if other is None else torch.promote_types(value.dtype, other.dtype)
    return per_token(found, value.shape, symmetric, dtype)


def per_token(
    found: Sequence[Tensor], shape: torch.Size, symmetric: bool, dtype: torch.dtype
) -> QuantizedTensor:
    """An operator's (codes, scale, zero point) for rows [M, K], as a QuantizedTensor of `shape`."""
    codes, scale, zero_point = found
    tokens = (*shape[:-1], 1)
    zero = None if symmetric else zero_point.reshape(tokens)
    return QuantizedTensor(codes.reshape(shape), scale.reshape(tokens), zero, dtype)


def quantized_input(layer: PackedWeight, x: Tensor | QuantizedTensor) -> QuantizedTensor:
    """The input [..., K], quantized. A QuantizedTensor stays as it is; a dynamic layer quantizes per token."""
    if isinstance(x, QuantizedTensor):
        return x
    symmetric = layer.activation_symmetric
    if layer.config.dynamic:
        rows = as_rows(x, layer.in_features)
        return per_token(ops.quantize_per_token(rows, symmetric), x.shape, symmetric, x.dtype)
    input_scale, input_zero_point = layer.grid("input")
    assert input_scale is not None
    assert input_zero_point is not None
    codes = ops.quantize_per_tensor(x, input_scale, input_zero_point, symmetric)
    scale = ops.scale_with_history(input_scale, x)
    return QuantizedTensor(codes, scale, input_zero_point, x.dtype)


def _codes(layer: PackedWeight, x: Tensor | QuantizedTensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """An input's (codes [M, K], scale float32 [M, 1] or [1], zero point int8 of the same shape or None)."""
    quantized = quantized_input(layer, x)
    codes = as_rows(quantized.data, layer.in_features)
    order = layer.kernel_weight().input_order
    if order is not None:
        codes = codes.index_select(1, order)
    scale, zero = quantized.scale, quantized.zero_point
    if quantized.per_token:
        scale = scale.reshape(-1, 1).contiguous()
        zero = None if zero is None else zero.reshape(-1, 1).contiguous()
    elif layer.layout.form != "int8":
        scale = scale.expand(len(codes), 1).contiguous()  # the operator needs one per row
    return codes, scale, zero


def as_rows(x: Tensor, features: int) -> Tensor:
    """[..., K] as [M, K]."""
    return x if x.dim() == 2 else x.reshape(-1, features)


def shaped_like(x: Tensor | QuantizedTensor, rows: Tensor) -> Tensor:
    """[M, N] as [..., N]; x is [..., K]."""
    return rows if x.dim() == 2 else rows.reshape(*x.shape[:-1], rows.shape[-1])


def _weight(layer: PackedWeight) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    codes, scales, zero_points, code_sums, _ = layer.kernel_weight()
    assert code_sums is not None
    return codes, scales, zero_points, code_sums, layer.held_bias()


def _int4_weight(layer: PackedWeight) -> tuple[Tensor, Tensor, Tensor | None, int]:
    codes, scales, *_ = layer.kernel_weight()
    return codes, scales, layer.held_bias(), layer.group_size


def _on_output_grid(
    layer: PackedWeight, codes: Tensor, x_scale: Tensor, dtype: torch.dtype
) -> QuantizedTensor:
    assert layer.output_scale is not None
    assert layer.output_zero_point is not None
    scale = ops.scale_with_history(layer.output_scale, x_scale)
    return QuantizedTensor(codes, scale, layer.output_zero_point, dtype)
