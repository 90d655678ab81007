"""INT8 activations × INT4 weights (W4A8) on Hopper: outᵀ = W · xᵀ, codes unpacked in registers for two instructions.

The matrix instruction takes its left operand from registers. A byte of the layout `int4_bytes` holds the codes of the
columns c and S + c of a block; loaded from shared memory, a tile of bytes lies as the operand of S columns already, and

    bytes << 4 & 0xf0…    16 × the codes of columns 0 … S - 1
    bytes & 0xf0…         16 × the codes of columns S … 2S - 1

so that a step is two products with two halves of a tile of x, 16 times too large, exactly. Two groups of four warps
take 64 rows of the weight each, on their own, sharing the ring: while one unpacks, the other multiplies. A product
that reads registers must have ended before these are written again: each step ends with a wait for its products.

A group's scale is applied to the int32 sum of its columns, in float32; one scale per row to the whole sum, behind it.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..blocks.split_k import arrive, store_partial, sum_of_partials, workspace
from ..config.tile import TileConfig
from ..launch.gluon_versions import wait_for_previous_kernel
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.target import Target
from .output import copy_out, halves, partial_pointers
from .producer import produce
from .ring import PRODUCER_REGISTERS, next_slot, open_ring, piece_of_work, registers_at_launch
from .tile_descriptors import tile_descriptor

#: Rows of the weight that a group of four warps multiplies: those of the matrix instruction.
GROUP_ROWS = gl.constexpr(64)
#: Of results that each group of warps finishes together: 64 rows of x in 16 bits, 32 in float32.
_STAGING_BYTES = 8192
_CONSUMER_REGISTERS = gl.constexpr(240)


@gluon.jit
def int4_int8_matmul_kernel(
    x_desc,  # int8 [M, K] in tiles of [BLOCK_M, 2 · SLAB]
    w_desc,  # int8 bytes [N, ·] in tiles of [2 · 64, SLAB]
    x_scale_ptr,  # float32 [M]
    w_scale_ptr,  # float [groups, N]
    bias_ptr,  # float [N], or None
    out_desc,  # float [M, N] in tiles of [rows of x that are finished together, 64]
    partials_ptr,  # int32 (one group) or float32 [tiles, 2, SPLITS, 64, BLOCK_M], or None
    counters_ptr,  # int32 [tiles, 2], or None
    M,
    N,
    steps,  # blocks of 2 · SLAB columns
    slabs_per_group,  # or fewer than that, where there is one group
    groups,
    SLABS_PER_SCALE: gl.constexpr,  # 0: one group; 1: a slab, 2: a block lies in one group
    SPLITS: gl.constexpr,
    STAGES: gl.constexpr,
    GROUP: gl.constexpr,
):
    """All tiles of outᵀ, or splits of them, that fall to one program."""
    BLOCK_M: gl.constexpr = x_desc.block_type.shape[0]
    BLOCK_N: gl.constexpr = w_desc.block_type.shape[0]
    SLAB: gl.constexpr = w_desc.block_type.shape[1]
    x_slots = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_M, 2 * SLAB], x_desc.layout)
    w_slots = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, SLAB], w_desc.layout)
    rows: gl.constexpr = out_desc.block_type.shape[0]
    columns: gl.constexpr = out_desc.block_type.shape[1]
    staging = gl.allocate_shared_memory(out_desc.dtype, [2, rows, columns], out_desc.layout)
    full, empty = open_ring(STAGES, 2)
    ring = (x_slots, w_slots, None, full, empty)
    splits = (partials_ptr, counters_ptr)
    vectors = (x_scale_ptr, w_scale_ptr, bias_ptr)
    sizes = (M, N, steps, slabs_per_group, groups)
    gl.warp_specialize(
        [
            (consume, (0, ring, out_desc, staging, splits, vectors, sizes, SLABS_PER_SCALE, SPLITS, GROUP)),
            (consume, (1, ring, out_desc, staging, splits, vectors, sizes, SLABS_PER_SCALE, SPLITS, GROUP)),
            (produce, (x_desc, w_desc, None, ring, M, N, steps, SPLITS, GROUP)),
        ],
        [4, 1],
        [_CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def consume(
    PART: gl.constexpr,
    ring,
    out_desc,
    staging,
    splits,
    vectors,
    sizes,
    SLABS_PER_SCALE: gl.constexpr,
    SPLITS: gl.constexpr,
    GROUP: gl.constexpr,
):
    """One of the two groups of four warps: the steps of a piece for its 64 rows of the weight, then their epilogue."""
    x_slots, w_slots, _, full, empty = ring
    partials_ptr, counters_ptr = splits
    M, N, steps, slabs_per_group, groups = sizes
    STAGES: gl.constexpr = x_slots.shape[0]
    BLOCK_M: gl.constexpr = x_slots.shape[1]
    BLOCK_N: gl.constexpr = w_slots.shape[1]
    SLAB: gl.constexpr = w_slots.shape[2]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, min(128, BLOCK_M), 32])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, SUMS, 4)
    w_scale_ptr = vectors[1]
    staging = staging.index(PART)
    wait_for_previous_kernel()
    slot = 0
    phase = 0
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        tile, split, n0, m0, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
        n0 += PART * GROUP_ROWS
        n = n0 + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, SUMS))
        acc = gl.zeros([GROUP_ROWS, BLOCK_M], gl.int32, SUMS)
        if SLABS_PER_SCALE > 0:
            total = gl.zeros([GROUP_ROWS, BLOCK_M], gl.float32, SUMS)
        for step in range(first, last):
            if SLABS_PER_SCALE > 0:  # asked for before the wait, needed behind the products
                scale = scale_of_slab(2 * step, w_scale_ptr, n, N, slabs_per_group, groups)
            if SLABS_PER_SCALE == 1:
                second_scale = scale_of_slab(2 * step + 1, w_scale_ptr, n, N, slabs_per_group, groups)
            mbarrier.wait(full.index(slot), phase)
            codes = w_slots.index(slot).slice(PART * GROUP_ROWS, GROUP_ROWS).load(OPERAND)
            x = x_slots.index(slot)
            first_x = x.slice(0, SLAB, dim=1).permute((1, 0))
            second_x = x.slice(SLAB, SLAB, dim=1).permute((1, 0))
            # [64, SLAB] @ [SLAB, BLOCK_M], twice
            acc = warpgroup_mma(
                sixteen_times(codes, 0), first_x, acc, use_acc=SLABS_PER_SCALE == 0, is_async=True
            )
            if SLABS_PER_SCALE == 1:
                second = gl.zeros([GROUP_ROWS, BLOCK_M], gl.int32, SUMS)
                second = warpgroup_mma(
                    sixteen_times(codes, 1), second_x, second, use_acc=False, is_async=True
                )
                acc, second = warpgroup_mma_wait(0, deps=[acc, second])
            else:
                acc = warpgroup_mma(sixteen_times(codes, 1), second_x, acc, is_async=True)
                acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(empty.index(slot), count=1)
            if SLABS_PER_SCALE > 0:
                total += (acc >> 4).to(gl.float32) * scale[:, None]
            if SLABS_PER_SCALE == 1:
                total += (second >> 4).to(gl.float32) * second_scale[:, None]
            slot, phase = next_slot(slot, phase, STAGES)

        sums = acc if SLABS_PER_SCALE == 0 else total
        is_finished = SPLITS == 1
        if SPLITS > 1:
            partials = partial_pointers(sums, partials_ptr, 2 * tile + PART, SPLITS)
            store_partial(sums, partials, split)
            is_finished = arrive(counters_ptr, 2 * tile + PART, SPLITS)
            if is_finished:
                sums = sum_of_partials(sums, partials, SPLITS)
        if is_finished:
            finish(sums, n0, m0, out_desc, staging, vectors, M, N)
    tma.store_wait(0)


@gluon.jit
def scale_of_slab(slab, w_scale_ptr, n, N, slabs_per_group, groups):
    """float32 [64] of the rows n of the weight; blocks of nothing but padding take the last group's."""
    group = gl.minimum(slab // slabs_per_group, groups - 1)
    return gl.load(w_scale_ptr + group.to(gl.int64) * N + n, mask=n < N, other=1.0).to(gl.float32)


@gluon.jit
def sixteen_times(codes, POSITION: gl.constexpr):
    """int8 bytes of layout `int4_bytes` → int8 of the same shape: 16 × code POSITION of each, four at a time."""
    return gl.inline_asm_elementwise(
        _nibbles_above(4 - 4 * POSITION), "=r,r", [codes], dtype=gl.int8, is_pure=True, pack=4
    )


@gluon.constexpr_function
def _nibbles_above(up):
    """$0 = the upper nibbles of the four bytes of $1, moved up by so many bits before."""
    return f"{{ .reg .b32 moved; shl.b32 moved, $1, {up}; and.b32 $0, moved, 0xf0f0f0f0; }}"


@gluon.jit
def finish(sums, n0, m0, out_desc, staging, vectors, M, N):
    """The epilogue of a tile of outᵀ, as many columns at a time as `staging` has rows.

    sums: int32, 16 times the products, which lack both scales; or float32, which lack x's alone.
    """
    HALF: gl.constexpr = sums.shape[1] // 2
    if sums.shape[1] > staging.shape[0]:
        left, right = halves(sums)
        finish(left, n0, m0, out_desc, staging, vectors, M, N)
        finish(right, n0, m0 + HALF, out_desc, staging, vectors, M, N)
    else:
        x_scale_ptr, w_scale_ptr, bias_ptr = vectors
        n = n0 + gl.arange(0, sums.shape[0], gl.SliceLayout(1, sums.type.layout))
        m = m0 + gl.arange(0, sums.shape[1], gl.SliceLayout(0, sums.type.layout))
        x_scale = gl.load(x_scale_ptr + m, mask=m < M, other=1.0)
        if sums.dtype == gl.int32:
            w_scale = gl.load(w_scale_ptr + n, mask=n < N, other=1.0).to(gl.float32)
            y = ((sums >> 4).to(gl.float32) * x_scale[None, :]) * w_scale[:, None]
        else:
            y = sums * x_scale[None, :]
        if bias_ptr is not None:
            y = y + gl.load(bias_ptr + n, mask=n < N, other=0.0).to(gl.float32)[:, None]
        copy_out(y.permute((1, 0)), n0, m0, out_desc, staging)


def hopper_launch(
    x: Operand,
    x_scale: Operand,
    w: Operand,
    w_scale: Operand,
    bias: Operand | None,
    out: Operand,
    slab_width: int,
    slabs_per_group: int,
    slabs_per_scale: int,
    config: TileConfig,
    target: Target,
) -> Launch:
    """Compute ../int4_int8_matmul.py's product: x, w and out addressable, groups not padded."""
    rows, features = x.shape[0], w.shape[0]
    groups = w_scale.shape[0]
    parts = config.block_n // GROUP_ROWS.value
    tiles = config.tiles(features, rows)
    dtype = torch.int32 if groups == 1 else torch.float32
    partials, counters = workspace(x, dtype, config.splits, parts * tiles, GROUP_ROWS.value * config.block_m)
    width = _STAGING_BYTES // (GROUP_ROWS.value * out.element_size())
    return Launch(
        int4_int8_matmul_kernel,
        (min(tiles * config.splits, target.multiprocessors),),
        tile_descriptor(x, config.block_m, 2 * slab_width),
        tile_descriptor(w, config.block_n, slab_width),
        x_scale,
        w_scale,
        bias,
        tile_descriptor(out, min(config.block_m, width), GROUP_ROWS.value),
        partials,
        counters,
        rows,
        features,
        w.shape[1] // slab_width,
        slabs_per_group,
        groups,
        SLABS_PER_SCALE=slabs_per_scale,
        SPLITS=config.splits,
        STAGES=config.num_stages,
        GROUP=8,
        num_warps=config.num_warps // parts,
        maxnreg=registers_at_launch(config.num_warps),
        launch_pdl=True,
        enable_fp_fusion=False,
    )
