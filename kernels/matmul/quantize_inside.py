"""Quantizes rows per token inside a product's launch. The codes are never written to memory.

    prologue    each program reads all of its rows of x once, and finds their extremes and so their grids
    loop        each tile of x is read again and quantized just before the matrix instruction

Codes and scales are those of `quantize_per_token` bit for bit. Every program that reads a row quantizes it again. If
the rows are few and short enough for a cache, this may cost less than a separate launch.
"""

import triton
import triton.language as tl

from ..blocks.rounding import to_code
from ..blocks.row_grid import grid_of_extremes

#: Elements of x that a program looks at together.
_ELEMENTS = tl.constexpr(4096)


@triton.jit
def grids_of_rows(x_ptr, m, M, K, stride_x, SYMMETRIC: tl.constexpr, ROWS: tl.constexpr):
    """(finite, scale, zero point, 1/scale), [ROWS] each, of rows m [ROWS] of x, modulo M."""
    BLOCK: tl.constexpr = _ELEMENTS // ROWS
    columns = tl.arange(0, BLOCK)
    rows = x_ptr + (m % M).to(tl.int64)[:, None] * stride_x + columns[None, :]
    bits = tl.zeros((ROWS, BLOCK), tl.int32)
    low = tl.zeros((ROWS, BLOCK), tl.float32)
    high = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        x = tl.load(rows + start, mask=(start + columns)[None, :] < K, other=0.0).to(tl.float32)
        bits = tl.maximum(bits, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        if not SYMMETRIC:
            low = tl.minimum(low, x)
            high = tl.maximum(high, x)
    largest = tl.max(bits, axis=1)
    if SYMMETRIC:  # the largest magnitude is all that counts
        lowest = tl.zeros((ROWS,), tl.float32)
        highest = largest.to(tl.float32, bitcast=True)
    else:
        lowest = tl.min(low, axis=1)
        highest = tl.max(high, axis=1)
    finite, scale, zero, inverse = grid_of_extremes(largest, lowest, highest, SYMMETRIC)
    return finite, scale, zero + tl.zeros((ROWS,), tl.float32), inverse


@triton.jit
def codes_of_tile(x, finite, zero, inverse, SYMMETRIC: tl.constexpr, BLOCK_M: tl.constexpr):
    """int8 codes [·, BLOCK_M] of floats [·, ROWS] on the grids of their columns.

    ROWS is BLOCK_M, or 1: a single row is quantized once and repeated.
    """
    values = tl.where(finite[None, :], x.to(tl.float32), 0.0) * inverse[None, :]
    codes = to_code(values, zero[None, :], -127.0 if SYMMETRIC else -128.0, 127.0)
    return tl.broadcast_to(codes, (x.shape[0], BLOCK_M))
