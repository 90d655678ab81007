"""The weight-only product in plain Triton: each program computes a tile of outᵀ, or a split of one.

A block of the weight is loaded once for all its slabs, each of which is one product with a slice of x.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..blocks.split_k import sum_of_splits, workspace
from ..blocks.unpack import byte_to_float, word_to_float
from ..config.tile import TileConfig, tile_of_program
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.target import Target, operand_dtype


@triton.jit
def weight_only_matmul_kernel(
    x_ptr,  # float [M, K], row stride stride_x
    w_ptr,  # int16 or int8 words [N, stride_w]
    scale_ptr,  # float [G, N]
    zero_ptr,  # int8 [G, N], or None for 0
    bias_ptr,  # float [N], or None
    out_ptr,  # x's dtype [M, N]
    partials_ptr,  # float32 [tiles, SPLITS, BLOCK_N, BLOCK_M], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    stride_x,
    stride_w,
    blocks,  # of SLABS · SLAB columns, per row of the weight
    groups,
    group_size,
    padded_group,  # columns that a group takes in the weight's layout
    SLAB: tl.constexpr,
    SLABS: tl.constexpr,  # codes per word: 4 (int4) or 1 (int8)
    SLABS_PER_SCALE: tl.constexpr,  # 0: one group, its scale applied at the end
    GROUPS_ARE_PADDED: tl.constexpr,
    EVEN_K: tl.constexpr,  # the blocks of all splits hold exactly K columns
    OPERAND: tl.constexpr,
    PTX: tl.constexpr,
    SETTLE: tl.constexpr,  # on Hopper
    SPLITS: tl.constexpr,
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
    x_rows = x_ptr + (m % M).to(tl.int64)[None, :] * stride_x  # [1, BLOCK_M]

    blocks_per_split = tl.cdiv(blocks, SPLITS)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, blocks)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    partial = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    scale = tl.zeros((BLOCK_N,), tl.float32)
    zero = tl.zeros((BLOCK_N, 1), OPERAND)
    if SLABS_PER_SCALE == 0:
        scale = tl.load(scale_ptr + n_wrapped).to(tl.float32)
        if zero_ptr is not None:
            zero = tl.load(zero_ptr + n_wrapped).to(OPERAND)[:, None]
    for block in range(first, last):
        if SLABS == 1 and not EVEN_K:
            words = tl.load(
                w_rows + block * SLAB + s[None, :], mask=(block * SLAB + s)[None, :] < stride_w, other=0
            )
        else:
            words = tl.load(w_rows + block * SLAB + s[None, :])  # [BLOCK_N, SLAB]
        for position in tl.static_range(SLABS):
            column = (block * SLABS + position) * SLAB
            if SLABS_PER_SCALE > 0:
                if position % SLABS_PER_SCALE == 0:
                    # Blocks of nothing but padding lie behind the last group: any scale will do there.
                    group = tl.minimum(column // padded_group, groups - 1)
                    scale = tl.load(scale_ptr + group.to(tl.int64) * N + n_wrapped).to(tl.float32)
                    if zero_ptr is not None:
                        zero = tl.load(zero_ptr + group.to(tl.int64) * N + n_wrapped).to(OPERAND)[:, None]
                    partial = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            if SLABS == 4:
                w = word_to_float(words, position, OPERAND, PTX)
            else:
                w = byte_to_float(words, OPERAND, PTX)
            if zero_ptr is not None:
                w = w - zero  # exact: |code - zero point| ≤ 255
            if GROUPS_ARE_PADDED:
                within = column % padded_group + s
                k = (column // padded_group) * group_size + within
                x = tl.load(x_rows + k[:, None], mask=((within < group_size) & (k < K))[:, None], other=0.0)
            elif EVEN_K:
                x = tl.load(x_rows + (column + s)[:, None])
            else:
                x = tl.load(x_rows + (column + s)[:, None], mask=(column + s)[:, None] < K, other=0.0)
            partial = tl.dot(
                w, x.to(OPERAND), partial, input_precision="ieee"
            )  # [BLOCK_N, SLAB] @ [SLAB, BLOCK_M]
            if SLABS_PER_SCALE > 0:
                if (position + 1) % SLABS_PER_SCALE == 0:
                    acc += partial * scale[:, None]
        if SLABS_PER_SCALE == 0 and SETTLE:
            # Triton 3.6 to 3.8 lets the loop's last wgmma run on while the next round rewrites the registers that it
            # reads W from. Using the sum for anything but a product makes it wait.
            partial = tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=r,r", [partial], dtype=tl.float32, is_pure=True, pack=1
            )
    if SLABS_PER_SCALE == 0:
        acc = partial * scale[:, None]

    m_inside = m < M
    if SPLITS > 1:
        acc, is_last = sum_of_splits(acc, partials_ptr, counters_ptr, tile, split, SPLITS)
        m_inside = m < tl.where(is_last, M, 0)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n_wrapped).to(tl.float32)[:, None]
    out_ptrs = out_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=(n < N)[:, None] & m_inside[None, :])


def pointers_launch(
    x: Operand,
    w: Operand,
    scale: Operand,
    zero_point: Operand | None,
    bias: Operand | None,
    out: Operand,
    group_size: int,
    padded_group: int,
    slab_width: int,
    config: TileConfig,
    target: Target,
) -> Launch:
    """Compute the product of weight_only.py."""
    (rows, columns), features, groups = x.shape, w.shape[0], scale.shape[0]
    slabs = 4 if w.dtype == torch.int16 else 1
    blocks = triton.cdiv(w.shape[1], slab_width)
    tiles = config.tiles(features, rows)
    tile_elements = config.block_n * config.block_m
    partials, counters = workspace(x, torch.float32, config.splits, tiles, tile_elements)
    return Launch(
        weight_only_matmul_kernel,
        (tiles, config.splits),
        x,
        w,
        scale,
        zero_point,
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
        SLABS=slabs,
        SLABS_PER_SCALE=slabs_per_scale(groups, padded_group, slab_width, slabs),
        GROUPS_ARE_PADDED=groups > 1 and padded_group != group_size,
        EVEN_K=columns == blocks * slabs * slab_width,
        OPERAND=operand_dtype(x),
        PTX=target.backend == "cuda" and target.arch >= 80,
        SETTLE=target.arch // 10 == 9,
        SPLITS=config.splits,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        GROUP=8,
        enable_fp_fusion=True,
        **config.launch_options,
    )


def slabs_per_scale(groups: int, padded_group: int, slab_width: int, slabs: int) -> int:
    """How many slabs of a block in a row share a scale; 0 where the whole row does."""
    if groups == 1:
        return 0
    per_group = padded_group // slab_width
    return next(count for count in (4, 2, 1) if count <= slabs and per_group % count == 0)


def int8_slab_width(padded_group: int, groups: int, element_size: int) -> int:
    """Columns per step over int8 weights: a power of two that divides a group, at most 128 (64 for float32 x)."""
    most = 64 if element_size == 4 else 128
    if groups == 1:
        return min(most, max(16, triton.next_power_of_2(padded_group)))
    return min(most, padded_group & -padded_group)
