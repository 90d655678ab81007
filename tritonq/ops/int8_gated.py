"""The middle of a gated MLP, activation(x · gateᵀ) · (x · upᵀ), in INT8. Weights in the layout `int8`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq import reference
from tritonq.ops.backends import uses_kernels
from tritonq.ops.checks import check_activation, check_shape
from tritonq.ops.declare import no_gradient, operator

_OPERANDS = (
    "Tensor x, Tensor x_scale, Tensor? x_zero, "
    "Tensor gate_weight, Tensor gate_scale, Tensor? gate_zero, Tensor gate_sum, Tensor? gate_bias, "
    "Tensor up_weight, Tensor up_scale, Tensor? up_zero, Tensor up_sum, Tensor? up_bias"
)


def _int8_fake(x: Tensor, *arguments: Any) -> Tensor:
    gate_weight = arguments[2]
    return x.new_empty((x.shape[0], gate_weight.shape[0]), dtype=torch.int8)


@operator(
    f"int8_gated_linear_requantize({_OPERANDS}, Tensor out_scale, Tensor out_zero, bool symmetric, str activation) "
    "-> Tensor",
    _int8_fake,
    no_gradient("int8_gated_linear_requantize"),
)
def int8_gated_linear_requantize(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    gate_weight: Tensor,
    gate_scale: Tensor,
    gate_zero: Tensor | None,
    gate_sum: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_scale: Tensor,
    up_zero: Tensor | None,
    up_sum: Tensor,
    up_bias: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    activation: str,
) -> Tensor:
    """int8 [M, K] and two weights int8 [N, ≥ K] → int8 [M, N] on the grid (out_scale float32 [1], out_zero int8 [1]).

    Each operand as in `int8_linear`.
    """
    grid = (out_scale, out_zero, symmetric)
    check_activation("int8_gated_linear_requantize", activation)
    check_shape("int8_gated_linear_requantize", "up_weight", up_weight, gate_weight.shape)
    if uses_kernels(x):
        from tritonq.kernels.blocks.int8_product import Grid, Int8Activation, Int8Weight
        from tritonq.kernels.matmul.int8 import int8_matmul

        first = Int8Weight(gate_weight, gate_scale, gate_zero, gate_sum, gate_bias)
        second = Int8Weight(up_weight, up_scale, up_zero, up_sum, up_bias)
        rows = Int8Activation(x, x_scale, x_zero)
        return int8_matmul(rows, first, torch.int8, activation, None, Grid(*grid), second)
    columns = slice(x.shape[1])
    gate = reference.Int8Weight(gate_weight[:, columns], gate_scale, gate_zero, gate_bias)
    up = reference.Int8Weight(up_weight[:, columns], up_scale, up_zero, up_bias)
    return reference.int8_gated_linear_requantize(x, x_scale, x_zero, gate, up, *grid, activation)
