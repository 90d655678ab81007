"""SmoothQuant's factors, and the search for the exponent α with the smallest error.

For each α of a grid, the search scales the inputs and weights of a group, quantizes and multiplies them. The error is
the squared error of the products relative to each row, summed over a sample of rows and all Linears of the group:

    error(α) = Σ_t ‖Q(x_t / s) · Q(s · W)ᵀ − x_t · Wᵀ‖² / max(‖x_t · Wᵀ‖², its median over t)

In a language model the first token's values can be a thousand times as large as the others'. Without the denominator
its row alone would decide, although a norm soon makes it as large as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritonq.numerics import qparams
from tritonq.numerics.config import QuantConfig, QuantSpec
from tritonq.observers import make_observer, observed_weight_qparams
from tritonq.optimize.equalize.groups import Group
from tritonq.optimize.equalize.inputs import GroupInputs
from tritonq.reference import quantize_per_token

#: The α to try, besides leaving a group as it is.
ALPHAS = tuple(step / 10 for step in range(11))


def smoothing_factors(largest: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1−α), and 1 where either is zero.

    Args:
        largest: float32 [K], max |x| of each channel.
        weights: float32 [N, K] of each Linear that reads it.
        alpha: α.

    Returns:
        float32 [K], > 0.
    """
    columns = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)  # [K]
    factors = largest.pow(alpha) / columns.pow(1 - alpha)
    return torch.where((largest > 0) & (columns > 0), factors, torch.ones_like(factors))


def search_alpha(
    group: Group, inputs: GroupInputs, weights: Sequence[Tensor], config: QuantConfig
) -> float | None:
    """The α of ALPHAS with the smallest error; None if the error is smaller without scaling.

    Args:
        group: for messages.
        inputs: from the calibration data, with rows.
        weights: float32 [N, K] of each reader.
        config: how the readers will be quantized.
    """
    products = [inputs.rows @ weight.t() for weight in weights]  # [rows, K] @ [K, N] -> [rows, N]
    sizes = torch.stack([product.square().sum(dim=1) for product in products]).sum(dim=0)  # [rows]
    sizes = torch.maximum(sizes, sizes.median()).clamp(min=torch.finfo(torch.float32).tiny)

    def error(factors: Tensor) -> float:
        rows = inputs.rows / factors
        extremes = torch.stack([inputs.low, inputs.high]) / factors
        rounded = _rounded_activation(rows, extremes, config.activation, group.readers[0])
        total = 0.0
        for name, weight, product in zip(group.readers, weights, products, strict=True):
            found = rounded @ _rounded_weight(weight * factors, config.weight, name).t()
            total += float(((found - product).square().sum(dim=1) / sizes).sum())
        return total

    errors: dict[float | None, float] = {None: error(torch.ones_like(inputs.low))}
    for alpha in ALPHAS:
        errors[alpha] = error(smoothing_factors(inputs.largest, weights, alpha))
    return min(errors, key=lambda alpha: errors[alpha])


def _rounded_activation(rows: Tensor, extremes: Tensor, spec: QuantSpec | None, name: str) -> Tensor:
    """Rows [M, K], quantized and dequantized; a static grid also covers `extremes` [2, K], those of all data."""
    if spec is None:
        return rows
    if spec.dynamic:
        codes, scale, zero_point = quantize_per_token(rows, spec.symmetric)
    else:
        observer = make_observer(spec, for_weight=False, name=name)
        observer(torch.cat([rows, extremes]))
        scale, zero_point = observer.calculate_qparams()
        codes = qparams.quantize(rows, scale, zero_point, observer.qmin, observer.qmax)
    return qparams.dequantize(codes, scale, zero_point, torch.float32)


def _rounded_weight(weight: Tensor, spec: QuantSpec, name: str) -> Tensor:
    """A weight [N, K], quantized and dequantized, with float32 scales."""
    found = observed_weight_qparams(weight, spec, name)
    codes, scale, zero_point = qparams.quantize_weight(weight, spec, found)
    columns = weight.shape[1]
    size = spec.resolve_group_size(columns)
    zero = None if zero_point is None else qparams.expand_groups(zero_point, columns, size)
    return qparams.dequantize(codes, qparams.expand_groups(scale, columns, size), zero, torch.float32)
