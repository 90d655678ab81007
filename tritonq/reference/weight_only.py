"""Float activations × dequantized weights, and the gradient through them."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.numerics import qparams
from tritonq.reference.epilogue import activate, add_bias
from tritonq.reference.quantize import quantize_per_tensor


def weight_only_linear(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    activation: str = "none",
) -> Tensor:
    """activation(x · ((w - w_zero) · w_scale)ᵀ + bias), computed in float32, rounded once to x's dtype.

    Args:
        x: float [M, K].
        w: int8 codes [N, K].
        w_scale: float [N or 1, G].
        w_zero: int8 [N or 1, G] or None.
        bias: float [N] or None.
        group_size: columns per group.
        activation: one of `ACTIVATIONS`.

    Returns:
        [M, N] of x's dtype.
    """
    return _product(x, w, w_scale, w_zero, bias, group_size, activation).to(x.dtype)


def weight_only_linear_requantize(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    activation: str = "none",
) -> Tensor:
    """The same product, quantized from float32 to int8 on the grid of the layer that reads it.

    Args:
        x, w, w_scale, w_zero, bias, group_size, activation: as `weight_only_linear`.
        out_scale: float32 [1].
        out_zero: int8 [1].
        symmetric: output codes in [-127, 127], else [-128, 127].

    Returns:
        int8 [M, N].
    """
    values = _product(x, w, w_scale, w_zero, bias, group_size, activation)
    return quantize_per_tensor(values, out_scale, out_zero, symmetric)


def _product(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    activation: str,
) -> Tensor:
    """float32 [M, N]."""
    columns = w.shape[1]
    zero = None if w_zero is None else qparams.expand_groups(w_zero, columns, group_size)
    weight = qparams.dequantize(w, qparams.expand_groups(w_scale, columns, group_size), zero, torch.float32)
    return activate(add_bias(x.float() @ weight.t(), bias), activation)


def weight_only_input_gradient(
    gradient: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None, group_size: int
) -> Tensor:
    """gradient · (w - w_zero) · w_scale, the weight rounded to the gradient's dtype.

    Args:
        gradient: float [M, N].
        w, w_scale, w_zero, group_size: as `weight_only_linear`.

    Returns:
        [M, K] of gradient's dtype.
    """
    columns = w.shape[1]
    zero = None if w_zero is None else qparams.expand_groups(w_zero, columns, group_size)
    scale = qparams.expand_groups(w_scale, columns, group_size)
    return gradient @ qparams.dequantize(w, scale, zero, gradient.dtype)
