"""Scales and zero points: the integer grid that covers the range of a tensor's values.

    symmetric   scale = amax / ((qmax - qmin) / 2)                      zero point = 0
    affine      scale = max / R - min / R,  R = qmax - qmin             zero point = clamp(qmin - rint(min / scale))

The range is first widened to contain 0, so that 0.0 is exactly a grid point (padding, ReLU and masks need it). All
arithmetic is IEEE float32. A weight's scale is rounded to the dtype that stores it, and the codes are computed with
the rounded scale, so a file holds the scale that its codes were made with. A scale never underflows to 0: its floor is
the smallest normal number (for float16 the smallest subnormal, 2^-24). A tensor of zeros gets scale 1.

Formulas: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", 2018, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.numerics.config import QuantSpec

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SCALE_FLOOR = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126}


def divide(numerator: Tensor, denominator: float) -> Tensor:
    """float32 division, correctly rounded on every device (CUDA multiplies by the reciprocal of a Python number)."""
    return numerator / torch.full((), denominator, dtype=torch.float32, device=numerator.device)


def symmetric_scale(amax: Tensor, qmin: int, qmax: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale of a symmetric grid.

    Args:
        amax: float32, any shape: the largest magnitudes, ≥ 0.
        qmin, qmax: the code range.
        dtype: the dtype that stores the scale.

    Returns:
        Tensor of `amax`'s shape and of `dtype`, > 0.
    """
    return _storable(divide(amax, (qmax - qmin) / 2), amax == 0, dtype)


def affine_qparams(
    low: Tensor, high: Tensor, qmin: int, qmax: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of an affine grid that covers [min(low, 0), max(high, 0)].

    Args:
        low, high: float32, one shape: smallest and largest values.
        qmin, qmax: the code range.
        dtype: the dtype that stores the scale.

    Returns:
        (scale, zero point): `dtype` and int8, of the inputs' shape.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    levels = float(qmax - qmin)
    scale = _storable(divide(high, levels) - divide(low, levels), (low == 0) & (high == 0), dtype)
    zero = (qmin - torch.round(low / scale.float())).clamp(qmin, qmax)
    return scale, zero.to(torch.int8)


def inverse(scale: Tensor) -> Tensor:
    """1 / scale in float32, the factor that `quantize` multiplies with."""
    return torch.reciprocal(scale.float())


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, qmin: int, qmax: int) -> Tensor:
    """code = clamp(rint(fl(x · (1/scale))) + zero_point), rint being half to even; NaN takes the zero point's code.

    Args:
        x: float, any shape.
        scale: > 0, broadcasts against x.
        zero_point: int8, broadcasts against x, or None for 0.
        qmin, qmax: the code range.

    Returns:
        int8 codes of x's shape.
    """
    scaled = (x.float() * inverse(scale)).nan_to_num_(0.0, torch.inf, -torch.inf)
    # Clamping first is the same, because the bounds are integers, and rint then sees small numbers only.
    if zero_point is None:
        return scaled.clamp_(qmin, qmax).round_().to(torch.int8)
    zero = zero_point.float()
    return torch.clamp(scaled, qmin - zero, qmax - zero).round_().add_(zero).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(code - zero_point) · scale, computed in float32, rounded once to `dtype`."""
    values = codes.float()
    if zero_point is not None:
        values = values - zero_point.float()
    return (values * scale.float()).to(dtype)


def expand_groups(per_group: Tensor, in_features: int, group_size: int) -> Tensor:
    """[N or 1, groups] → [N or 1, K]: each column gets its group's value; one group broadcasts as [·, 1]."""
    if per_group.shape[1] == 1:
        return per_group
    return per_group.repeat_interleave(group_size, dim=1)[:, :in_features]


def weight_qparams(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of a weight, from the extremes of each tensor, channel or group.

    Args:
        weight: [N, K], finite, float32, float16 or bfloat16.
        spec: granularity tensor, channel or group.

    Returns:
        scale of the weight's dtype and zero point int8 (None if symmetric): [1, 1] per tensor, [N, 1] per channel,
        [N, ceil(K / group_size)] per group.
    """
    return grid_of_extremes(*weight_extremes(weight, spec), spec, weight.dtype)


def grid_of_extremes(
    low: Tensor, high: Tensor, spec: QuantSpec, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Scale, in `dtype`, and zero point int8 (None if symmetric) that cover float32 `low` ≤ 0 … `high` ≥ 0."""
    if spec.symmetric:
        return symmetric_scale(torch.maximum(-low, high), spec.qmin, spec.qmax, dtype), None
    return affine_qparams(low, high, spec.qmin, spec.qmax, dtype)


def weight_extremes(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """float32 min(smallest, 0) and max(largest, 0) per tensor, channel or group; shapes as `weight_qparams`."""
    rows, columns = weight.shape
    values = weight.float()
    if spec.granularity == "tensor":
        values = values.reshape(1, 1, -1)
    else:
        group_size = spec.resolve_group_size(columns)
        shortage = -columns % group_size
        # Zeros that fill a shorter last group change nothing: every range contains zero.
        values = torch.nn.functional.pad(values, (0, shortage)).reshape(rows, -1, group_size)
    return values.amin(dim=-1).clamp(max=0.0), values.amax(dim=-1).clamp(min=0.0)


def quantize_weight(
    weight: Tensor, spec: QuantSpec, qparams: tuple[Tensor, Tensor | None] | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round a weight to the nearest codes.

    Args:
        weight: [N, K], finite.
        spec: granularity tensor, channel or group.
        qparams: (scale, zero point), shaped as `weight_qparams` returns them; None computes them.

    Returns:
        (codes int8 [N, K], scale, zero point int8 or None).
    """
    scale, zero_point = weight_qparams(weight, spec) if qparams is None else qparams
    columns = weight.shape[1]
    group_size = spec.resolve_group_size(columns)
    zero = None if zero_point is None else expand_groups(zero_point, columns, group_size)
    codes = quantize(weight, expand_groups(scale, columns, group_size), zero, spec.qmin, spec.qmax)
    return codes, scale, zero_point


def storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A positive scale rounded to `dtype`, and no smaller than that dtype's floor."""
    return scale.to(dtype).clamp(min=_SCALE_FLOOR[dtype])


def _storable(scale: Tensor, is_zero: Tensor, dtype: torch.dtype) -> Tensor:
    """`storable`, and scale 1 where all values are zero."""
    stored = storable(scale, dtype)
    return torch.where(is_zero, torch.ones_like(stored), stored)
