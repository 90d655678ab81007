"""The steps between a product and its rounding: bias, residual, activation, all in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tritonq.numerics import qparams

#: Beyond ± this the smooth activations are 0 or y in float32. Formulas give NaN at -Inf; torch with oneDNN at Inf too.
_BOUND = 128.0

_SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
    "silu": functional.silu,
}
#: Names of what `activate` computes.
ACTIVATIONS = ("none", "relu", *_SMOOTH)


def activate(y: Tensor, activation: str) -> Tensor:
    """float32 activation(y): none, relu, gelu (through erf), gelu_tanh or silu; -Inf gives 0, NaN stays NaN."""
    if activation == "none":
        return y
    if activation == "relu":
        return torch.relu(y)
    return torch.where(y > _BOUND, y, _SMOOTH[activation](y.clamp(-_BOUND, _BOUND)))


def add_bias(values: Tensor, bias: Tensor | None) -> Tensor:
    """float32 [M, N] + float [N]."""
    return values if bias is None else values + bias.float()


def add_residual(
    values: Tensor, residual: Tensor | None, scale: Tensor | None, zero: Tensor | None
) -> Tensor:
    """float32 values + the residual, dequantized if it is int8.

    Args:
        values: float32, any shape.
        residual: float, or int8 codes; of the values' shape; or None.
        scale: float32 [1] of int8 codes, else None.
        zero: int8 [1] of int8 codes, or None for 0.
    """
    if residual is None:
        return values
    if scale is None:
        return values + residual.float()
    return values + qparams.dequantize(residual, scale, zero, torch.float32)
