"""Searches the range with the least mean squared error: values inside are rounded, values outside are clipped.

For a histogram the error is an expectation: values are spread evenly over each bin. Let t = x / scale, and let the
grid's codes be a … b, counted from the zero point. The integral of the squared error from 0 to t, in units of the
scale, is

    F(t) = n / 12 + (t - n)^3 / 3,   n = clamp(rint(t), a, b)

both inside the grid (n whole steps of 1/12, and a part of one) and beyond its ends. A bin from t to t' with count c
costs c · scale² · (F(t') - F(t)) / (t' - t). This is exact and needs no sum over grid points.

For data kept value by value, the error is that of `qparams.quantize` and `dequantize`.

The search moves both ends by one factor, then each end alone, then repeats this with smaller factors. The range it
starts from is always a candidate, so the result is never worse. All rows are searched at once, on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: (low, high) float32 [rows, candidates] → mean or summed squared error of each, [rows, candidates].
ErrorOf = Callable[[Tensor, Tensor], Tensor]
#: low, high float32 [n] → scale, zero point [n]: an observer's `range_qparams`.
QparamsOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: One round of the search: which ends move ("both", "low" or "high"), and the factors to try.
Round = tuple[str, Sequence[float]]

#: On INT4's symmetric grid the scale is amax / 7.5. 15/14 times that, amax / 7, also reaches amax itself.
_WIDEN = 15 / 14
_LARGEST = torch.finfo(torch.float32).max


def rounds(ratio: float, narrowest: float, refinements: int, symmetric: bool) -> list[Round]:
    """A search plan: a sweep from the full range down to a fraction of it, then finer and finer steps around the best.

    Args:
        ratio: the factor from one candidate of the sweep to the next, below 1.
        narrowest: the end of the sweep, as a fraction of the range.
        refinements: how often the step is divided by 4.
        symmetric: both ends always move together.
    """
    sweep = [1.0, _WIDEN]
    while sweep[-1] * ratio > narrowest or len(sweep) == 2:
        sweep.append(ratio ** (len(sweep) - 1))
    plan: list[Round] = [("both", sweep)]
    if not symmetric:
        plan += [(end, sweep) for end in ("high", "low")]
    for refinement in range(1, refinements + 1):
        steps = [1.0, *(ratio ** (k / 4**refinement) for k in (-4, -3, -2, -1, 1, 2, 3, 4))]
        plan += [(end, steps) for end in (("both",) if symmetric else ("both", "high", "low"))]
    return plan


def least_error(error: ErrorOf, low: Tensor, high: Tensor, plan: list[Round]) -> tuple[Tensor, Tensor]:
    """The ends that `plan` finds for ranges low … high, float32 [rows] each, ≤ 0 and ≥ 0."""
    low, high = low[:, None], high[:, None]
    for end, factors in plan:
        factor = _factors(tuple(factors), low.device)
        lows = low * (torch.ones_like(factor) if end == "high" else factor)  # [rows, candidates]
        highs = high * (torch.ones_like(factor) if end == "low" else factor)
        lows, highs = lows.clamp(min=-_LARGEST), highs.clamp(max=_LARGEST)
        best = error(lows, highs).argmin(dim=1, keepdim=True)  # ties take the first: the range as it was
        low, high = lows.gather(1, best), highs.gather(1, best)
    return low[:, 0], high[:, 0]


@functools.cache
def _factors(factors: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 [candidates], cached because a copy to a device waits for it."""
    return torch.tensor(factors, dtype=torch.float32, device=device)


def expected_error(
    counts: Tensor, edges: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> Tensor:
    """Mean squared error that each of C grids makes of a histogram.

    Args:
        counts: int64 [bins].
        edges: float64 [bins + 1], ascending; bins of width 0 count nothing.
        scale, zero_point: float [C] and int8 [C].
        qmin, qmax: the code range.

    Returns:
        float64 [C].
    """
    step, zero = scale.double()[:, None], zero_point.double()[:, None]  # [C, 1]
    widths = edges.diff()
    density = torch.where(widths > 0, counts / widths, 0.0) / counts.sum().clamp(min=1)
    # Σ density · (F at a bin's end - F at its beginning), as one sum over edges
    weights = torch.nn.functional.pad(density, (1, 0)) - torch.nn.functional.pad(density, (0, 1))
    t = edges / step  # [C, bins + 1]
    n = torch.maximum(torch.minimum(t.round(), qmax - zero), qmin - zero)
    t -= n
    integral = t.pow(3).div_(3).add_(n, alpha=1 / 12)
    return (integral @ weights) * step[:, 0].pow(3)


def squared_error(
    values: Tensor, low: Tensor, high: Tensor, qparams_of: QparamsOf, qmin: int, qmax: int
) -> Tensor:
    """Sum of squared errors of each row of values on C grids.

    Args:
        values: float32 [rows, K].
        low, high: float32 [rows, C].
        qparams_of, qmin, qmax: the grid of a range.

    Returns:
        float32 [rows, C].
    """
    found, zeros = qparams_of(low, high)
    scales, zeros = found.float().reshape(low.shape), zeros.float().reshape(low.shape)
    errors = []
    for scale, zero in zip(scales.split(1, dim=1), zeros.split(1, dim=1), strict=True):
        # qparams.quantize and dequantize, with one intermediate tensor; clamping to integers commutes with rint.
        codes = (values * scale.reciprocal()).round_().add_(zero).clamp_(qmin, qmax)
        errors.append(codes.sub_(zero).mul_(scale).sub_(values).square_().sum(dim=1))
    return torch.stack(errors, dim=1)
