"""INT8 × INT8 on Hopper: persistent, warp-specialized, both operands brought by the copy engine.

    8 warps   acc [BLOCK_M, BLOCK_N] += x [BLOCK_M, 128] · w [BLOCK_N, 128]ᵀ, asynchronously, each step started
              before the last one has ended; then the epilogue, in registers → shared memory → copied out, while
    1 warp    already fills the ring with the next tile's operands

Both operands lie in shared memory as they do in global memory, K innermost, which is the only way in which the matrix
instruction takes int8. x is its left operand here, so that a thread's neighbouring results are neighbours in a row of
the output, too; the epilogue's functions, which know tiles of outᵀ, get the transposed view, which moves nothing.
Half a tile is finished at a time: 64 accumulators a thread beside what the epilogue needs.

K is zero-filled beyond its end by the copy engine, rows are aligned to 16 bytes or the plain kernel runs. Σx, which an
affine weight needs, comes from outside: a pass over x that costs a few percent, where a column of ones beside each
weight tile would cost every affine product an instruction a step, and reading x back from shared memory more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..descriptors import is_addressable
from ..epilogue import finished, subtract_w_zero
from ..launch import launch
from ..split_k import arrive, store_partial, sum_of_partials, workspace
from ..target import Target
from ..tiles import TileConfig
from .descriptors import tile_descriptor
from .producer import produce
from .ring import PRODUCER_REGISTERS, next_slot, open_ring, piece_of_work, registers_at_launch
from .versions import store_tile, wait_for_previous_kernel


@gluon.jit
def int8_matmul_kernel(
    x_desc,  # int8 [M, K] in tiles of [BLOCK_M, BLOCK_K]
    w_desc,  # int8 [N, K] in tiles of [BLOCK_N, BLOCK_K]
    x_scale_ptr,  # from here to out_ptr as the plain kernel's
    x_zero_ptr,
    w_scale_ptr,
    w_zero_ptr,
    w_sum_ptr,
    bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    residual_zero_ptr,
    out_scale_ptr,
    out_zero_ptr,
    out_ptr,
    out_desc,  # out in tiles of [BLOCK_M, WIDTH], or None to store through out_ptr
    x_sum_ptr,  # int32 [M], the sum of each row's codes, or None without w_zero_ptr
    partials_ptr,  # int32 [tiles, SPLITS, BLOCK_M, BLOCK_N], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    stride_residual,
    ACTIVATION: gl.constexpr,
    X_QPARAM_STRIDE: gl.constexpr,
    OUT_QMIN: gl.constexpr,
    SPLITS: gl.constexpr,
    WIDTH: gl.constexpr,  # columns of out that are finished at a time
    STAGES: gl.constexpr,
    GROUP: gl.constexpr,
):
    """All tiles of out, or splits of them, that fall to one program."""
    BLOCK_M: gl.constexpr = x_desc.block_type.shape[0]
    BLOCK_N: gl.constexpr = w_desc.block_type.shape[0]
    BLOCK_K: gl.constexpr = x_desc.block_type.shape[1]
    x_slots = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_M, BLOCK_K], x_desc.layout)
    w_slots = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, BLOCK_K], w_desc.layout)
    full, empty = open_ring(STAGES, 1)
    steps = gl.cdiv(K, BLOCK_K)
    ring = (x_slots, w_slots, full, empty)
    if out_desc is None:
        out = (None, out_ptr, None)
    else:
        # Made here, so that nothing else is put there while a copy out of it still runs.
        staging = gl.allocate_shared_memory(out_desc.dtype, out_desc.block_type.shape, out_desc.layout)
        out = (out_desc, out_ptr, staging)
    splits = (partials_ptr, counters_ptr)
    vectors = (
        x_scale_ptr,
        x_zero_ptr,
        w_scale_ptr,
        w_zero_ptr,
        w_sum_ptr,
        bias_ptr,
        residual_ptr,
        residual_scale_ptr,
        residual_zero_ptr,
        out_scale_ptr,
        out_zero_ptr,
    )
    sizes = (M, N, K, stride_residual)
    gl.warp_specialize(
        [
            (
                consume,
                (
                    ring,
                    out,
                    splits,
                    vectors,
                    x_sum_ptr,
                    sizes,
                    steps,
                    ACTIVATION,
                    X_QPARAM_STRIDE,
                    OUT_QMIN,
                    SPLITS,
                    WIDTH,
                    GROUP,
                ),
            ),
            (
                produce,
                (x_desc, w_desc, None, x_slots, w_slots, None, full, empty, M, N, steps, SPLITS, GROUP),
            ),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )


@gluon.jit
def consume(
    ring,
    out,
    splits,
    vectors,
    x_sum_ptr,
    sizes,
    steps,
    ACTIVATION: gl.constexpr,
    X_QPARAM_STRIDE: gl.constexpr,
    OUT_QMIN: gl.constexpr,
    SPLITS: gl.constexpr,
    WIDTH: gl.constexpr,
    GROUP: gl.constexpr,
):
    """The warps that multiply: the steps of a piece, then its epilogue."""
    x_slots, w_slots, full, empty = ring
    partials_ptr, counters_ptr = splits
    M, N, K, stride_residual = sizes
    STAGES: gl.constexpr = x_slots.shape[0]
    BLOCK_M: gl.constexpr = x_slots.shape[1]
    BLOCK_N: gl.constexpr = w_slots.shape[1]
    ACCUMULATOR: gl.constexpr = accumulator_layout(BLOCK_M, BLOCK_N, WIDTH, gl.num_warps())
    wait_for_previous_kernel()
    slot = 0
    phase = 0
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        tile, split, n, m, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
        acc = gl.zeros([BLOCK_M, BLOCK_N], gl.int32, ACCUMULATOR)
        previous = slot
        for step in range(first, last):
            mbarrier.wait(full.index(slot), phase)
            w = w_slots.index(slot).permute((1, 0))
            # [BLOCK_M, BLOCK_K] @ [BLOCK_K, BLOCK_N]
            acc = warpgroup_mma(x_slots.index(slot), w, acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[acc])  # for the step before, whose slot is free then
            mbarrier.arrive(empty.index(previous), count=1, pred=step > first)
            previous = slot
            slot, phase = next_slot(slot, phase, STAGES)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(empty.index(previous), count=1, pred=last > first)

        is_finished = SPLITS == 1
        if SPLITS > 1:
            partials = partial_pointers(acc, partials_ptr, tile, SPLITS)
            store_partial(acc, partials, split)
            is_finished = arrive(counters_ptr, tile, SPLITS)
            if is_finished:
                acc = sum_of_partials(acc, partials, SPLITS)
        if is_finished:
            finish(acc, n, m, out, vectors, x_sum_ptr, sizes, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN, WIDTH)
    if out[0] is not None:
        tma.store_wait(0)


@gluon.jit
def finish(
    acc,
    n0,
    m0,
    out,
    vectors,
    x_sum_ptr,
    sizes,
    ACTIVATION: gl.constexpr,
    X_QPARAM_STRIDE: gl.constexpr,
    OUT_QMIN: gl.constexpr,
    WIDTH: gl.constexpr,
):
    """The epilogue of int32 acc [rows of x, rows of the weight], whose first are m0 and n0, WIDTH columns at a time."""
    ROWS: gl.constexpr = acc.shape[0]
    HALF: gl.constexpr = acc.shape[1] // 2
    if acc.shape[1] > WIDTH:
        left, right = acc.reshape((ROWS, 2, HALF)).permute((0, 2, 1)).split()
        finish(left, n0, m0, out, vectors, x_sum_ptr, sizes, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN, WIDTH)
        n0 += HALF
        finish(right, n0, m0, out, vectors, x_sum_ptr, sizes, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN, WIDTH)
    else:
        out_desc, out_ptr, staging = out
        M, N, K, stride_residual = sizes
        turned = acc.permute((1, 0))
        n = n0 + gl.arange(0, turned.shape[0], gl.SliceLayout(1, turned.type.layout))
        m = m0 + gl.arange(0, ROWS, gl.SliceLayout(0, turned.type.layout))
        if x_sum_ptr is not None:
            x_sum = gl.load(x_sum_ptr + m, mask=m < M, other=0)
            turned = subtract_w_zero(turned, x_sum, vectors[3], n, N)
        values = finished(
            turned, *vectors, n, m, N, M, K, stride_residual, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN
        ).to(out_ptr.dtype.element_ty)
        if out_desc is None:
            out_ptrs = out_ptr + m.to(gl.int64)[None, :] * N + n[:, None]
            gl.store(out_ptrs, values, mask=(n < N)[:, None] & (m < M)[None, :])
        else:
            tma.store_wait(0)
            staging.store(values.permute((1, 0)))
            fence_async_shared()
            store_tile(out_desc, [m0, n0], staging)


@gluon.jit
def partial_pointers(acc, partials_ptr, tile, SPLITS: gl.constexpr):
    """Pointers to split 0's partial of a tile, laid out as acc."""
    ROWS: gl.constexpr = acc.shape[0]
    COLUMNS: gl.constexpr = acc.shape[1]
    i = gl.arange(0, ROWS, gl.SliceLayout(1, acc.type.layout))
    j = gl.arange(0, COLUMNS, gl.SliceLayout(0, acc.type.layout))
    offsets = i[:, None] * COLUMNS + j[None, :]
    return partials_ptr + tile.to(gl.int64) * (SPLITS * ROWS * COLUMNS) + offsets


@gluon.constexpr_function
def accumulator_layout(rows, columns, width, num_warps):
    """Of int32 [rows, columns] in the registers of num_warps: warp groups below each other, then side by side.

    Each warp has a part of every `width` columns, so that these can be taken out of its registers. The instruction's
    256 columns are refused for int8; 128 are the most.
    """
    row_warps = min(num_warps, rows // 16)
    column_groups = num_warps // row_warps
    part = columns if column_groups == 1 else width // column_groups
    return gl.NVMMADistributedLayout([3, 0], [row_warps, column_groups], [16, min(128, part), 32])


def launch_hopper(
    x: Tensor,
    w: Tensor,
    operands: tuple[Tensor | None, ...],
    out: Tensor,
    stride_residual: int,
    constants: dict[str, Any],
    config: TileConfig,
    target: Target,
) -> None:
    """Compute ../int8_matmul.py's product: x [M, K] and w [N, ≥ K] addressable, the rest as its kernel takes it."""
    (rows, columns), features = x.shape, w.shape[0]
    w_zero = operands[3]
    pieces = config.tiles(features, rows) * config.splits
    tile_elements = config.block_n * config.block_m
    partials, counters = workspace(
        x.device, torch.int32, config.splits, pieces // config.splits, tile_elements
    )
    width = width_at_a_time(config, out)
    launch(
        int8_matmul_kernel,
        (min(pieces, target.multiprocessors),),
        tile_descriptor(x, config.block_m, config.block_k),
        tile_descriptor(w, config.block_n, config.block_k, columns),
        *operands,
        out,
        tile_descriptor(out, config.block_m, width) if is_addressable(out) else None,
        None if w_zero is None else x.sum(dim=1, dtype=torch.int32),
        partials,
        counters,
        rows,
        features,
        columns,
        stride_residual,
        **constants,
        SPLITS=config.splits,
        WIDTH=width,
        STAGES=config.num_stages,
        GROUP=8,
        num_warps=config.num_warps,
        maxnreg=registers_at_launch(config.num_warps),
        launch_pdl=True,
        enable_fp_fusion=False,
    )


def width_at_a_time(config: TileConfig, out: Tensor) -> int:
    """Columns of out that are finished together: the registers of a bfloat16 tile's epilogue allow 128, others 64."""
    return min(config.block_n, 128 if out.element_size() == 2 else 64)
