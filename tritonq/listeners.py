"""Who in torch may be listening to calls of operators: modes, transforms, traces, profilers.

torch says so in functions of its own that it may rename. One that is missing counts as a listener: what this package
leaves out when nobody listens is then not left out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad


def _of_torch(name: str, listening: Any) -> Callable[[], Any]:
    """The function torch._C.<name>, or one that returns `listening`."""
    try:
        found: Callable[[], Any] = operator.attrgetter(name)(torch._C)
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
