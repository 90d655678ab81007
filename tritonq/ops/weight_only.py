"""Operators on float activations and int4 or int8 weights (W4A16, W8A16), float or int8 out; their input's gradient.

Weights come in the layout `int4_words` (int16) or `int8` (int8). Product and gradient are each other's gradient: one
multiplies by the transposed weight, the other by the weight, and neither needs it in float on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tritonq import reference
from tritonq.numerics import slabs as layouts
from tritonq.ops.backends import uses_kernels
from tritonq.ops.checks import check_activation
from tritonq.ops.declare import no_gradient, operator

_OPERANDS = "Tensor x, Tensor weight, Tensor weight_scale, Tensor? weight_zero, Tensor? bias, int group_size"
_ACTIVATION = 'str activation="none"'
#: (gradient, what the activation was given) → gradient of the latter.
_ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda gradient, y: gradient * (y > 0),
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "silu": torch.ops.aten.silu_backward,
}


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


def _int8_fake(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.int8)


def _save_weight(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, weight_scale, weight_zero, bias, group_size, activation = inputs
    is_linear = activation == "none"
    ctx.save_for_backward(
        weight, weight_scale, weight_zero, None if is_linear else x, None if is_linear else bias
    )
    ctx.columns, ctx.group_size, ctx.activation = x.shape[1], group_size, activation
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> Any:
    weight, weight_scale, weight_zero, x, bias = ctx.saved_tensors
    x_gradient = bias_gradient = None
    if x is not None:  # what the activation was given is computed again
        y = weight_only_linear(x, weight, weight_scale, weight_zero, bias, ctx.group_size)
        gradient = _ACTIVATION_GRADIENTS[ctx.activation](gradient, y)
    if ctx.needs_input_grad[0]:
        x_gradient = weight_only_input_gradient(
            gradient, weight, weight_scale, weight_zero, ctx.columns, ctx.group_size
        )
    if ctx.needs_input_grad[4]:
        bias_gradient = gradient.float().sum(dim=0).to(ctx.bias_dtype)
    return x_gradient, None, None, None, bias_gradient, None, None


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
    f"weight_only_linear({_OPERANDS}, {_ACTIVATION}) -> Tensor",
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
    activation: str = "none",
) -> Tensor:
    """activation(float [M, K] · dequantized [N, K]ᵀ + bias) → [M, N] of x's dtype.

    weight_scale float [G, N], weight_zero int8 [G, N]. activation: none, relu, gelu, gelu_tanh or silu.
    """
    check_activation("weight_only_linear", activation)
    operands = (x, weight, weight_scale, weight_zero, bias, group_size)
    if uses_kernels(x):
        return _by_kernel(*operands, activation)
    return reference.weight_only_linear(*_for_reference(*operands), activation)


@operator(
    f"weight_only_linear_requantize({_OPERANDS}, Tensor out_scale, Tensor out_zero, bool symmetric, {_ACTIVATION}) "
    "-> Tensor",
    _int8_fake,
    no_gradient("weight_only_linear_requantize"),
)
def weight_only_linear_requantize(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    activation: str = "none",
) -> Tensor:
    """The same, not rounded to x's dtype, → int8 [M, N] on the grid (out_scale float32 [1], out_zero int8 [1])."""
    check_activation("weight_only_linear_requantize", activation)
    operands = (x, weight, weight_scale, weight_zero, bias, group_size)
    grid = (out_scale, out_zero, symmetric)
    if uses_kernels(x):
        return _by_kernel(*operands, activation, *grid)
    return reference.weight_only_linear_requantize(*_for_reference(*operands), *grid, activation)


def _by_kernel(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    *epilogue: Any,
) -> Tensor:
    """The product on a GPU; epilogue: activation and, for int8, the grid."""
    from tritonq.kernels.matmul.weight_only import weight_only_matmul

    layout = _layout(weight, x.shape[1], group_size)
    slabs = (group_size, layout.padded_group, layout.slab_width)
    return weight_only_matmul(x, weight, *_dense(weight_scale, weight_zero), bias, *slabs, *epilogue)


def _for_reference(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    group_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, int]:
    """The operands as the reference takes them: codes [N, K], scales and zero points [N, G]."""
    zero = None if weight_zero is None else weight_zero.t()
    return x, _unpack(weight, x.shape[1], group_size), weight_scale.t(), zero, bias, group_size
