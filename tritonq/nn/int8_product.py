"""The int8 product of a static layer, with all that its epilogue holds: from codes or floats to codes or floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritonq import ops
from tritonq.tensor import QuantizedTensor

if TYPE_CHECKING:
    from tritonq.nn.linear import QuantizedLinear


def int8_product(
    layer: QuantizedLinear,
    x: Tensor | QuantizedTensor,
    activation: str = "none",
    residual: Tensor | QuantizedTensor | None = None,
    in_float: bool = False,
) -> Tensor | QuantizedTensor:
    """activation(x · Wᵀ + b + residual) of a static layer.

    Args:
        layer: int8 × int8; where x is float, with input qparams.
        x: [..., K].
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        residual: [..., N] or None.
        in_float: return float although the layer has output qparams.

    Returns:
        [..., N]: a QuantizedTensor where the layer has output qparams, else float; of the dtype that x stands for,
        promoted with the residual's.
    """
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    codes, scale, zero_point = _codes(layer, x)
    shape = (*x.shape[:-1], layer.out_features)
    words: dict[str, Any] = {"activation": activation}
    if isinstance(residual, QuantizedTensor):
        words["residual"] = residual.data.expand(shape).reshape(-1, layer.out_features)
        words.update(residual_scale=residual.scale, residual_zero=residual.zero_point)
    elif residual is not None:
        words["residual"] = residual.expand(shape).reshape(-1, layer.out_features)
    inputs = (codes, scale, zero_point, *_weight(layer))
    if in_float or layer.output_scale is None:
        return ops.int8_linear(*inputs, dtype, **words).reshape(shape)
    assert layer.output_zero_point is not None
    grid = (layer.output_scale, layer.output_zero_point, layer.activation_symmetric)
    out = ops.int8_linear_requantize(*inputs, *grid, **words)
    return _handed_over(layer, out.reshape(shape), scale, dtype)


def gated_product(
    gate: QuantizedLinear, up: QuantizedLinear, x: Tensor | QuantizedTensor, activation: str
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
    return _handed_over(gate, out.reshape(*x.shape[:-1], gate.out_features), scale, x.dtype)


def quantized_input(layer: QuantizedLinear, x: Tensor | QuantizedTensor) -> QuantizedTensor:
    """An input [..., K] on the layer's grid, or on the one that it came with."""
    if isinstance(x, QuantizedTensor):
        return x
    assert layer.input_scale is not None
    assert layer.input_zero_point is not None
    rows = x.reshape(-1, layer.in_features)
    codes = ops.quantize_per_tensor(
        rows, layer.input_scale, layer.input_zero_point, layer.activation_symmetric
    )
    scale = ops.scale_with_history(layer.input_scale, x)
    return QuantizedTensor(codes.reshape(x.shape), scale, layer.input_zero_point, x.dtype)


def _codes(layer: QuantizedLinear, x: Tensor | QuantizedTensor) -> tuple[Tensor, Tensor, Tensor]:
    """(codes [M, K], scale, zero point) of an input."""
    quantized = quantized_input(layer, x)
    return quantized.data.reshape(-1, layer.in_features), quantized.scale, quantized.zero_point


def _weight(layer: QuantizedLinear) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    assert layer.code_sums is not None
    return layer.packed_weight, layer.scales, layer.zero_points, layer.code_sums, layer.bias


def _handed_over(
    layer: QuantizedLinear, codes: Tensor, x_scale: Tensor, dtype: torch.dtype
) -> QuantizedTensor:
    assert layer.output_scale is not None
    assert layer.output_zero_point is not None
    scale = ops.scale_with_history(layer.output_scale, x_scale)
    return QuantizedTensor(codes, scale, layer.output_zero_point, dtype)
