"""The engine of this process: which instructions it uses.

`engine()` is None where llvmlite is missing, the processor is not known, or `TRITONQ_CPU=off`: the reference computes
then. An instruction set is used only after a product of extreme codes has come out right on this machine.
"""

from __future__ import annotations

import functools
import os
import warnings

from tritonq.cpu import processor
from tritonq.cpu.engine import Engine
from tritonq.cpu.processor import Instructions


def engine_for(instructions: Instructions) -> Engine:
    """The engine of one instruction set. Its operators are imported here, since they import llvmlite."""
    from tritonq.cpu import int4_linear, int8_linear, quantize_tensors, weight_only_linear

    return Engine(
        instructions,
        int4=int4_linear,
        int8=int8_linear,
        quantize=quantize_tensors,
        weight_only=weight_only_linear,
    )


@functools.cache
def engine() -> Engine | None:
    """The engine, or None; why there is none is said once, unless it was asked for."""
    if os.environ.get(processor.VARIABLE) == processor.OFF:
        return None
    try:
        import llvmlite  # noqa: F401
    except ImportError:
        _say_slower('llvmlite is not installed: pip install "tritonq[cpu]"')
        return None
    from tritonq.cpu.self_test import is_exact

    for instructions in processor.candidates():
        found = engine_for(instructions)
        if is_exact(found):
            return found
    _say_slower("its instructions are none that the kernels are written for")
    return None


def _say_slower(obstacle: str) -> None:
    warnings.warn(f"tritonq computes in plain, slower torch on this CPU: {obstacle}", stacklevel=4)
