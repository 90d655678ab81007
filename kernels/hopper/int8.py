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
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..blocks.epilogue import finished, subtract_w_zero
from ..blocks.split_k import arrive, store_partial, sum_of_partials, workspace
from ..config.tile import TileConfig
from ..launch.gluon_versions import wait_for_previous_kernel
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.target import Target
from .output import accumulator_layout, copy_out, halves, partial_pointers, turn
from .producer import produce
from .ring import PRODUCER_REGISTERS, next_slot, open_ring, piece_of_work, registers_at_launch, slot_before
from .tile_descriptors import tile_descriptor


@gluon.jit
def int8_matmul_kernel(
    x_desc,  # int8 [M, K] in tiles of [BLOCK_M, BLOCK_K]
    w_desc,  # int8 [N, K] in tiles of [BLOCK_N, BLOCK_K]
    x_scale_ptr,  # from here to out_zero_ptr as the plain kernel's
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
    out_desc,  # float or int8 [M, N] in tiles of [BLOCK_M, columns that are finished at a time]
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
    staging = gl.allocate_shared_memory(out_desc.dtype, out_desc.block_type.shape, out_desc.layout)
    out = (out_desc, staging)
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
    GROUP: gl.constexpr,
):
    """The warps that multiply: the steps of a piece, then its epilogue."""
    x_slots, w_slots, full, empty = ring
    partials_ptr, counters_ptr = splits
    M, N = sizes[0], sizes[1]
    STAGES: gl.constexpr = x_slots.shape[0]
    BLOCK_M: gl.constexpr = x_slots.shape[1]
    BLOCK_N: gl.constexpr = w_slots.shape[1]
    ACCUMULATOR: gl.constexpr = accumulator_layout(BLOCK_M, BLOCK_N, out[1].shape[1], gl.num_warps())
    wait_for_previous_kernel()
    slot = 0
    phase = 0
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        tile, split, n, m, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
        acc = gl.zeros([BLOCK_M, BLOCK_N], gl.int32, ACCUMULATOR)
        for step in range(first, last):
            mbarrier.wait(full.index(slot), phase)
            w = w_slots.index(slot).permute((1, 0))
            # [BLOCK_M, BLOCK_K] @ [BLOCK_K, BLOCK_N]
            acc = warpgroup_mma(x_slots.index(slot), w, acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[acc])  # for the step before, whose slot is free then
            mbarrier.arrive(empty.index(slot_before(slot, STAGES)), count=1, pred=step > first)
            slot, phase = next_slot(slot, phase, STAGES)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(empty.index(slot_before(slot, STAGES)), count=1, pred=last > first)

        is_finished = SPLITS == 1
        if SPLITS > 1:
            partials = partial_pointers(acc, partials_ptr, tile, SPLITS)
            store_partial(acc, partials, split)
            is_finished = arrive(counters_ptr, tile, SPLITS)
            if is_finished:
                acc = sum_of_partials(acc, partials, SPLITS)
        if is_finished:
            finish(acc, n, m, out, vectors, x_sum_ptr, sizes, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN)
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
):
    """The epilogue of int32 acc [rows of x, rows of the weight], whose first are m0 and n0, a part of it at a time."""
    HALF: gl.constexpr = acc.shape[1] // 2
    out_desc, staging = out
    if acc.shape[1] > staging.shape[1]:
        left, right = halves(acc)
        finish(left, n0, m0, out, vectors, x_sum_ptr, sizes, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN)
        n0 += HALF
        finish(right, n0, m0, out, vectors, x_sum_ptr, sizes, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN)
    else:
        M, N, K, stride_residual = sizes
        turned, n, m = turn(acc, n0, m0)
        if x_sum_ptr is not None:
            x_sum = gl.load(x_sum_ptr + m, mask=m < M, other=0)
            turned = subtract_w_zero(turned, x_sum, vectors[3], n, N)
        values = finished(
            turned, *vectors, n, m, N, M, K, stride_residual, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN
        )
        copy_out(values.permute((1, 0)), n0, m0, out_desc, staging)


def hopper_launch(
    x: Operand,
    w: Operand,
    operands: tuple[Operand | None, ...],
    out: Operand,
    stride_residual: int,
    constants: dict[str, Any],
    config: TileConfig,
    target: Target,
) -> Launch:
    """Compute ../int8_matmul.py's product: x [M, K] and w [N, ≥ K] addressable, the rest as its kernel takes it."""
    (rows, columns), features = x.shape, w.shape[0]
    w_zero = operands[3]
    pieces = config.tiles(features, rows) * config.splits
    tile_elements = config.block_n * config.block_m
    partials, counters = workspace(x, torch.int32, config.splits, pieces // config.splits, tile_elements)
    return Launch(
        int8_matmul_kernel,
        (min(pieces, target.multiprocessors),),
        tile_descriptor(x, config.block_m, config.block_k),
        tile_descriptor(w, config.block_n, config.block_k, columns),
        *operands,
        tile_descriptor(out, config.block_m, min(config.block_n, width_at_a_time(out))),
        None
        if w_zero is None
        else x.computed(lambda x: x.sum(dim=1, dtype=torch.int32), (rows,), torch.int32),
        partials,
        counters,
        rows,
        features,
        columns,
        stride_residual,
        **constants,
        SPLITS=config.splits,
        STAGES=config.num_stages,
        GROUP=8,
        num_warps=config.num_warps,
        maxnreg=registers_at_launch(config.num_warps),
        launch_pdl=True,
        enable_fp_fusion=False,
    )


def width_at_a_time(out: Operand) -> int:
    """Columns of out that are finished together: the registers allow 128 where they leave as 16-bit floats, else 64."""
    return 128 if out.element_size() == 2 else 64
