"""Chooses the engine of this process, and so its instruction set.

`engine()` is None if llvmlite is missing, the processor is unknown, or `TRITONQ_CPU=off`. Then the reference computes.
An instruction set is used only if it passes a self-test on this machine: an exact product of extreme codes.
"""

from __future__ import annotations

import functools
import os
import warnings

from tritonq.cpu import processor
from tritonq.cpu.engine import Engine
from tritonq.cpu.processor import Instructions


def engine_for(instructions: Instructions) -> Engine:
    """The engine of one instruction set. Imports its operators here, because they import llvmlite."""
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
    """The engine, or None. Then a warning gives the reason once, unless the user turned the engine off."""
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
    _say_slower("there are no kernels for its instructions")
    return None


def _say_slower(obstacle: str) -> None:
    warnings.warn(f"tritonq computes in plain, slower torch on this CPU: {obstacle}", stacklevel=4)
