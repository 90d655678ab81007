"""Norms, residual sums and gated products, which kernels quantize as soon as they have computed them. All in float32.

Nothing is rounded to a narrower dtype between the steps, so the results are more exact than those of a bfloat16 model.
Sums over a row are computed in float64 and rounded to float32. A kernel adds in float32 in some other order, so its
sums differ by an ulp or two, and its codes by 1 at rare ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.numerics.qparams import divide
from tritonq.reference.epilogue import activate, add_bias


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """(x · r) · weight with r = 1 / √(mean(x²) + eps) of each row.

    Args:
        x: float [M, K].
        weight: float [K], or None for 1.
        eps: ≥ 0.

    Returns:
        float32 [M, K].
    """
    return _scaled(x.float(), weight, eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """((x - mean(x)) · r) · weight + bias with r = 1 / √(mean((x - mean(x))²) + eps) of each row.

    Args:
        x: float [M, K].
        weight, bias: float [K], or None for 1 and 0.
        eps: ≥ 0.

    Returns:
        float32 [M, K].
    """
    values = x.float()
    return add_bias(_scaled(values - _mean(values), weight, eps), bias)


def residual_sum(x: Tensor, residual: Tensor) -> Tensor:
    """The new residual stream: x + residual, of one shape, added in float32 and rounded once to x's dtype."""
    return (x.float() + residual.float()).to(x.dtype)


def gated(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """float32 activation(gate) · up for two float tensors of one shape; `up` None counts as 1."""
    values = activate(gate.float(), activation)
    return values if up is None else values * up.float()


def _scaled(values: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Rows of float32 values divided by their root mean square, columns multiplied by the weight."""
    mean = _mean(values * values)
    # On CPUs torch's float32 square root is sometimes an ulp off. The float64 one, rounded, equals IEEE's.
    root = torch.sqrt((mean + torch.full_like(mean, eps)).double()).float()
    result = values * torch.reciprocal(root)
    return result if weight is None else result * weight.float()


def _mean(values: Tensor) -> Tensor:
    """float32 [M, 1]."""
    return divide(values.sum(dim=1, keepdim=True, dtype=torch.float64).float(), float(values.shape[1]))
