"""Operators on int8 activations and int8 weights (W8A8), float or int8 out. Weights come in the layout `int8`."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq import reference
from tritonq.ops.library import gradient_of_bias_only, no_gradient, operator, uses_kernels


def _float_fake(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def _int8_fake(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.int8)


@operator(
    "int8_linear(Tensor x, Tensor x_scale, Tensor? x_zero, Tensor weight, Tensor weight_scale, Tensor? weight_zero, "
    "Tensor weight_sum, Tensor? bias, ScalarType dtype) -> Tensor",
    _float_fake,
    gradient_of_bias_only("int8_linear", x_scale_index=1, bias_index=7),
)
def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """int8 [M, K] · int8 [N, ≥ K]ᵀ → float [M, N].

    x_scale float32 [M, 1] or [1] and x_zero int8 alike; weight_scale float [1, N], weight_zero int8 [1, N],
    weight_sum int32 [N]; None is a zero point of 0.
    """
    if uses_kernels(x):
        from tritonq.kernels.int8_matmul import int8_matmul

        return int8_matmul(x, x_scale, x_zero, weight, weight_scale, weight_zero, weight_sum, bias, dtype)
    codes = weight[:, : x.shape[1]]
    return reference.int8_linear(x, x_scale, x_zero, codes, weight_scale, weight_zero, bias, dtype)


@operator(
    "int8_linear_requantize(Tensor x, Tensor x_scale, Tensor? x_zero, Tensor weight, Tensor weight_scale, "
    "Tensor? weight_zero, Tensor weight_sum, Tensor? bias, Tensor out_scale, Tensor out_zero, bool symmetric) "
    "-> Tensor",
    _int8_fake,
    no_gradient("int8_linear_requantize"),
)
def int8_linear_requantize(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
) -> Tensor:
    """The same product → int8 [M, N] on the grid (out_scale float32 [1], out_zero int8 [1])."""
    if uses_kernels(x):
        from tritonq.kernels.int8_matmul import int8_matmul

        return int8_matmul(
            x,
            x_scale,
            x_zero,
            weight,
            weight_scale,
            weight_zero,
            weight_sum,
            bias,
            torch.int8,
            out_scale,
            out_zero,
            symmetric,
        )
    codes = weight[:, : x.shape[1]]
    return reference.int8_linear_requantize(
        x, x_scale, x_zero, codes, weight_scale, weight_zero, bias, out_scale, out_zero, symmetric
    )
