"""INT8 products in plain Triton, for every GPU: each program computes a tile of outᵀ, or a split of one.

x is int8; or float, and quantized per token on the way (quantize_inside.py). With a second weight a program holds a
tile of each against one tile of x, in two accumulators, so that x is read once and neither product is ever written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..blocks.epilogue import Columns, Output, Place, Residual, Weight, finished, subtract_w_zero
from ..blocks.int8_product import FloatActivation, Int8Product
from ..blocks.split_k import sum_of_splits, sums_of_splits, workspace
from ..config.tile import TileConfig, tile_of_program
from ..launch.launch import Launch
from .quantize_inside import codes_of_tile, grids_of_rows


@triton.jit
def int8_matmul_kernel(
    x_ptr,  # int8 or float [M, K], row stride stride_x
    x_scale_ptr,  # float32 [M] or [1] of int8, None of float
    x_zero_ptr,  # int8 [M] or [1], or None for 0
    w_ptr,  # int8 [N, stride_w], columns K onwards are padding
    w_scale_ptr,  # float [N]
    w_zero_ptr,  # int8 [N], or None for 0
    w_sum_ptr,  # int32 [N], the sum of each row's codes
    bias_ptr,  # float [N], or None
    up_ptr,  # a second weight like the first, or None
    up_scale_ptr,
    up_zero_ptr,
    up_sum_ptr,
    up_bias_ptr,
    residual_ptr,  # float or int8 [M, N], row stride stride_residual, or None
    residual_scale_ptr,  # float32 [1] of an int8 residual, or None
    residual_zero_ptr,  # int8 [1], or None for 0
    out_ptr,  # float or int8 [M, N]
    out_scale_ptr,  # float32 [1], or None for float output
    out_zero_ptr,  # int8 [1], or None for float output
    partials_ptr,  # int32 [tiles, weights, SPLITS, BLOCK_N, BLOCK_M], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    stride_x,
    stride_w,
    stride_up,
    stride_residual,
    ACTIVATION: tl.constexpr,
    X_QPARAM_STRIDE: tl.constexpr,  # 1: per token, 0: per tensor
    X_SYMMETRIC: tl.constexpr,  # how rows of float x are quantized
    OUT_QMIN: tl.constexpr,
    EVEN_K: tl.constexpr,  # K % (BLOCK_K · SPLITS) == 0
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,  # BLOCK_M, or 1 of float where M is 1
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One [BLOCK_N, BLOCK_M] tile of outᵀ, or one split of it."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    tile_n, tile_m = tile_of_program(tile, N, M, BLOCK_N, BLOCK_M, GROUP)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    read = tile_m * BLOCK_M + tl.arange(0, ROWS)
    if x_scale_ptr is None:
        finite, scale, zero, inverse = grids_of_rows(x_ptr, read, M, K, stride_x, X_SYMMETRIC, ROWS)

    k = tl.arange(0, BLOCK_K)
    # Rows beyond the edge wrap around: a modulo here is cheaper than a mask in the loop.
    n_wrapped = (n % N).to(tl.int64)[:, None]
    w_rows = w_ptr + n_wrapped * stride_w  # [BLOCK_N, 1]
    x_rows = x_ptr + (read % M).to(tl.int64)[None, :] * stride_x  # [1, ROWS]

    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS)
    first = split * steps * BLOCK_K
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    up_acc = None
    if up_ptr is not None:
        up_rows = up_ptr + n_wrapped * stride_up
        up_acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    x_sum = tl.zeros((BLOCK_M,), tl.int32)
    for step in range(steps):
        columns = first + step * BLOCK_K + k
        w = codes_of_step(w_rows + columns[None, :], columns[None, :] < K, EVEN_K)
        x = codes_of_step(x_rows + columns[:, None], columns[:, None] < K, EVEN_K)
        if x_scale_ptr is None:
            x = codes_of_tile(x, finite, zero, inverse, X_SYMMETRIC, BLOCK_M)
            if not (X_SYMMETRIC or EVEN_K):  # 0.0 behind the row's end has the zero point's code
                x = tl.where(columns[:, None] < K, x, 0)
        acc = tl.dot(w, x, acc, out_dtype=tl.int32)  # [BLOCK_N, BLOCK_K] @ [BLOCK_K, BLOCK_M]
        if up_ptr is not None:
            up = codes_of_step(up_rows + columns[None, :], columns[None, :] < K, EVEN_K)
            up_acc = tl.dot(up, x, up_acc, out_dtype=tl.int32)
        if w_zero_ptr is not None or up_zero_ptr is not None:
            x_sum += tl.sum(x.to(tl.int32), axis=0)

    acc = subtract_w_zero(acc, x_sum, w_zero_ptr, n, N)
    if up_ptr is not None:
        up_acc = subtract_w_zero(up_acc, x_sum, up_zero_ptr, n, N)
    m_inside = m < M
    if SPLITS > 1:
        if up_ptr is None:
            acc, is_last = sum_of_splits(acc, partials_ptr, counters_ptr, tile, split, SPLITS)
        else:
            acc, up_acc, is_last = sums_of_splits(
                acc, up_acc, partials_ptr, counters_ptr, tile, split, SPLITS
            )
        m_inside = m < tl.where(is_last, M, 0)

    values = finished(
        acc,
        up_acc,
        Columns(x_scale_ptr, x_zero_ptr, X_QPARAM_STRIDE)
        if x_scale_ptr is not None
        else Columns(scale[None, :], None if X_SYMMETRIC else zero.to(tl.int32)[None, :], None),
        Weight(w_scale_ptr, w_zero_ptr, w_sum_ptr, bias_ptr),
        None if up_ptr is None else Weight(up_scale_ptr, up_zero_ptr, up_sum_ptr, up_bias_ptr),
        Residual(residual_ptr, residual_scale_ptr, residual_zero_ptr, stride_residual),
        Output(out_scale_ptr, out_zero_ptr, OUT_QMIN, ACTIVATION),
        Place(n, m, N, M, K),
    )
    inside = (n < N)[:, None] & m_inside[None, :]
    out_ptrs = out_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out_ptrs, values.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def codes_of_step(pointers, inside, EVEN_K: tl.constexpr):
    """What lies at the pointers; 0 where not inside, which is not asked with EVEN_K."""
    if EVEN_K:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside, other=0)


def pointers_launch(product: Int8Product, config: TileConfig) -> Launch:
    """Of any product."""
    (rows, features, columns), up = product.shape, product.up
    x, w = product.x[0], product.w.codes
    tiles = config.tiles(features, rows)
    tile_elements = config.block_n * config.block_m * (1 if up is None else 2)
    partials, counters = workspace(x, torch.int32, config.splits, tiles, tile_elements)
    return Launch(
        int8_matmul_kernel,
        (tiles, config.splits),
        *product.operands(x, w),
        *product.second(None if up is None else up.codes),
        *product.results(product.out),
        partials,
        counters,
        rows,
        features,
        columns,
        x.stride(0),
        w.shape[1],
        0 if up is None else up.codes.shape[1],
        product.stride_residual,
        **product.constants,
        X_SYMMETRIC=isinstance(product.x, FloatActivation) and product.x.symmetric,
        EVEN_K=columns % (config.block_k * config.splits) == 0,
        SPLITS=config.splits,
        ROWS=1 if isinstance(product.x, FloatActivation) and rows == 1 else config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        GROUP=8,
        enable_fp_fusion=False,
        **config.launch_options,
    )
