"""Quantizes float activations to int8: each row on its own grid, or all on a given one."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.numerics import qparams


def quantize_per_token(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize each row on its own grid. A row that holds NaN or Inf gets scale NaN and codes 0.

    Args:
        x: float [M, K].
        symmetric: codes in [-127, 127] and zero point 0; else affine, codes in [-128, 127].

    Returns:
        codes int8 [M, K], scale float32 [M, 1], zero point int8 [M, 1].
    """
    values = x.float()
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)  # NaN, if there is one
    finite = torch.isfinite(low) & torch.isfinite(high)
    low, high = torch.where(finite, low, 0.0), torch.where(finite, high, 0.0)
    if symmetric:
        qmin = -127
        scale = qparams.symmetric_scale(torch.maximum(-low, high), qmin, 127)
        zero_point = torch.zeros_like(scale, dtype=torch.int8)
    else:
        qmin = -128
        scale, zero_point = qparams.affine_qparams(low, high, qmin, 127)
        zero_point = torch.where(finite, zero_point, torch.zeros_like(zero_point))
    codes = torch.where(finite, qparams.quantize(values, scale, zero_point, qmin, 127), 0)
    return codes.to(torch.int8), torch.where(finite, scale, torch.full_like(scale, torch.nan)), zero_point


def quantize_per_tensor(x: Tensor, scale: Tensor, zero_point: Tensor, symmetric: bool) -> Tensor:
    """Quantize with a given grid: ±Inf saturates, NaN takes the zero point's code.

    Args:
        x: float, any shape.
        scale: float32 [1].
        zero_point: int8 [1].
        symmetric: codes in [-127, 127], else [-128, 127].

    Returns:
        int8 codes of x's shape.
    """
    codes = qparams.quantize(x, scale, zero_point, -127 if symmetric else -128, 127)
    return codes.reshape(x.shape)  # the scale's shape [1] has broadcast a scalar to [1]
