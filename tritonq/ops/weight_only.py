"""The operator on float activations and int4 or int8 weights (W4A16, W8A16), with a gradient for its input.

Weights come in the layout `int4_words` (int16) or `int8` (int8).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq import layouts, qparams, reference
from tritonq.ops.library import operator, uses_kernels


def _unpack(weight: Tensor, columns: int, group_size: int) -> Tensor:
    return layouts.unpack(weight, _layout(weight, columns, group_size))


def _layout(weight: Tensor, columns: int, group_size: int) -> layouts.SlabLayout:
    form = "int4_words" if weight.dtype == torch.int16 else "int8"
    return layouts.slab_layout(form, int(columns), group_size)  # while tracing, K may come as a symbol


def _fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    group_size: int,
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _save_weight(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, weight_scale, weight_zero, bias, group_size = inputs
    ctx.save_for_backward(weight, weight_scale, weight_zero)
    ctx.columns, ctx.group_size = x.shape[1], group_size
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> Any:
    weight, weight_scale, weight_zero = ctx.saved_tensors
    x_gradient = bias_gradient = None
    if ctx.needs_input_grad[0]:
        codes = _unpack(weight, ctx.columns, ctx.group_size)
        scale = qparams.expand_groups(weight_scale.t(), ctx.columns, ctx.group_size)
        zero = None
        if weight_zero is not None:
            zero = qparams.expand_groups(weight_zero.t(), ctx.columns, ctx.group_size)
        x_gradient = gradient @ qparams.dequantize(codes, scale, zero, gradient.dtype)  # [M, N] @ [N, K]
    if ctx.needs_input_grad[4]:
        bias_gradient = gradient.float().sum(dim=0).to(ctx.bias_dtype)
    return x_gradient, None, None, None, bias_gradient, None


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
    """float [M, K] · dequantized [N, K]ᵀ → [M, N] of x's dtype; weight_scale float [G, N], weight_zero int8 [G, N]."""
    columns = x.shape[1]
    if uses_kernels(x):
        from tritonq.kernels.weight_only_matmul import weight_only_matmul

        layout = _layout(weight, columns, group_size)
        return weight_only_matmul(
            x, weight, weight_scale, weight_zero, bias, group_size, layout.padded_group, layout.slab_width
        )
    zero = None if weight_zero is None else weight_zero.t()
    codes = _unpack(weight, columns, group_size)
    return reference.weight_only_linear(x, codes, weight_scale.t(), zero, bias, group_size)
