"""Tensors as kernels want them: dense rows, addresses, and how rows lie in scratch memory."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int8: "int8",
    torch.int32: "int32",
}
#: Bytes of a cache line, and of the cache that a tile's part of x and of the weight is to fit.
LINE, FIRST_LEVEL = 64, 28 << 10
#: Rows of x that are copied to scratch at a time; of more, the results are put together.
MOST_ROWS = 1024
#: Rows at multiples of this distance share their places in a first-level cache.
_CONFLICT = 1024


def apart(row: int) -> int:
    """Bytes from row to row, for rows of so many bytes: whole lines, and no distance at which they share places."""
    pitch = -(-row // LINE) * LINE
    return pitch + LINE * (pitch % _CONFLICT == 0)


def block_of(rows: int, most: int) -> int:
    """Rows of x in a block: blocks of at most `most` rows, of about one height."""
    blocks = max(1, -(-rows // most))
    return max(1, -(-rows // blocks))


def plain_rows(x: Tensor) -> Tensor:
    """x [M, K] such that its rows can be read at its address."""
    if x.dim() != 2:
        raise ValueError(f"x must be [rows, columns], found shape {list(x.shape)}")
    return x if x.stride(1) == 1 and not x.is_neg() else x.contiguous().resolve_neg()


def address_of(tensor: Tensor | None, count: int) -> int:
    """Where `count` dense numbers lie, 0 for None."""
    if tensor is None:
        return 0
    if tensor.numel() != count or not tensor.is_contiguous():
        raise ValueError(f"expected {count} numbers in a row, found shape {list(tensor.shape)}")
    return tensor.data_ptr()


def per_group(tensor: Tensor | None, groups: int, features: int) -> tuple[int, int]:
    """(address, bytes from group to group) of a tensor [groups, features] whose rows are dense."""
    if tensor is None:
        return 0, 0
    if tensor.shape != (groups, features) or (tensor.stride(1) != 1 and features > 1):
        raise ValueError(f"expected dense rows [{groups}, {features}], found shape {list(tensor.shape)}")
    return tensor.data_ptr(), tensor.stride(0) * tensor.element_size()
