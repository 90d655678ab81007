"""Descriptors of matrices in global memory, with which the copy engine (TMA) moves tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .operands import Operand


def is_addressable(matrix: Operand | Tensor) -> bool:
    """True where the copy engine can reach a matrix: address and rows aligned to 16 bytes, columns dense, not empty.

    Rows lie behind each other: those that share memory, of an expanded tensor or a sliding window, it need not take.
    """
    size = matrix.element_size()
    return (
        matrix.numel() > 0
        and matrix.stride(1) == 1
        and matrix.stride(0) >= matrix.shape[1]
        and matrix.data_ptr() % 16 == 0
        and matrix.stride(0) * size % 16 == 0
    )


def tile_descriptor(
    matrix: Operand,
    block_rows: int,
    block_columns: int,
    columns: int | None = None,
    make: Callable[..., Any] = TensorDescriptor,
) -> Any:
    """Describe an addressable matrix [R, C] that is moved in tiles of [block_rows, block_columns].

    Only the first `columns` of it exist for the copy engine, by default all: what lies outside is read as 0 and is
    never written.

    Args:
        make: (base, shape, strides, block) → descriptor; by default one that plain Triton's kernels take.
    """
    shape = [matrix.shape[0], matrix.shape[1] if columns is None else columns]
    strides, block = [matrix.stride(0), 1], [block_rows, block_columns]
    return make(matrix, shape, strides, block)
