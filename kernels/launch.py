"""The one way in which a kernel is launched."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """kernel[grid](*arguments, **constants) on the current device and stream.

    Args:
        kernel: a function decorated with `triton.jit` or `gluon.jit`.
        grid: programs along up to three axes.
        arguments: what the kernel takes at run time, in its order: tensors, integers, floats, None.
        constants: its constexprs, and Triton's launch options (num_warps, num_stages, enable_fp_fusion …).
    """
    kernel[grid](*arguments, **constants)
