"""One tile of an INT8 product: the loop along K, of kernels that read through pointers."""

import triton
import triton.language as tl

from ..blocks.epilogue import subtract_w_zero
from .quantize_inside import codes_of_tile


@triton.jit
def product_of_split(
    x_rows,  # int8 or float [1, BLOCK_M]; float [1, 1] where M is 1
    w_rows,  # int8 [BLOCK_N, 1]
    w_zero_ptr,  # int8 [N], or None for 0
    x_finite,  # of float rows: their grids (quantize_inside.py); None of int8 ones
    x_zero,
    x_inverse,
    n,
    N,
    K,
    split,
    SYMMETRIC: tl.constexpr,  # grids of float rows
    EVEN_K: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """int32 [BLOCK_N, BLOCK_M] Σ x·(w - w_zero) over the columns of one split."""
    k = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS)
    first = split * steps * BLOCK_K
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    x_sum = tl.zeros((BLOCK_M,), tl.int32)
    for step in range(steps):
        columns = first + step * BLOCK_K + k
        if EVEN_K:
            w = tl.load(w_rows + columns[None, :])
            x = tl.load(x_rows + columns[:, None])
        else:
            w = tl.load(w_rows + columns[None, :], mask=columns[None, :] < K, other=0)
            x = tl.load(x_rows + columns[:, None], mask=columns[:, None] < K, other=0)
        if x_inverse is not None:
            x = codes_of_tile(x, x_finite, x_zero, x_inverse, SYMMETRIC, BLOCK_M)
            if not (SYMMETRIC or EVEN_K):  # 0.0 behind the row's end has the zero point's code
                x = tl.where(columns[:, None] < K, x, 0)
        acc = tl.dot(w, x, acc, out_dtype=tl.int32)
        if w_zero_ptr is not None:
            x_sum += tl.sum(x.to(tl.int32), axis=0)
    return subtract_w_zero(acc, x_sum, w_zero_ptr, n, N)
