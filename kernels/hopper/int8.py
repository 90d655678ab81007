"""INT8 × INT8 on Hopper: persistent, warp-specialized, both operands brought by the copy engine.

    8 warps   acc [BLOCK_M, BLOCK_N] += x [BLOCK_M, 128] · w [BLOCK_N, 128]ᵀ, asynchronously, each step started
              before the last one has ended; then the epilogue, in registers → shared memory → copied out, while
    1 warp    already fills the ring with the next tile's operands

Both operands lie in shared memory as they do in global memory, K innermost, which is the only way in which the matrix
instruction takes int8. x is its left operand here, so that a thread's neighbouring results are neighbours in a row of
the output, too; the epilogue's functions, which know tiles of outᵀ, get the transposed view, which moves nothing.
Half a tile is finished at a time: 64 accumulators a thread beside what the epilogue needs.

With a second weight, a slot holds a tile of x and one of each weight, so that x is brought once for both products; two
accumulators of 128 columns are the registers of one of 256.

K is zero-filled beyond its end by the copy engine, rows are aligned to 16 bytes or the plain kernel runs. Σx, which an
affine weight needs, comes from outside: a pass over x that costs a few percent, where a column of ones beside each
weight tile would cost every affine product an instruction a step, and reading x back from shared memory more.
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

from ..blocks.epilogue import Columns, Output, Place, Residual, Weight, finished, subtract_w_zero
from ..blocks.int8_product import Int8Product
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

#: Columns of out that are finished together: the registers allow 128 where they leave as 16-bit floats, else 64.
_WIDE, _NARROW = 128, 64


@gluon.jit
def int8_matmul_kernel(
    x_desc,  # int8 [M, K] in tiles of [BLOCK_M, BLOCK_K]
    x_scale_ptr,  # what has no comment is as the plain kernel's
    x_zero_ptr,
    w_desc,  # int8 [N, K] in tiles of [BLOCK_N, BLOCK_K]
    w_scale_ptr,
    w_zero_ptr,
    w_sum_ptr,
    bias_ptr,
    up_desc,  # a second weight like the first, or None
    up_scale_ptr,
    up_zero_ptr,
    up_sum_ptr,
    up_bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    residual_zero_ptr,
    out_desc,  # float or int8 [M, N] in tiles of [BLOCK_M, columns that are finished at a time]
    out_scale_ptr,
    out_zero_ptr,
    x_sum_ptr,  # int32 [M], the sum of each row's codes, or None where no weight has zero points
    partials_ptr,  # int32 [tiles, weights, SPLITS, BLOCK_M, BLOCK_N], or None
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
    staging = gl.allocate_shared_memory(out_desc.dtype, out_desc.block_type.shape, out_desc.layout)
    full, empty = open_ring(STAGES, 1)
    steps = gl.cdiv(K, BLOCK_K)
    if up_desc is None:
        ring = (x_slots, w_slots, None, full, empty)
    else:
        up_slots = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, BLOCK_K], up_desc.layout)
        ring = (x_slots, w_slots, up_slots, full, empty)
    gl.warp_specialize(
        [
            (
                consume,
                (
                    ring,
                    # Made here: a variable would lose what is known at compile time.
                    Columns(x_scale_ptr, x_zero_ptr, X_QPARAM_STRIDE),
                    x_sum_ptr,
                    Weight(w_scale_ptr, w_zero_ptr, w_sum_ptr, bias_ptr),
                    None if up_desc is None else Weight(up_scale_ptr, up_zero_ptr, up_sum_ptr, up_bias_ptr),
                    Residual(residual_ptr, residual_scale_ptr, residual_zero_ptr, stride_residual),
                    Output(out_scale_ptr, out_zero_ptr, OUT_QMIN, ACTIVATION),
                    (out_desc, staging),
                    (partials_ptr, counters_ptr),
                    (M, N, K),
                    steps,
                    SPLITS,
                    GROUP,
                ),
            ),
            (produce, (x_desc, w_desc, up_desc, ring, M, N, steps, SPLITS, GROUP)),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )


@gluon.jit
def consume(
    ring,
    x,
    x_sum_ptr,
    w,
    up,
    residual,
    output,
    out,
    splits,
    sizes,
    steps,
    SPLITS: gl.constexpr,
    GROUP: gl.constexpr,
):
    """The warps that multiply: the steps of a piece, then its epilogue."""
    x_slots, w_slots, up_slots, full, empty = ring
    partials_ptr, counters_ptr = splits
    M, N, _ = sizes
    STAGES: gl.constexpr = x_slots.shape[0]
    BLOCK_M: gl.constexpr = x_slots.shape[1]
    BLOCK_N: gl.constexpr = w_slots.shape[1]
    ACCUMULATOR: gl.constexpr = accumulator_layout(BLOCK_M, BLOCK_N, out[1].shape[1], gl.num_warps())
    WEIGHTS: gl.constexpr = 1 if up_slots is None else 2
    wait_for_previous_kernel()
    slot = 0
    phase = 0
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        tile, split, n, m, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
        acc = gl.zeros([BLOCK_M, BLOCK_N], gl.int32, ACCUMULATOR)
        up_acc = None
        if WEIGHTS == 2:
            up_acc = gl.zeros([BLOCK_M, BLOCK_N], gl.int32, ACCUMULATOR)
        for step in range(first, last):
            mbarrier.wait(full.index(slot), phase)
            # [BLOCK_M, BLOCK_K] @ [BLOCK_K, BLOCK_N], of each weight; then a wait for the step before, whose slot is
            # free when it has ended.
            acc = warpgroup_mma(x_slots.index(slot), w_slots.index(slot).permute((1, 0)), acc, is_async=True)
            if WEIGHTS == 2:
                up_acc = warpgroup_mma(
                    x_slots.index(slot), up_slots.index(slot).permute((1, 0)), up_acc, is_async=True
                )
                acc, up_acc = warpgroup_mma_wait(2, deps=[acc, up_acc])
            else:
                acc = warpgroup_mma_wait(1, deps=[acc])
            mbarrier.arrive(empty.index(slot_before(slot, STAGES)), count=1, pred=step > first)
            slot, phase = next_slot(slot, phase, STAGES)
        if WEIGHTS == 2:
            acc, up_acc = warpgroup_mma_wait(0, deps=[acc, up_acc])
        else:
            acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(empty.index(slot_before(slot, STAGES)), count=1, pred=last > first)

        is_finished = SPLITS == 1
        if SPLITS > 1:
            partials = partial_pointers(acc, partials_ptr, WEIGHTS * tile, SPLITS)
            store_partial(acc, partials, split)
            if WEIGHTS == 2:
                up_partials = partial_pointers(up_acc, partials_ptr, WEIGHTS * tile + 1, SPLITS)
                store_partial(up_acc, up_partials, split)
            is_finished = arrive(counters_ptr, tile, SPLITS)
            if is_finished:
                acc = sum_of_partials(acc, partials, SPLITS)
                if WEIGHTS == 2:
                    up_acc = sum_of_partials(up_acc, up_partials, SPLITS)
        if is_finished:
            finish(acc, up_acc, n, m, x, x_sum_ptr, w, up, residual, output, out, sizes)
    tma.store_wait(0)


@gluon.jit
def finish(acc, up_acc, n0, m0, x, x_sum_ptr, w, up, residual, output, out, sizes):
    """The epilogue of int32 acc [rows of x, rows of the weight], whose first are m0 and n0, a part of it at a time.

    up_acc: the same of the second weight, or None.
    """
    HALF: gl.constexpr = acc.shape[1] // 2
    out_desc, staging = out
    if acc.shape[1] > staging.shape[1]:
        left, right = halves(acc)
        up_left = None
        up_right = None
        if up_acc is not None:
            up_left, up_right = halves(up_acc)
        finish(left, up_left, n0, m0, x, x_sum_ptr, w, up, residual, output, out, sizes)
        finish(right, up_right, n0 + HALF, m0, x, x_sum_ptr, w, up, residual, output, out, sizes)
    else:
        M, N, K = sizes
        turned, n, m = turn(acc, n0, m0)
        up_turned = None
        if up_acc is not None:
            up_turned, n, m = turn(up_acc, n0, m0)
        if x_sum_ptr is not None:
            x_sum = gl.load(x_sum_ptr + m, mask=m < M, other=0)
            turned = subtract_w_zero(turned, x_sum, w.zero_ptr, n, N)
            if up_acc is not None:
                up_turned = subtract_w_zero(up_turned, x_sum, up.zero_ptr, n, N)
        place = Place(n, m, N, M, K)
        values = finished(turned, up_turned, x, w, up, residual, output, place)
        copy_out(values.permute((1, 0)), n0, m0, out_desc, staging)


def hopper_launch(product: Int8Product, config: TileConfig, target: Target) -> Launch:
    """Of a product whose matrices are addressable, out too."""
    (rows, features, columns), up, out = product.shape, product.up, product.out
    x = product.x[0]
    tiles = config.tiles(features, rows)
    tile_elements = config.block_n * config.block_m * (1 if up is None else 2)
    partials, counters = workspace(x, torch.int32, config.splits, tiles, tile_elements)

    def weight(codes: Operand) -> object:
        return tile_descriptor(codes, config.block_n, config.block_k, columns)

    width = _WIDE if out.element_size() == 2 and up is None else _NARROW
    return Launch(
        int8_matmul_kernel,
        (min(tiles * config.splits, target.multiprocessors),),
        *product.operands(tile_descriptor(x, config.block_m, config.block_k), weight(product.w.codes)),
        *product.second(None if up is None else weight(up.codes)),
        *product.results(tile_descriptor(out, config.block_m, min(config.block_n, width))),
        x.computed(lambda x: x.sum(dim=1, dtype=torch.int32), (rows,), torch.int32)
        if product.is_affine
        else None,
        partials,
        counters,
        rows,
        features,
        columns,
        product.stride_residual,
        **product.constants,
        SPLITS=config.splits,
        STAGES=config.num_stages,
        GROUP=8,
        num_warps=config.num_warps,
        maxnreg=registers_at_launch(config.num_warps),
        launch_pdl=True,
        enable_fp_fusion=False,
    )
