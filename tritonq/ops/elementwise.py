"""Operators that compute element by element and quantize in the same pass: gated products, sums of int8 tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq import reference
from tritonq.ops.backends import uses_kernels
from tritonq.ops.checks import check_activation, check_rows, check_shape
from tritonq.ops.declare import no_gradient, operator
from tritonq.ops.quantize import codes_like, token_like


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
    codes, scale, zero_point = reference.quantize_per_token(reference.gated(gate, up, activation), symmetric)
    return codes.contiguous(), scale.contiguous(), zero_point.contiguous()


@operator(
    "gated_quantize_per_tensor(Tensor gate, Tensor up, str activation, Tensor scale, Tensor zero_point, "
    "bool symmetric) -> Tensor",
    lambda gate, *arguments: codes_like(gate),
    no_gradient("gated_quantize_per_tensor"),
)
def gated_quantize_per_tensor(
    gate: Tensor, up: Tensor, activation: str, scale: Tensor, zero_point: Tensor, symmetric: bool
) -> Tensor:
    """activation(gate) · up, both float [M, K]; scale float32 [1], zero point int8 [1] → codes int8 [M, K]."""
    check_activation("gated_quantize_per_tensor", activation)
    check_rows("gated_quantize_per_tensor", "gate", gate)
    check_shape("gated_quantize_per_tensor", "up", up, gate.shape)
    if uses_kernels(gate):
        from tritonq.kernels.rows import elementwise as kernels

        return kernels.gated_quantize_per_tensor(gate, up, activation, scale, zero_point, symmetric)
    values = reference.gated(gate, up, activation)
    return reference.quantize_per_tensor(values, scale, zero_point, symmetric).contiguous()


@operator(
    "add_requantize(Tensor a, Tensor a_scale, Tensor? a_zero, Tensor b, Tensor b_scale, Tensor? b_zero, "
    'Tensor out_scale, Tensor out_zero, bool symmetric, str activation="none") -> Tensor',
    lambda a, *arguments: codes_like(a),
    no_gradient("add_requantize"),
)
def add_requantize(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    activation: str = "none",
) -> Tensor:
    """activation(a + b), int8 tensors of one shape on grids of their own → int8 on a third grid, contiguous.

    Scales float32 [1], zero points int8 [1], None being 0.
    """
    check_activation("add_requantize", activation)
    check_shape("add_requantize", "b", b, a.shape)
    for what, tensor in (("a", a), ("b", b)):
        if tensor.dtype != torch.int8:
            raise ValueError(f"add_requantize: {what} must be int8, found {tensor.dtype}")
    grids = (a, a_scale, a_zero, b, b_scale, b_zero, out_scale, out_zero)
    if uses_kernels(a):
        from tritonq.kernels.rows import elementwise as kernels

        return kernels.add_requantize(*grids, symmetric, activation)
    return reference.add_requantize(*grids, symmetric, activation).contiguous()
