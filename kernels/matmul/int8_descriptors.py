"""INT8 products of one weight where M is large, their tiles brought by the tensor copy engine (TMA).

One program per multiprocessor walks through the tiles; the loops over tiles and over K are one pipeline, so that the
loads of the next tile run while a tile is scaled and stored. Plain Triton: this is the path of the GPUs that have the
engine (compute capability 9.0 and later) and no kernel written for them alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..blocks.epilogue import Columns, Output, Place, Residual, Weight, finished, subtract_w_zero
from ..blocks.int8_product import Int8Product
from ..config.tile import TileConfig, tile_of_program
from ..launch.descriptors import tile_descriptor
from ..launch.launch import Launch
from ..launch.target import Target


@triton.jit
def int8_descriptor_matmul_kernel(
    x_tiles,  # descriptor of int8 [M, K], blocks [BLOCK_M, BLOCK_K]
    x_scale_ptr,  # what has no comment is as in int8_matmul_kernel
    x_zero_ptr,
    w_tiles,  # descriptor of int8 [N, K], blocks [BLOCK_N, BLOCK_K]
    w_scale_ptr,
    w_zero_ptr,
    w_sum_ptr,
    bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    residual_zero_ptr,
    out_ptr,
    out_scale_ptr,
    out_zero_ptr,
    M,
    N,
    K,
    stride_residual,
    ACTIVATION: tl.constexpr,
    X_QPARAM_STRIDE: tl.constexpr,
    OUT_QMIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Every PROGRAMS-th [BLOCK_N, BLOCK_M] tile of outᵀ."""
    tiles = tl.cdiv(N, BLOCK_N) * tl.cdiv(M, BLOCK_M)
    steps = tl.cdiv(K, BLOCK_K)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        tile_n, tile_m = tile_of_program(tile, N, M, BLOCK_N, BLOCK_M, GROUP)
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
        x_sum = tl.zeros((BLOCK_M,), tl.int32)
        for step in range(steps):
            w = w_tiles.load([tile_n * BLOCK_N, step * BLOCK_K])
            x = x_tiles.load([tile_m * BLOCK_M, step * BLOCK_K])
            acc = tl.dot(w, x.T, acc, out_dtype=tl.int32)
            if w_zero_ptr is not None:
                x_sum += tl.sum(x.to(tl.int32), axis=1)
        acc = subtract_w_zero(acc, x_sum, w_zero_ptr, tile_n * BLOCK_N + tl.arange(0, BLOCK_N), N)
        # Strips of 128 rows are finished one after the other: two at once need more registers than there are.
        STRIPS: tl.constexpr = 2 if BLOCK_N > 128 else 1
        if STRIPS == 2:
            first, second = tl.split(tl.permute(tl.reshape(acc, (2, BLOCK_N // 2, BLOCK_M)), (1, 2, 0)))
        for strip in tl.static_range(STRIPS):
            if STRIPS == 2:
                part = first if strip == 0 else second
            else:
                part = acc
            n = tile_n * BLOCK_N + strip * (BLOCK_N // STRIPS) + tl.arange(0, BLOCK_N // STRIPS)
            m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
            values = finished(
                part,
                None,
                Columns(x_scale_ptr, x_zero_ptr, X_QPARAM_STRIDE),
                Weight(w_scale_ptr, w_zero_ptr, w_sum_ptr, bias_ptr),
                None,
                Residual(residual_ptr, residual_scale_ptr, residual_zero_ptr, stride_residual),
                Output(out_scale_ptr, out_zero_ptr, OUT_QMIN, ACTIVATION),
                Place(n, m, N, M, K),
            )
            out_ptrs = out_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
            tl.store(out_ptrs, values.to(out_ptr.dtype.element_ty), mask=(n < N)[:, None] & (m < M)[None, :])


def descriptors_launch(product: Int8Product, config: TileConfig, target: Target) -> Launch:
    """Of a product of one weight, whose matrices are addressable."""
    rows, features, columns = product.shape
    programs = min(target.multiprocessors, config.tiles(features, rows))
    x = tile_descriptor(product.x[0], config.block_m, config.block_k)
    w = tile_descriptor(product.w.codes, config.block_n, config.block_k, columns)
    return Launch(
        int8_descriptor_matmul_kernel,
        (programs,),
        *product.operands(x, w),
        *product.results(product.out),
        rows,
        features,
        columns,
        product.stride_residual,
        **product.constants,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        GROUP=8,
        PROGRAMS=programs,
        enable_fp_fusion=False,
        **config.launch_options,
    )
