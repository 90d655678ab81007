"""The one way in which a kernel is launched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

#: kernel, grid, arguments, constants.
Launcher = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]

_instead: Launcher | None = None


class _Recording(threading.local):
    """Who is told of this thread's launches (recording.py), None for nobody."""

    recorder: Any = None


recording = _Recording()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """kernel[grid](*arguments, **constants) on the current device and stream.

    Args:
        kernel: a function decorated with `triton.jit` or `gluon.jit`.
        grid: programs along up to three axes.
        arguments: what the kernel takes at run time, in its order: tensors, integers, floats, None.
        constants: its constexprs, and Triton's launch options (num_warps, num_stages, enable_fp_fusion …).
    """
    if _instead is not None:
        _instead(kernel, grid, arguments, constants)
        return
    compiled = kernel[grid](*arguments, **constants)
    if recording.recorder is not None:
        recording.recorder.launched(kernel, compiled, grid, arguments, constants)


def is_replaced() -> bool:
    """True while something else gets every launch."""
    return _instead is not None


@contextlib.contextmanager
def launching(instead: Launcher) -> Iterator[None]:
    """Meanwhile `instead` gets every launch of the process, and nothing is launched."""
    global _instead
    before, _instead = _instead, instead
    try:
        yield
    finally:
        _instead = before


def compile_only(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """A launch up to the launch itself: what it would need is compiled and in Triton's cache on disk."""
    kernel.warmup(*arguments, grid=grid, **constants)
