"""Operators on float activations and int4 or int8 weights (W4A16, W8A16), and their input's gradient.

Weights come in the layout `int4_words` (int16) or `int8` (int8). Product and gradient are each other's gradient: one
multiplies by the transposed weight, the other by the weight, and neither needs it in float on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq import reference
from tritonq.numerics import slabs as layouts
from tritonq.ops.backends import cpu_engine, uses_kernels
from tritonq.ops.declare import operator

#: Values of a weight that are unpacked at once, where neither a GPU nor the CPU engine computes.
_BLOCK_VALUES = 1 << 20


def _unpack(weight: Tensor, columns: int, group_size: int) -> Tensor:
    return layouts.unpack(weight, _layout(weight, columns, group_size))


def _layout(weight: Tensor, columns: int, group_size: int) -> layouts.SlabLayout:
    form = "int4_words" if weight.dtype == torch.int16 else "int8"
    return layouts.slab_layout(form, int(columns), group_size)  # while tracing, K may come as a symbol


def _dense(scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """As the kernels read them; a sibling's are columns of joined ones (tritonq/nn/siblings.py)."""
    return scale.contiguous(), None if zero is None else zero.contiguous()


def _fake(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _save_weight(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, weight_scale, weight_zero, bias, ctx.group_size = inputs
    ctx.save_for_backward(weight, weight_scale, weight_zero)
    ctx.columns, ctx.bias_dtype = x.shape[1], None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> Any:
    weight, weight_scale, weight_zero = ctx.saved_tensors
    x_gradient = bias_gradient = None
    if ctx.needs_input_grad[0]:
        x_gradient = weight_only_input_gradient(
            gradient, weight, weight_scale, weight_zero, ctx.columns, ctx.group_size
        )
    if ctx.needs_input_grad[4]:
        bias_gradient = gradient.float().sum(dim=0).to(ctx.bias_dtype)
    return x_gradient, None, None, None, bias_gradient, None


def _gradient_fake(
    gradient: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    columns: int,
    group_size: int,
) -> Tensor:
    return gradient.new_empty((gradient.shape[0], columns))


def _save_weight_of_gradient(ctx: Any, inputs: Any, output: Any) -> None:
    _, weight, weight_scale, weight_zero, _, ctx.group_size = inputs
    ctx.save_for_backward(weight, weight_scale, weight_zero)


def _backward_of_gradient(ctx: Any, arriving: Tensor) -> Any:
    weight, weight_scale, weight_zero = ctx.saved_tensors
    gradient = weight_only_linear(arriving, weight, weight_scale, weight_zero, None, ctx.group_size)
    return gradient, None, None, None, None, None


@operator(
    "weight_only_input_gradient(Tensor gradient, Tensor weight, Tensor weight_scale, Tensor? weight_zero, "
    "SymInt columns, int group_size) -> Tensor",
    _gradient_fake,
    (_save_weight_of_gradient, _backward_of_gradient),
)
def weight_only_input_gradient(
    gradient: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    columns: int,
    group_size: int,
) -> Tensor:
    """float [M, N] · dequantized [N, K] → [M, K = columns] of gradient's dtype, to which the weight is rounded first.

    weight_scale float [G, N], weight_zero int8 [G, N].
    """
    if uses_kernels(gradient):
        from tritonq.kernels.matmul.weight_only_gradient import weight_only_gradient

        layout = _layout(weight, columns, group_size)
        return weight_only_gradient(
            gradient,
            weight,
            *_dense(weight_scale, weight_zero),
            columns,
            group_size,
            layout.padded_group,
            layout.slab_width,
        )
    zero = None if weight_zero is None else weight_zero.t()
    codes = _unpack(weight, columns, group_size)
    return reference.weight_only_input_gradient(gradient, codes, weight_scale.t(), zero, group_size)


@operator(
    "weight_only_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? weight_zero, Tensor? bias, "
    "int group_size) -> Tensor",
    _fake,
    (_save_weight, _backward),
)
def weight_only_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    group_size: int,
) -> Tensor:
    """float [M, K] · dequantized [N, K]ᵀ + bias → [M, N] of x's dtype.

    weight_scale float [G, N], weight_zero int8 [G, N].
    """
    layout = _layout(weight, x.shape[1], group_size)
    if uses_kernels(x):
        from tritonq.kernels.matmul.weight_only import weight_only_matmul

        slabs = (group_size, layout.padded_group, layout.slab_width)
        return weight_only_matmul(x, weight, *_dense(weight_scale, weight_zero), bias, *slabs)
    engine = cpu_engine(x)
    if engine is not None:
        operands = (x, weight, weight_scale, weight_zero, bias, layout, x.dtype)
        return engine.weight_only.weight_only_linear(engine, *operands)
    out = x.new_empty((x.shape[0], weight.shape[0]))
    step = max(1, _BLOCK_VALUES // layout.columns)
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        scale = weight_scale[:, rows].t()
        zero = None if weight_zero is None else weight_zero[:, rows].t()
        part = None if bias is None else bias[rows]
        codes = layouts.unpack(weight[rows], layout)
        out[:, rows] = reference.weight_only_linear(x, codes, scale, zero, part, group_size)
    return out
