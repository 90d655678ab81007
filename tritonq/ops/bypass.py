"""Calling an operator past torch's dispatcher, where the dispatcher would add nothing.

The dispatcher lets autograd, torch.compile, export, vmap, profilers and modes see an operator. It costs several times
what a small product takes. If none of them is active, a call on a GPU runs the plan of its kind
(kernels/launch/plans.py), and a call on a CPU goes to the implementation. If one is, the call goes through the
dispatcher. Autocast does not count: it changes nothing in our operators.

torch answers in private functions, which it may rename. If one is missing, it counts as active.
"""

from __future__ import annotations

import functools
import inspect
import operator as python_operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from tritonq.ops.backends import uses_kernels


def _of_torch(name: str, listening: Any) -> Callable[[], Any]:
    """The function torch._C.<name>, or one that returns `listening`."""
    try:
        found: Callable[[], Any] = python_operator.attrgetter(name)(torch._C)
    except AttributeError:
        return lambda: listening
    return found


#: How many modes of __torch_dispatch__ and of __torch_function__ are on.
dispatch_modes: Callable[[], int] = _of_torch("_len_torch_dispatch_stack", 1)
function_modes: Callable[[], int] = _of_torch("_len_torch_function_stack", 1)
#: The level of vmap, grad and the like, None outside.
functorch_level: Callable[[], int | None] = _of_torch("_functorch.maybe_current_level", 1)
#: What torch.jit.trace is writing, None outside.
tracing_state: Callable[[], Any] = _of_torch("_get_tracing_state", "unknown")
#: Whether torch's profiler runs.
profiler_enabled: Callable[[], bool] = _of_torch("_autograd._profiler_enabled", True)


def forward_mode() -> bool:
    """Whether forward-mode differentiation is on."""
    level: int = getattr(forward_ad, "_current_level", 0)
    return level >= 0


def is_exporting() -> bool:
    """Whether torch.export traces. Up to torch 2.11, torch.compile takes torch's own function for a yes, always."""
    return bool(getattr(torch.compiler, "_is_exporting_flag", torch.compiler.is_exporting()))


_PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_PLAIN_VALUES = frozenset((type(None), bool, int, float, str, torch.dtype))


def directly(
    implementation: Callable[..., Any], on_cpu: Callable[..., Any], operator: Any, torch_only: bool
) -> Callable[..., Any]:
    """The operator as a function that leaves the dispatcher out where that makes no difference.

    Args:
        implementation: given operands, it returns what the operator launches on a GPU.
        on_cpu: what the operator does on a CPU, or everywhere if it is `torch_only`; called as it is.
        operator: the registered OpOverload, which stays reachable as `.overload`.
    """
    assert not operator._schema.is_mutable, "what is written to counts its versions in the dispatcher"
    names, defaults = names_and_defaults(implementation)
    values, count = tuple(defaults.values()), len(names)
    required = count - len(values)

    @functools.wraps(implementation)
    def call(*arguments: Any, **words: Any) -> Any:
        if torch.compiler.is_compiling() or not arguments:
            return operator(*arguments, **words)
        gpu = on_gpu(arguments[0])
        if not (gpu or all_on_cpu((*arguments, *words.values()))) or needs_dispatcher(arguments):
            return operator(*arguments, **words)
        if words:
            for word in names[len(arguments) :]:
                if word not in words and word not in defaults:
                    break
                arguments += (words.pop(word, defaults.get(word)),)
            if words:  # unknown, given twice, behind one that is missing: the dispatcher says so
                return operator(*arguments, **words)
        if len(arguments) != count:
            if not required <= len(arguments) < count:
                return operator(*arguments)
            arguments += values[len(arguments) - required :]
        if gpu and not torch_only:
            return plans().call(implementation, arguments, operator)
        return on_cpu(*arguments)

    call.overload = operator  # type: ignore[attr-defined]
    return call


def names_and_defaults(implementation: Callable[..., Any]) -> tuple[list[str], dict[str, Any]]:
    """(the names of a function's parameters, the values of the last of them, which may be left out)."""
    parameters = inspect.signature(implementation).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return list(parameters), defaults


@functools.cache
def plans() -> Any:
    """kernels/launch/plans.py, which imports Triton."""
    from tritonq.kernels.launch import plans

    return plans


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
    return isinstance(x, Tensor) and x.is_cuda and uses_kernels(x)


def needs_dispatcher(arguments: tuple[Any, ...]) -> bool:
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
