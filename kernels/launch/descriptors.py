"""Descriptors of matrices in global memory, with which the copy engine (TMA) moves tiles; made once for each matrix.

Making one checks a dozen things in Python, which takes as long as a small product. It holds an address, a shape and
strides, nothing of what lies there, so that one that is found again by these is as good as new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

#: A model's weights, and the activations that the allocator puts at the same places again and again.
_REMEMBERED = 1 << 12
_made: dict[tuple[object, ...], Any] = {}


@dataclasses.dataclass(frozen=True)
class Address:
    """What a descriptor wants of a tensor. A tensor itself would be kept alive by it."""

    pointer: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        """The address."""
        return self.pointer


def is_addressable(matrix: Tensor) -> bool:
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
    matrix: Tensor,
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
    if not matrix.is_cuda:
        return make(matrix, shape, strides, block)
    key = (make, matrix.data_ptr(), matrix.dtype, *shape, strides[0], *block)
    descriptor = _made.get(key)
    if descriptor is None:
        if len(_made) >= _REMEMBERED:
            _made.clear()
        base = Address(matrix.data_ptr(), matrix.dtype)
        descriptor = _made[key] = make(base, shape, strides, block)
    return descriptor
