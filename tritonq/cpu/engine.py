"""Kernels for one instruction set, compiled as they are first needed."""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tritonq.cpu import threads
from tritonq.cpu.processor import Instructions

#: Seconds of compiling after which a line on stderr says so.
_PATIENCE = 1.0
#: Products (multiplications) below which more threads cost more than they save.
_PARALLEL_FROM = 1 << 18
#: By number of arguments: packs a kernel's counter and arguments into bytes.
_PACK = [struct.Struct(f"={count + 1}q").pack for count in range(32)]


class Kernel:
    """A compiled kernel: call it with the number of multiplications it does and its int64 arguments."""

    def __init__(self, address: int) -> None:
        self._address = address
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)

    def __call__(self, work: int, *arguments: int) -> None:
        # Python allocates bytes fastest. The kernel counts in their first number; no other code holds this object.
        packed = _PACK[len(arguments)](0, *arguments)
        if work < _PARALLEL_FROM:
            self._call(packed)
        else:
            threads.run(self._call, self._address, packed)


class Engine:
    """Kernels for one instruction set.

    Args:
        instructions: the set.
        int4, int8, quantize, weight_only: the modules with the operators, which take this engine as first argument.
    """

    def __init__(self, instructions: Instructions, *, int4: Any, int8: Any, quantize: Any, weight_only: Any):
        self.instructions = instructions
        self.int4, self.int8, self.quantize, self.weight_only = int4, int8, quantize, weight_only
        self._kernels: dict[Any, Kernel] = {}
        self._lock = threading.Lock()

    def kernel(self, build: Callable[[Any, Instructions], Any], what: Any) -> Kernel:
        """The kernel that `build` writes for `what`, a named tuple of plain values."""
        found = self._kernels.get((build, what))
        if found is None:
            with self._lock:
                found = self._kernels.get((build, what))
                if found is None:
                    found = self._kernels[build, what] = _compiled(build, what, self.instructions)
        return found


def _compiled(build: Callable[[Any, Instructions], Any], what: Any, instructions: Instructions) -> Kernel:
    from tritonq.cpu.compiler import compiled

    with _patience():
        return Kernel(compiled(build, what, instructions))


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _patience() -> Iterator[None]:
    """Tell the user that kernels compile, if it takes longer than `_PATIENCE`."""
    line = "tritonq compiles its CPU kernels, once for this machine"
    timer = threading.Timer(_PATIENCE, _say_once, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Scratch(threading.local):
    """Scratch memory: one buffer per thread, which its calls reuse."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.uint8)
        self._address = 0

    def take(self, size: int) -> int:
        """The address of at least `size` bytes, at a multiple of 64, until the thread's next call."""
        if self._held.numel() < size + 64:
            self._held = torch.empty(size + 64, dtype=torch.uint8)
            self._address = (self._held.data_ptr() + 63) & -64
        return self._address


scratch = Scratch()
