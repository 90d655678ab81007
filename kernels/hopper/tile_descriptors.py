"""Descriptors that Gluon's kernels take: those of ../descriptors.py with the layout of a tile in shared memory."""

from __future__ import annotations

from typing import Any

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..launch import descriptors
from ..launch.operands import Operand


def tile_descriptor(
    matrix: Operand, block_rows: int, block_columns: int, columns: int | None = None, swizzled: bool = True
) -> TensorDescriptor:
    """`descriptors.tile_descriptor`.

    Args:
        swizzled: tiles are swizzled in shared memory, by their rows up to 128 bytes, as products want them; otherwise
            they lie there row after row, whatever their height.
    """
    make = _with_swizzled_tiles if swizzled else _with_plain_tiles
    return descriptors.tile_descriptor(matrix, block_rows, block_columns, columns, make)


def _with_swizzled_tiles(
    base: Any, shape: list[int], strides: list[int], block: list[int]
) -> TensorDescriptor:
    size = base.dtype.itemsize
    layout = gl.NVMMASharedLayout(min(128, block[1] * size), 8 * size, 2)
    return TensorDescriptor(base, shape, strides, block, layout)


def _with_plain_tiles(base: Any, shape: list[int], strides: list[int], block: list[int]) -> TensorDescriptor:
    return TensorDescriptor(base, shape, strides, block, gl.NVMMASharedLayout(0, 8 * base.dtype.itemsize, 2))
