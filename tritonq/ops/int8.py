"""Operators on int8 activations and int8 weights (W8A8), float or int8 out. Weights come in the layout `int8`.

`int8_linear_dynamic` takes float activations and quantizes them per token, in one launch or two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq import reference
from tritonq.ops.backends import cpu_engine, uses_kernels
from tritonq.ops.checks import check_activation, check_residual
from tritonq.ops.declare import gradient_of_bias_only, no_gradient, operator

_OPERANDS = (
    "Tensor x, Tensor x_scale, Tensor? x_zero, Tensor weight, Tensor weight_scale, Tensor? weight_zero, "
    "Tensor weight_sum, Tensor? bias"
)
_EPILOGUE = (
    'str activation="none", Tensor? residual=None, Tensor? residual_scale=None, Tensor? residual_zero=None'
)


def _float_fake(x: Tensor, *arguments: Any) -> Tensor:
    weight, dtype = arguments[2], arguments[7]
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def _int8_fake(x: Tensor, *arguments: Any) -> Tensor:
    weight = arguments[2]
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.int8)


def int8_sums(
    x: Tensor, x_zero: Tensor | None, weight: Tensor, weight_zero: Tensor | None, weight_sum: Tensor
) -> Tensor:
    """Σ_k (x - x_zero)(weight - weight_zero) → int32 [M, N], on a CPU; arguments as of `int8_linear`."""
    engine = cpu_engine(x)
    if engine is not None:
        return engine.int8.accumulate(engine, x, x_zero, weight, weight_zero, weight_sum)
    return reference.int8_accumulate(x, x_zero, weight[:, : x.shape[1]], weight_zero)


@operator(
    f"int8_linear({_OPERANDS}, ScalarType dtype, {_EPILOGUE}) -> Tensor",
    _float_fake,
    gradient_of_bias_only("int8_linear", x_scale=1, bias=7, activation=9, residual=10),
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
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
) -> Tensor:
    """activation(int8 [M, K] · int8 [N, ≥ K]ᵀ + bias + residual) → float [M, N].

    x_scale float32 [M, 1] or [1] and x_zero int8 alike; weight_scale float [1, N], weight_zero int8 [1, N],
    weight_sum int32 [N]; None is a zero point of 0. activation: none, relu, gelu, gelu_tanh or silu. residual
    [M, N]: float, or int8 with residual_scale float32 [1] and residual_zero int8 [1].
    """
    check_activation("int8_linear", activation)
    check_residual("int8_linear", residual, residual_scale, (x.shape[0], weight.shape[0]))
    epilogue = (activation, residual, residual_scale, residual_zero)
    operands = (x, x_scale, x_zero, weight, weight_scale, weight_zero, weight_sum, bias)
    if uses_kernels(x):
        from tritonq.kernels.blocks.int8_product import Int8Activation, Int8Weight, Residual
        from tritonq.kernels.matmul.int8 import int8_matmul

        added = None if residual is None else Residual(residual, residual_scale, residual_zero)
        return int8_matmul(Int8Activation(*operands[:3]), Int8Weight(*operands[3:]), dtype, activation, added)
    engine = cpu_engine(x)
    if engine is not None and activation == "none" and residual is None:
        return engine.int8.int8_linear(engine, *operands, dtype)
    sums = int8_sums(x, x_zero, weight, weight_zero, weight_sum)
    return reference.int8_output(sums, x_scale, weight_scale, bias, dtype, *epilogue)


@operator(
    f"int8_linear_requantize({_OPERANDS}, Tensor out_scale, Tensor out_zero, bool symmetric, {_EPILOGUE}) -> Tensor",
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
    activation: str = "none",
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_zero: Tensor | None = None,
) -> Tensor:
    """The same → int8 [M, N] on the grid (out_scale float32 [1], out_zero int8 [1])."""
    check_activation("int8_linear_requantize", activation)
    check_residual("int8_linear_requantize", residual, residual_scale, (x.shape[0], weight.shape[0]))
    epilogue = (activation, residual, residual_scale, residual_zero)
    if uses_kernels(x):
        from tritonq.kernels.blocks.int8_product import Grid, Int8Activation, Int8Weight, Residual
        from tritonq.kernels.matmul.int8 import int8_matmul

        w = Int8Weight(weight, weight_scale, weight_zero, weight_sum, bias)
        added = None if residual is None else Residual(residual, residual_scale, residual_zero)
        grid = Grid(out_scale, out_zero, symmetric)
        return int8_matmul(Int8Activation(x, x_scale, x_zero), w, torch.int8, activation, added, grid)
    engine = cpu_engine(x)
    if engine is not None and activation in ("none", "relu") and residual is None:
        weight_operands = (weight, weight_scale, weight_zero, weight_sum, bias)
        relu = activation == "relu"
        return engine.int8.int8_linear_requantize(
            engine, x, x_scale, x_zero, *weight_operands, out_scale, out_zero, symmetric, relu
        )
    sums = int8_sums(x, x_zero, weight, weight_zero, weight_sum)
    return reference.int8_output_requantize(
        sums, x_scale, weight_scale, bias, out_scale, out_zero, symmetric, *epilogue
    )


@operator(
    "int8_linear_dynamic(Tensor x, bool symmetric, Tensor weight, Tensor weight_scale, Tensor? weight_zero, "
    "Tensor weight_sum, Tensor? bias) -> Tensor",
    lambda x, symmetric, weight, *rest: x.new_empty((x.shape[0], weight.shape[0])),
    gradient_of_bias_only("int8_linear_dynamic", x_scale=0, bias=6),
)
def int8_linear_dynamic(
    x: Tensor,
    symmetric: bool,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """float [M, K] → [M, N] of its dtype: `int8_linear` of what `quantize_per_token` makes of x."""
    if uses_kernels(x):
        from tritonq.kernels.blocks.int8_product import Int8Weight
        from tritonq.kernels.matmul.dynamic import int8_dynamic_matmul

        w = Int8Weight(weight, weight_scale, weight_zero, weight_sum, bias)
        return int8_dynamic_matmul(x, symmetric, w)
    engine = cpu_engine(x)
    if engine is not None:
        weight_operands = (weight, weight_scale, weight_zero, weight_sum, bias)
        return engine.int8.int8_linear_dynamic(engine, x, symmetric, *weight_operands)
    codes, scale, zero_point = reference.quantize_per_token(x, symmetric)
    zero = None if symmetric else zero_point
    product = (codes, scale, zero, weight[:, : x.shape[1]], weight_scale, weight_zero, bias)
    return reference.int8_linear(*product, x.dtype)
