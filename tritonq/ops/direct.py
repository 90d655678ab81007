"""Calling an operator without torch's dispatcher, where nothing would come of asking it.

The dispatcher is what lets autograd, torch.compile, export, vmap, profilers and modes see an operator. Where none of
them looks, it costs several times what a small product takes, and on a GPU so does the launcher behind it. Then a call
on a GPU is repeated as it was recorded (kernels/prepared.py), and one on a CPU is that of the implementation. Autocast
is no reason to ask: it changes nothing in our operators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from tritonq.listeners import (
    dispatch_modes,
    forward_mode,
    function_modes,
    functorch_level,
    profiler_enabled,
    tracing_state,
)

_PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_PLAIN_VALUES = frozenset((type(None), bool, int, float, str, torch.dtype))


def directly(
    implementation: Callable[..., Any], on_cpu: Callable[..., Any], operator: Any
) -> Callable[..., Any]:
    """The operator as a function that leaves the dispatcher out where that makes no difference.

    Args:
        implementation: what the operator does on a GPU, made of nothing but new memory and launches.
        on_cpu: what it does on a CPU, called as it is.
        operator: the registered OpOverload, which stays reachable as `.overload`.
    """
    assert not operator._schema.is_mutable, "what is written to counts its versions in the dispatcher"
    name = operator._schema.name
    defaults = {argument.name: argument.default_value for argument in operator._schema.arguments}

    @functools.wraps(implementation)
    def call(*arguments: Any, **words: Any) -> Any:
        if torch.compiler.is_compiling() or not arguments:
            return operator(*arguments, **words)
        gpu = on_gpu(arguments[0])
        if not (gpu or all_on_cpu((*arguments, *words.values()))) or somebody_listens(arguments):
            return operator(*arguments, **words)
        if words:
            following = list(defaults.items())[len(arguments) :]
            arguments += tuple([words.pop(word, default) for word, default in following])
            if words:  # of a word that is unknown, or given twice, the dispatcher complains
                return operator(*arguments, **words)
        if gpu:
            return _prepared()(name, arguments, implementation, operator)
        return on_cpu(*arguments)

    call.overload = operator  # type: ignore[attr-defined]
    return call


@functools.cache
def _prepared() -> Callable[..., Any]:
    from tritonq.kernels.prepared import prepared

    return prepared


def all_on_cpu(arguments: tuple[Any, ...]) -> bool:
    """Whether the first argument is a tensor, and all tensors are plain ones of the CPU's."""
    if type(arguments[0]) not in _PLAIN_TENSORS:
        return False
    for argument in arguments:
        if type(argument) in _PLAIN_TENSORS:
            if not argument.is_cpu:
                return False
        elif type(argument) not in _PLAIN_VALUES:
            return False
    return True


def on_gpu(x: Any) -> bool:
    """Whether kernels compute on an operator's first argument."""
    return isinstance(x, Tensor) and x.is_cuda and _uses_kernels()(x)


@functools.cache
def _uses_kernels() -> Callable[[Tensor], bool]:
    from tritonq.ops.library import uses_kernels

    return uses_kernels


def somebody_listens(arguments: tuple[Any, ...]) -> bool:
    """True where the dispatcher would do more than call the implementation."""
    return (
        dispatch_modes() > 0
        or (function_modes() > 0 and not _only_default_devices())
        or functorch_level() is not None
        or tracing_state() is not None
        or forward_mode()
        or profiler_enabled()
        or (torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments))
    )


def _only_default_devices() -> bool:
    """torch.set_default_device is a mode too, one that has nothing to say to us."""
    modes = (torch._C._get_function_stack_at(index) for index in range(function_modes()))
    return all(isinstance(mode, DeviceContext) for mode in modes)
