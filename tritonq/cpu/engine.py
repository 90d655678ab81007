"""The engine of this process: which instructions it uses, and its kernels, compiled as they are first needed.

`engine()` is None where llvmlite is missing, the processor is not known, or `TRITONQ_CPU=off`: the reference computes
then. An instruction set is used only after a product of extreme codes has come out right on this machine.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tritonq.cpu import processor, threads
from tritonq.cpu.processor import Instructions

#: Seconds of compiling that pass before that is said.
_PATIENCE = 1.0
#: Products (multiplications) below which more threads cost more than they save.
_PARALLEL_FROM = 1 << 18


class Kernel:
    """A compiled kernel: call it with the number of multiplications it does and its int64 arguments."""

    def __init__(self, address: int, fields: int) -> None:
        self._address = address
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)
        self._pack = struct.Struct(f"={fields + 1}q").pack

    def __call__(self, work: int, *arguments: int) -> None:
        # Bytes are the fastest memory that Python makes; nobody else sees these, whose first number is counted on.
        packed = self._pack(0, *arguments)
        if work < _PARALLEL_FROM:
            self._call(packed)
        else:
            threads.run(self._call, self._address, packed)


class Engine:
    """Kernels for one instruction set."""

    def __init__(self, instructions: Instructions) -> None:
        self.instructions = instructions
        self._kernels: dict[Any, Kernel] = {}
        self._lock = threading.Lock()

    def kernel(self, build: Callable[[Any, Instructions], Any], what: Any) -> Kernel:
        """The kernel that `build` writes for `what`, which is hashable."""
        found = self._kernels.get((build, what))
        if found is None:
            with self._lock:
                found = self._kernels.get((build, what))
                if found is None:
                    found = self._kernels[build, what] = self._compiled(build, what)
        return found

    def _compiled(self, build: Callable[[Any, Instructions], Any], what: Any) -> Kernel:
        from tritonq.cpu.compiler import compiled

        with _patience():
            code = build(what, self.instructions)
            return Kernel(compiled(code.finish(), code.name, self.instructions), len(code.arguments))


@functools.cache
def engine() -> Engine | None:
    """The engine, or None; why there is none is said once, unless it was asked for."""
    if os.environ.get(processor.VARIABLE) == processor.OFF:
        return None
    if importlib.util.find_spec("llvmlite") is None:
        _say_slower('llvmlite is not installed: pip install "tritonq[cpu]"')
        return None
    from tritonq.cpu.self_test import is_exact

    for instructions in processor.candidates():
        found = Engine(instructions)
        if is_exact(found):
            return found
    _say_slower("its instructions are none that the kernels are written for")
    return None


def _say_slower(obstacle: str) -> None:
    warnings.warn(f"tritonq computes in plain, slower torch on this CPU: {obstacle}", stacklevel=4)


@contextmanager
def _patience() -> Iterator[None]:
    """Say what takes so long, where it takes long."""
    line = "tritonq compiles its CPU kernels, once for this machine"
    timer = threading.Timer(_PATIENCE, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Scratch(threading.local):
    """Memory of a thread that its calls use one after the other."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> int:
        """The address of at least `size` bytes, at a multiple of 64, until the thread's next call."""
        if self._held.numel() < size + 64:
            self._held = torch.empty(size + 64, dtype=torch.uint8)
            self.address = (self._held.data_ptr() + 63) & -64
        return self.address


scratch = Scratch()
