"""Products of int8 codes, exact in int32."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

#: Products of two int8 codes summed over this many columns stay ≤ 2^24: exact in float32.
_EXACT_COLUMNS = 1024


def int_matmul(x: Tensor, w: Tensor) -> Tensor:
    """Exact product of int8 codes: [M, K] · [N, K]ᵀ → int32 [M, N]."""
    if x.device.type == "cpu" and x.numel() and w.numel() and x.shape[1] > 1 and int_mm_is_exact_and_fast():
        return torch._int_mm(_row_major(x), _row_major(w).t())
    # [M, K'] @ [K', N] for K' columns at a time
    chunks = zip(x.split(_EXACT_COLUMNS, dim=1), w.split(_EXACT_COLUMNS, dim=1), strict=True)
    products = ((x_chunk.float() @ w_chunk.float().t()).to(torch.int32) for x_chunk, w_chunk in chunks)
    return functools.reduce(torch.Tensor.add_, products)


def _row_major(x: Tensor) -> Tensor:
    """x with strides (columns, 1), even in dimensions of size 1.

    torch 2.13's int8 product silently leaves its result unwritten if a row stride is smaller than the number of columns
    (an expanded tensor). It does the same for one column, which `int_matmul` therefore computes in float32.
    """
    return x if x.stride() == (x.shape[1], 1) else torch.empty(x.shape, dtype=x.dtype).copy_(x)


def int8_accumulate(x: Tensor, x_zero: Tensor | None, w: Tensor, w_zero: Tensor | None) -> Tensor:
    """Σ_k (x - x_zero)(w - w_zero) in int32.

    Args:
        x: int8 [M, K].
        x_zero: int8 [M, 1] or [1], or None for 0.
        w: int8 [N, K].
        w_zero: int8 [N, 1] or None for 0.

    Returns:
        int32 [M, N].
    """
    total = int_matmul(x, w)
    zw = None if w_zero is None else w_zero.reshape(1, -1).to(torch.int32)  # [1, N or 1]
    if zw is not None:
        total -= x.sum(dim=1, keepdim=True, dtype=torch.int32) * zw
    if x_zero is not None:
        zx = x_zero.reshape(-1, 1).to(torch.int32)  # [M or 1, 1]
        total -= zx * w.sum(dim=1, dtype=torch.int32)
        if zw is not None:
            total += x.shape[1] * zx * zw
    return total


@functools.cache
def int_mm_is_exact_and_fast() -> bool:
    """True if torch's int8 product is exact and fast: on CPUs without VNNI it is slow or saturates to 16 bits."""
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    # A CPU that saturates sums two neighbouring products in 16 bits: try every pair of extreme codes with every pair.
    pairs = torch.tensor([[127, 127], [127, -128], [-128, 127], [-128, -128]], dtype=torch.int8)
    codes = pairs.repeat(8, 64)
    return torch.equal(torch._int_mm(codes, codes.t()).long(), codes.long() @ codes.long().t())
