"""Operators that turn float activations into int8 codes."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq import reference
from tritonq.ops.backends import cpu_engine, uses_kernels
from tritonq.ops.declare import no_gradient, operator


def token_like(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty codes int8 of x's shape [M, K], scale float32 [M, 1] and zero point int8 [M, 1]."""
    scale = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    return codes_like(x), scale, torch.empty_like(scale, dtype=torch.int8)


def codes_like(x: Tensor) -> Tensor:
    """Empty int8 codes of x's shape, contiguous."""
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


@operator(
    "quantize_per_token(Tensor x, bool symmetric) -> (Tensor, Tensor, Tensor)",
    lambda x, symmetric: token_like(x),
    no_gradient("quantize_per_token"),
)
def quantize_per_token(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """float [M, K] → codes int8 [M, K], scale float32 [M, 1], zero point int8 [M, 1]."""
    if uses_kernels(x):
        from tritonq.kernels.rows import quantize as kernels

        return kernels.quantize_per_token(x, symmetric)
    engine = cpu_engine(x)
    if engine is not None:
        return engine.quantize.quantize_per_token(engine, x, symmetric)
    codes, scale, zero_point = reference.quantize_per_token(x, symmetric)
    return codes.contiguous(), scale.contiguous(), zero_point.contiguous()


@operator(
    "quantize_per_tensor(Tensor x, Tensor scale, Tensor zero_point, bool symmetric) -> Tensor",
    lambda x, *grid: codes_like(x),
    no_gradient("quantize_per_tensor"),
)
def quantize_per_tensor(x: Tensor, scale: Tensor, zero_point: Tensor, symmetric: bool) -> Tensor:
    """float, any shape, with scale float32 [1] and zero point int8 [1] → int8 codes of the same shape."""
    if uses_kernels(x):
        from tritonq.kernels.rows import quantize as kernels

        return kernels.quantize_per_tensor(x, scale, zero_point, symmetric)
    engine = cpu_engine(x)
    if engine is not None:
        return engine.quantize.quantize_per_tensor(engine, x, scale, zero_point, symmetric)
    return reference.quantize_per_tensor(x, scale, zero_point, symmetric).contiguous()


@operator(
    "scale_of_codes(Tensor scale, Tensor x) -> Tensor",
    lambda scale, x: torch.empty_like(scale),
    no_gradient("quantize_per_tensor"),
    torch_only=True,
)
def scale_of_codes(scale: Tensor, x: Tensor) -> Tensor:
    """A copy of `scale` that depends on x, as its codes cannot: a backward pass is refused there instead of lost."""
    return scale.clone()


def scale_with_history(scale: Tensor, x: Tensor) -> Tensor:
    """The scale of x's codes, through which a backward pass that comes back to x is refused, not lost."""
    return scale_of_codes(scale, x) if torch.is_grad_enabled() and x.requires_grad else scale
