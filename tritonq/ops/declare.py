"""Declaring an operator: its schema, the one implementation for all devices, its shapes for tracing, its gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tritonq.ops.backends import uses_kernels
from tritonq.ops.bypass import directly, names_and_defaults, plans

NAMESPACE = "tritonq"
_library = torch.library.Library(NAMESPACE, "DEF")


def operator(
    schema: str,
    fake: Callable[..., Any],
    gradient: tuple[Callable[..., None], Callable[..., Any]],
    torch_only: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate an implementation; what comes back is the dispatched operator.

    Where kernels compute, the implementation is given operands in place of tensors, and returns what its launcher
    does with them: a plan (kernels/launch/plans.py).

    Args:
        schema: in torch.library's language, without the namespace: "name(Tensor x, …) -> Tensor".
        fake: same arguments → empty tensors of the right shape and dtype.
        gradient: (setup_context, backward) as `torch.library.register_autograd` wants them.
        torch_only: the implementation launches no kernel of ours on any device, and is always given tensors.
    """

    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        setup_context, backward = gradient
        _library.define(schema)
        on_cpu = _without_autocast(implementation)
        registered = on_cpu if torch_only else _by_plan(implementation, on_cpu)
        _library.impl(name, registered, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library
        )
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        return directly(implementation, on_cpu, overload, torch_only)

    return register


def _by_plan(implementation: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """What the dispatcher calls: the plan of the call where kernels compute, else the implementation."""
    names, defaults = names_and_defaults(implementation)
    values, required = tuple(defaults.values()), len(names) - len(defaults)

    def run(x: Tensor, *rest: Any) -> Any:
        if not uses_kernels(x):
            return elsewhere(x, *rest)
        arguments = (x, *rest, *values[1 + len(rest) - required :])
        return plans().call(implementation, arguments)

    return run


def _without_autocast(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast must not reach the reference's own float32 products: in bfloat16 not even integers stay exact."""

    @functools.wraps(implementation)
    def run(x: Tensor, *rest: Any) -> Any:
        device = "cpu" if x.is_cpu else x.device.type
        if not torch.is_autocast_enabled(device):
            return implementation(x, *rest)
        with torch.autocast(device, enabled=False):
            return implementation(x, *rest)

    return run


def gradient_of_bias_only(
    name: str, x_scale: int, bias: int, activation: int | None = None, residual: int | None = None
) -> tuple[Callable[..., None], Callable[..., Any]]:
    """(setup_context, backward) of an operator on quantized activations: what is added to the product learns, bias and
    residual, unless a fused activation follows; the quantized activation must not.

    Args:
        name: the operator's, for the error.
        x_scale, bias, activation, residual: places of these arguments; x_scale that of x itself, where the operator
            quantizes it.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.inputs = {
            index: (inputs[index].shape, inputs[index].dtype)
            for index in (x_scale, bias, residual)
            if index is not None and inputs[index] is not None
        }
        ctx.is_linear = activation is None or inputs[activation] == "none"

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for index, (shape, dtype) in ctx.inputs.items():
            if not ctx.needs_input_grad[index]:
                continue
            if index == x_scale or not ctx.is_linear:
                gradients[index] = refused_gradient(gradient, shape, dtype, name)
            else:
                gradients[index] = (gradient.float().sum(dim=0) if index == bias else gradient).to(dtype)
        return tuple(gradients)

    return setup_context, backward


def no_gradient(name: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    """(setup_context, backward) of an operator that returns codes: a backward pass that reaches it is refused."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.inputs = [(a.shape, a.dtype) if isinstance(a, Tensor) else None for a in inputs]
        ctx.outputs = [o.dtype for o in (output if isinstance(output, tuple) else (output,))]

    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        # Of codes a gradient arrives too, all zeros: what depends on it alone, tracing would move to the forward pass.
        floats = [index for index, dtype in enumerate(ctx.outputs) if dtype.is_floating_point]
        arrived = gradients[floats[0] if floats else 0]
        assert arrived is not None
        answers: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for index, needed in enumerate(ctx.needs_input_grad):
            if needed:
                shape, dtype = ctx.inputs[index]
                answers[index] = refused_gradient(arrived, shape, dtype, name)
        return tuple(answers)

    return setup_context, backward


def refused_gradient(arrived: Tensor, shape: torch.Size, dtype: torch.dtype, what: str) -> Tensor:
    """Raise, when the backward pass runs. Tracing a model for inference traces its backward pass too, and may go on."""
    return torch.ops.tritonq.refused_gradient(arrived, shape, dtype, what)


def _refused_gradient(arrived: Tensor, shape: torch.Size, dtype: torch.dtype, what: str) -> Tensor:
    raise refuse_gradient(what)


_library.define("refused_gradient(Tensor arrived, SymInt[] shape, ScalarType dtype, str what) -> Tensor")
_library.impl("refused_gradient", _refused_gradient, "CompositeExplicitAutograd")


@torch.library.register_fake(f"{NAMESPACE}::refused_gradient", lib=_library)
def _(arrived: Tensor, shape: torch.Size, dtype: torch.dtype, what: str) -> Tensor:
    return arrived.new_empty(shape, dtype=dtype)


def refuse_gradient(what: str) -> NotImplementedError:
    """The error of a backward pass that reaches quantized activations."""
    return NotImplementedError(
        f"{what} has no gradient with respect to its quantized activation: train the float model, or quantize "
        "weights only (w8a16, w4a16), through which gradients flow"
    )
