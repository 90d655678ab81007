"""int8 activations × int8 weights; the result is float, or int8 on another grid.

Between the exact int32 sum and the one rounding at the end, all is float32, in this order:

    y = fl(fl(float(acc) · x_scale) · w_scale) + bias;  y = y + residual;  y = activation(y)

An int8 result is quantized like any float tensor: v = fl(y · (1 / out_scale)), code = clamp(rint(v) + out_zero).
Without a residual and with activation none or relu, the scales are combined first:

    v = fl(fl(float(acc) · m) + b'),  m = (x_scale · w_scale) / out_scale,  b' = bias / out_scale;  relu: v = max(v, 0)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tritonq.reference.epilogue import activate, add_bias, add_residual
from tritonq.reference.integers import int8_accumulate
from tritonq.reference.normalize import gated
from tritonq.reference.quantize import quantize_per_tensor


class Int8Weight(NamedTuple):
    """A weight of `int8_linear`: codes int8 [N, K], scale [N, 1], zero int8 [N, 1] or None, bias [N] or None."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    bias: Tensor | None = None


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
) -> Tensor:
    """activation((float(acc) · x_scale) · w_scale + bias + residual).

    Args:
        x, x_zero, w, w_zero: as `int8_accumulate`.
        x_scale: float32 [M, 1] or [1].
        w_scale: float [N, 1] or [1, 1].
        bias: float [N] or None.
        dtype: of the result.
        activation: one of `ACTIVATIONS`.
        residual, residual_scale, residual_zero: [M, N], as `add_residual`.

    Returns:
        [M, N].
    """
    sums = int8_accumulate(x, x_zero, w, w_zero)
    epilogue = (activation, residual, residual_scale, residual_zero)
    return int8_output(sums, x_scale, w_scale, bias, dtype, *epilogue)


def int8_output(
    sums: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
) -> Tensor:
    """The second half of `int8_linear`: from sums, int32 [M, N], to the result. Other arguments as there."""
    result = (sums.float() * x_scale.reshape(-1, 1)) * w_scale.float().reshape(1, -1)
    result = add_residual(add_bias(result, bias), residual, residual_scale, residual_zero)
    return activate(result, activation).to(dtype)


def int8_linear_requantize(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    bias: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
) -> Tensor:
    """The same product, quantized to int8 on the grid of the layer that reads it.

    Args:
        x, x_scale, x_zero, w, w_scale, w_zero, bias: as `int8_linear`.
        out_scale: float32 [1].
        out_zero: int8 [1].
        symmetric: output codes in [-127, 127], else [-128, 127].
        activation, residual, residual_scale, residual_zero: as `int8_linear`.

    Returns:
        int8 [M, N].
    """
    sums = int8_accumulate(x, x_zero, w, w_zero)
    epilogue = (activation, residual, residual_scale, residual_zero)
    return int8_output_requantize(sums, x_scale, w_scale, bias, out_scale, out_zero, symmetric, *epilogue)


def int8_output_requantize(
    sums: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
) -> Tensor:
    """The second half of `int8_linear_requantize`: from sums, int32 [M, N], to the codes. Other arguments as there."""
    if residual is not None or activation not in ("none", "relu"):
        epilogue = (activation, residual, residual_scale, residual_zero)
        values = int8_output(sums, x_scale, w_scale, bias, torch.float32, *epilogue)
        return quantize_per_tensor(values, out_scale, out_zero, symmetric)
    multiplier = (x_scale.reshape(-1, 1) * w_scale.float().reshape(1, -1)) / out_scale  # [M or 1, N or 1]
    values = sums.float() * multiplier
    if bias is not None:
        values = values + bias.float() / out_scale
    one = torch.ones_like(out_scale)
    return quantize_per_tensor(activate(values, activation), one, out_zero, symmetric)


def int8_gated_linear_requantize(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    gate: Int8Weight,
    up: Int8Weight,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    activation: str,
) -> Tensor:
    """activation(x · gateᵀ) · (x · upᵀ): two products of one x, the middle of a gated MLP.

    Args:
        x, x_scale, x_zero: as `int8_linear`.
        gate, up: two weights of one shape.
        out_scale, out_zero, symmetric: as `int8_linear_requantize`.
        activation: one of `ACTIVATIONS`.

    Returns:
        int8 [M, N].
    """
    gates = int8_linear(x, x_scale, x_zero, *gate, torch.float32)
    ups = int8_linear(x, x_scale, x_zero, *up, torch.float32)
    return quantize_per_tensor(gated(gates, ups, activation), out_scale, out_zero, symmetric)
