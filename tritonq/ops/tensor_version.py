"""How often a tensor was changed in place, for code that torch.compile traces.

Eager code reads `x._version`. A trace knows the count as well, from the stand-in tensor on which it replays each
operator, but does not let the traced code branch on it. It does let it branch on shapes: so an operator returns an
empty tensor that has the count as its shape. Nothing reads that tensor, and compilers drop the call.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tritonq.ops.declare import no_gradient, operator

#: Trace (its fake tensor mode) → a number of its own.
_traces: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_count = 0


def _number_of(trace: Any) -> int:
    global _count
    if trace not in _traces:
        _count += 1
        _traces[trace] = _count
    return _traces[trace]


def _fake(x: Tensor) -> Tensor:
    trace = getattr(x, "fake_mode", None)
    number = 0 if trace is None else _number_of(trace)
    return torch.empty((number, x._version, 0), device="meta")


@operator("traced_version(Tensor x) -> Tensor", _fake, no_gradient("traced_version"), torch_only=True)
def traced_version(x: Tensor) -> Tensor:
    """While a trace runs: an empty tensor of shape [number of the trace, version of x, 0]; outside [0, 0, 0].

    Two marks are equal if they were made in one trace and x was not changed in place in between.
    """
    return torch.empty((0, 0, 0), device="meta")
