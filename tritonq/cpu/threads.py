"""Runs a kernel on torch's threads.

Every thread calls the same function with the same arguments. It takes piece after piece of the work from a counter in
the arguments. A piece's result does not depend on the thread that computes it, so results have the same bits for any
number of threads.

The threads are those of torch's OpenMP (`GOMP_parallel`, from a library that libtorch is linked with), so the process
gets no additional ones. If torch has no such function, Python's threads are used. A forked process computes on one
thread: it has none of its parent's threads, and OpenMP would wait for them.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_forked = False


def run(kernel: Callable[[bytes], None], address: int, arguments: bytes) -> None:
    """Call a kernel, on as many threads as torch would use."""
    threads = 1 if _forked else torch.get_num_threads()
    if threads == 1:
        kernel(arguments)
    else:
        _team()(kernel, address, arguments, threads)


@functools.cache
def _team() -> Callable[[Callable[[bytes], None], int, bytes, int], None]:
    start = _openmp()
    if start is None:
        return _on_python_threads
    return lambda kernel, address, arguments, threads: start(address, arguments, threads, 0)


def _openmp() -> Any:
    """GOMP_parallel(function, argument, threads, flags), or None."""
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            start = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        start.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
        start.restype = None
        return start
    return None


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="tritonq")


def _on_python_threads(kernel: Callable[[bytes], None], address: int, arguments: bytes, threads: int) -> None:
    others = [_pool(threads - 1).submit(kernel, arguments) for _ in range(threads - 1)]
    kernel(arguments)
    for other in others:
        other.result()


def _remember_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_fork)
