"""Operators that compute rows (a norm, a gated product) and quantize them in one pass.

No float tensor is written but a new residual stream. Each norm comes in two modes: `…_per_token` finds a grid for every
row, as `quantize_per_token` does; `…_per_tensor` is given one, as `quantize_per_tensor` is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq import reference
from tritonq.ops.backends import uses_kernels
from tritonq.ops.checks import check_activation, check_rows, check_shape
from tritonq.ops.declare import no_gradient, operator
from tritonq.ops.quantize import codes_like, token_like


def _check(name: str, x: Tensor, **of_columns: Tensor | None) -> None:
    check_rows(name, "x", x)
    for what, tensor in of_columns.items():
        check_shape(name, what, tensor, (x.shape[1],))


def _per_token(values: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, zero_point = reference.quantize_per_token(values, symmetric)
    return codes.contiguous(), scale.contiguous(), zero_point.contiguous()


def _per_tensor(values: Tensor, scale: Tensor, zero_point: Tensor, symmetric: bool) -> Tensor:
    return reference.quantize_per_tensor(values, scale, zero_point, symmetric).contiguous()


# --- RMSNorm ---------------------------------------------------------------------------------------------------------


@operator(
    "rms_norm_quantize_per_token(Tensor x, Tensor? weight, float eps, bool symmetric) -> (Tensor, Tensor, Tensor)",
    lambda x, *arguments: token_like(x),
    no_gradient("rms_norm_quantize_per_token"),
)
def rms_norm_quantize_per_token(
    x: Tensor, weight: Tensor | None, eps: float, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """float [M, K], weight float [K] → codes int8 [M, K], scale float32 [M, 1], zero point int8 [M, 1]."""
    _check("rms_norm_quantize_per_token", x, weight=weight)
    if uses_kernels(x):
        from tritonq.kernels.rows import norm_quantize as kernels

        return kernels.rms_norm_quantize(x, weight, eps, symmetric)
    return _per_token(reference.rms_norm(x, weight, eps), symmetric)


@operator(
    "rms_norm_quantize_per_tensor(Tensor x, Tensor? weight, float eps, Tensor scale, Tensor zero_point, "
    "bool symmetric) -> Tensor",
    lambda x, *arguments: codes_like(x),
    no_gradient("rms_norm_quantize_per_tensor"),
)
def rms_norm_quantize_per_tensor(
    x: Tensor, weight: Tensor | None, eps: float, scale: Tensor, zero_point: Tensor, symmetric: bool
) -> Tensor:
    """float [M, K], weight float [K]; scale float32 [1], zero point int8 [1] → codes int8 [M, K]."""
    _check("rms_norm_quantize_per_tensor", x, weight=weight)
    if uses_kernels(x):
        from tritonq.kernels.rows import norm_quantize as kernels

        return kernels.rms_norm_quantize(x, weight, eps, symmetric, scale, zero_point)[0]
    return _per_tensor(reference.rms_norm(x, weight, eps), scale, zero_point, symmetric)


# --- residual + RMSNorm ----------------------------------------------------------------------------------------------


def _sum_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _sum_and_token_like(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _sum_like(x), *token_like(x)


@operator(
    "add_rms_norm_quantize_per_token(Tensor x, Tensor residual, Tensor? weight, float eps, bool symmetric) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _sum_and_token_like,
    no_gradient("add_rms_norm_quantize_per_token"),
)
def add_rms_norm_quantize_per_token(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + residual, both float [M, K], rounded to x's dtype; then what `rms_norm_quantize_per_token` makes of it."""
    _check("add_rms_norm_quantize_per_token", x, weight=weight)
    check_shape("add_rms_norm_quantize_per_token", "residual", residual, x.shape)
    if uses_kernels(x):
        from tritonq.kernels.rows import norm_quantize as kernels

        return kernels.add_rms_norm_quantize(x, residual, weight, eps, symmetric)
    total = reference.residual_sum(x, residual).contiguous()
    return total, *_per_token(reference.rms_norm(total, weight, eps), symmetric)


@operator(
    "add_rms_norm_quantize_per_tensor(Tensor x, Tensor residual, Tensor? weight, float eps, Tensor scale, "
    "Tensor zero_point, bool symmetric) -> (Tensor, Tensor)",
    lambda x, *arguments: (_sum_like(x), codes_like(x)),
    no_gradient("add_rms_norm_quantize_per_tensor"),
)
def add_rms_norm_quantize_per_tensor(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    scale: Tensor,
    zero_point: Tensor,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """x + residual, both float [M, K], rounded to x's dtype; then what `rms_norm_quantize_per_tensor` makes of it."""
    _check("add_rms_norm_quantize_per_tensor", x, weight=weight)
    check_shape("add_rms_norm_quantize_per_tensor", "residual", residual, x.shape)
    if uses_kernels(x):
        from tritonq.kernels.rows import norm_quantize as kernels

        return kernels.add_rms_norm_quantize(x, residual, weight, eps, symmetric, scale, zero_point)[:2]
    total = reference.residual_sum(x, residual).contiguous()
    return total, _per_tensor(reference.rms_norm(total, weight, eps), scale, zero_point, symmetric)


# --- LayerNorm -------------------------------------------------------------------------------------------------------


@operator(
    "layer_norm_quantize_per_token(Tensor x, Tensor? weight, Tensor? bias, float eps, bool symmetric) "
    "-> (Tensor, Tensor, Tensor)",
    lambda x, *arguments: token_like(x),
    no_gradient("layer_norm_quantize_per_token"),
)
def layer_norm_quantize_per_token(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """float [M, K], weight and bias float [K] → codes int8 [M, K], scale float32 [M, 1], zero point int8 [M, 1]."""
    _check("layer_norm_quantize_per_token", x, weight=weight, bias=bias)
    if uses_kernels(x):
        from tritonq.kernels.rows import norm_quantize as kernels

        return kernels.layer_norm_quantize(x, weight, bias, eps, symmetric)
    return _per_token(reference.layer_norm(x, weight, bias, eps), symmetric)


@operator(
    "layer_norm_quantize_per_tensor(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor scale, "
    "Tensor zero_point, bool symmetric) -> Tensor",
    lambda x, *arguments: codes_like(x),
    no_gradient("layer_norm_quantize_per_tensor"),
)
def layer_norm_quantize_per_tensor(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor,
    zero_point: Tensor,
    symmetric: bool,
) -> Tensor:
    """float [M, K], weight and bias float [K]; scale float32 [1], zero point int8 [1] → codes int8 [M, K]."""
    _check("layer_norm_quantize_per_tensor", x, weight=weight, bias=bias)
    if uses_kernels(x):
        from tritonq.kernels.rows import norm_quantize as kernels

        return kernels.layer_norm_quantize(x, weight, bias, eps, symmetric, scale, zero_point)[0]
    return _per_tensor(reference.layer_norm(x, weight, bias, eps), scale, zero_point, symmetric)


@operator(
    "gated_quantize_per_token(Tensor gate, Tensor? up, str activation, bool symmetric) -> (Tensor, Tensor, Tensor)",
    lambda gate, *arguments: token_like(gate),
    no_gradient("gated_quantize_per_token"),
)
def gated_quantize_per_token(
    gate: Tensor, up: Tensor | None, activation: str, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """activation(gate) · up, up None for 1, float [M, K] → codes int8 [M, K], scale float32, zero int8 [M, 1]."""
    check_activation("gated_quantize_per_token", activation)
    check_rows("gated_quantize_per_token", "gate", gate)
    check_shape("gated_quantize_per_token", "up", up, gate.shape)
    if uses_kernels(gate):
        from tritonq.kernels.rows import norm_quantize as kernels

        return kernels.gated_quantize_per_token(gate, up, activation, symmetric)
    return _per_token(reference.gated(gate, up, activation), symmetric)
