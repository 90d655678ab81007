"""W4A8 in plain Triton, for every GPU: each program computes a tile of outᵀ, or a split of one.

A nibble moved to the upper half of a byte is 16 times its code, so every product is 16 times too large, exactly; the
partial sums are shifted right by 4 before anything else happens. x may be float: then it is quantized per token on the
way (quantize_inside.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..blocks.split_k import sum_of_splits, workspace
from ..blocks.unpack import byte_to_int8
from ..config.int4_int8_rule import SLABS
from ..config.tile import TileConfig, tile_of_program
from ..launch.launch import Launch
from ..launch.operands import Operand
from .quantize_inside import codes_of_tile, grids_of_rows


@triton.jit
def int4_int8_matmul_kernel(
    x_ptr,  # int8 or float [M, K], row stride stride_x
    x_scale_ptr,  # float32 [M] of int8, None of float
    w_ptr,  # int8 bytes [N, stride_w]
    w_scale_ptr,  # float [G, N]
    bias_ptr,  # float [N], or None
    out_ptr,  # float [M, N]
    partials_ptr,  # int32 (one group) or float32 [tiles, SPLITS, BLOCK_N, BLOCK_M], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    stride_x,
    stride_w,
    blocks,  # of 2 · SLAB columns, per row of the weight
    groups,
    group_size,
    padded_group,  # columns that a group takes in the weight's layout
    SLAB: tl.constexpr,
    SLABS_PER_SCALE: tl.constexpr,  # 0: one group, its scale applied at the end
    GROUPS_ARE_PADDED: tl.constexpr,
    EVEN_K: tl.constexpr,  # the blocks hold exactly K columns
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,  # BLOCK_M, or 1 of float where M is 1
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One [BLOCK_N, BLOCK_M] tile of outᵀ, or one split of it."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    tile_n, tile_m = tile_of_program(tile, N, M, BLOCK_N, BLOCK_M, GROUP)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    s = tl.arange(0, SLAB)
    n_wrapped = n % N
    w_rows = w_ptr + n_wrapped.to(tl.int64)[:, None] * stride_w  # [BLOCK_N, 1]
    read = tile_m * BLOCK_M + tl.arange(0, ROWS)
    x_rows = x_ptr + (read % M).to(tl.int64)[None, :] * stride_x  # [1, ROWS]
    if x_scale_ptr is None:
        finite, x_scale, zero, inverse = grids_of_rows(x_ptr, read, M, K, stride_x, True, ROWS)

    blocks_per_split = tl.cdiv(blocks, SPLITS)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, blocks)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    partial = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for block in range(first, last):
        words = tl.load(w_rows + block * SLAB + s[None, :])  # [BLOCK_N, SLAB]
        for position in tl.static_range(2):
            column = (block * 2 + position) * SLAB
            if GROUPS_ARE_PADDED:
                within = column % padded_group + s
                k = (column // padded_group) * group_size + within
                x = tl.load(x_rows + k[:, None], mask=((within < group_size) & (k < K))[:, None], other=0)
            elif EVEN_K:
                x = tl.load(x_rows + (column + s)[:, None])
            else:
                x = tl.load(x_rows + (column + s)[:, None], mask=(column + s)[:, None] < K, other=0)
            if x_scale_ptr is None:
                x = codes_of_tile(x, finite, zero, inverse, True, BLOCK_M)
            if SLABS_PER_SCALE > 0:
                if position % SLABS_PER_SCALE == 0:
                    partial = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
            # [BLOCK_N, SLAB] @ [SLAB, BLOCK_M]
            partial = tl.dot(byte_to_int8(words, position), x, partial, out_dtype=tl.int32)
            if SLABS_PER_SCALE > 0:
                if (position + 1) % SLABS_PER_SCALE == 0:
                    # Blocks of nothing but padding lie behind the last group: any scale will do there.
                    group = tl.minimum(column // padded_group, groups - 1)
                    scale = tl.load(w_scale_ptr + group.to(tl.int64) * N + n_wrapped).to(tl.float32)
                    total += (partial >> 4).to(tl.float32) * scale[:, None]

    m_inside = m < M
    if x_scale_ptr is not None:
        x_scale = tl.load(x_scale_ptr + m, mask=m_inside, other=1.0)
    if SLABS_PER_SCALE == 0:
        accumulator = partial >> 4
        if SPLITS > 1:
            accumulator, is_last = sum_of_splits(accumulator, partials_ptr, counters_ptr, tile, split, SPLITS)
            m_inside = m < tl.where(is_last, M, 0)
        scale = tl.load(w_scale_ptr + n_wrapped).to(tl.float32)
        total = (accumulator.to(tl.float32) * x_scale[None, :]) * scale[:, None]
    else:
        if SPLITS > 1:
            total, is_last = sum_of_splits(total, partials_ptr, counters_ptr, tile, split, SPLITS)
            m_inside = m < tl.where(is_last, M, 0)
        total = total * x_scale[None, :]
    if bias_ptr is not None:
        total = total + tl.load(bias_ptr + n_wrapped).to(tl.float32)[:, None]
    out_ptrs = out_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=(n < N)[:, None] & m_inside[None, :])


def pointers_launch(
    x: Operand,
    x_scale: Operand | None,
    w: Operand,
    w_scale: Operand,
    bias: Operand | None,
    out: Operand,
    group_size: int,
    padded_group: int,
    slab_width: int,
    slabs_per_scale: int,
    config: TileConfig,
) -> Launch:
    """Of any product."""
    (rows, columns), features, groups = x.shape, w.shape[0], w_scale.shape[0]
    blocks = w.shape[1] // slab_width
    tiles = config.tiles(features, rows)
    dtype = torch.int32 if groups == 1 else torch.float32
    tile_elements = config.block_n * config.block_m
    partials, counters = workspace(x, dtype, config.splits, tiles, tile_elements)
    return Launch(
        int4_int8_matmul_kernel,
        (tiles, config.splits),
        x,
        x_scale,
        w,
        w_scale,
        bias,
        out,
        partials,
        counters,
        rows,
        features,
        columns,
        x.stride(0),
        w.shape[1],
        blocks,
        groups,
        group_size,
        padded_group,
        SLAB=slab_width,
        SLABS_PER_SCALE=slabs_per_scale,
        GROUPS_ARE_PADDED=groups > 1 and padded_group != group_size,
        EVEN_K=columns == blocks * SLABS * slab_width,
        SPLITS=config.splits,
        ROWS=1 if x_scale is None and rows == 1 else config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        GROUP=8,
        enable_fp_fusion=False,
        **config.launch_options,
    )
