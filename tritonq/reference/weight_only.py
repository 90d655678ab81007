"""Float activations × dequantized weights, and the gradient through them."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.numerics import qparams
from tritonq.reference.epilogue import add_bias


def weight_only_linear(
    x: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None, bias: Tensor | None, group_size: int
) -> Tensor:
    """x · ((w - w_zero) · w_scale)ᵀ + bias, computed in float32, rounded once to x's dtype.

    Args:
        x: float [M, K].
        w: int8 codes [N, K].
        w_scale: float [N or 1, G].
        w_zero: int8 [N or 1, G] or None.
        bias: float [N] or None.
        group_size: columns per group.

    Returns:
        [M, N] of x's dtype.
    """
    columns = w.shape[1]
    zero = None if w_zero is None else qparams.expand_groups(w_zero, columns, group_size)
    weight = qparams.dequantize(w, qparams.expand_groups(w_scale, columns, group_size), zero, torch.float32)
    return add_bias(x.float() @ weight.t(), bias).to(x.dtype)


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
