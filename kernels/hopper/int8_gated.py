"""The middle of a gated MLP on Hopper: activation(x · gateᵀ) · (x · upᵀ), as int8_matmul.py, with two accumulators.

A slot of the ring holds a tile of x and one of each weight: x is brought once for both products. Two accumulators of
128 columns are the registers of one of 256.
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

from ..blocks.epilogue import gated_finished, subtract_w_zero
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

#: Columns of out that are finished together: two tiles and what comes of them leave registers for no more.
WIDTH = 64


@gluon.jit
def int8_gated_matmul_kernel(
    x_desc,  # int8 [M, K] in tiles of [BLOCK_M, BLOCK_K]
    gate_desc,  # int8 [N, K] in tiles of [BLOCK_N, BLOCK_K]
    up_desc,  # alike
    x_scale_ptr,  # from here to out_zero_ptr as the plain kernel's
    x_zero_ptr,
    gate_scale_ptr,
    gate_zero_ptr,
    gate_sum_ptr,
    gate_bias_ptr,
    up_scale_ptr,
    up_zero_ptr,
    up_sum_ptr,
    up_bias_ptr,
    out_scale_ptr,
    out_zero_ptr,
    out_desc,  # float or int8 [M, N] in tiles of [BLOCK_M, columns that are finished at a time]
    x_sum_ptr,  # int32 [M], the sum of each row's codes, or None where neither weight has zero points
    partials_ptr,  # int32 [tiles, 2, SPLITS, BLOCK_M, BLOCK_N], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    ACTIVATION: gl.constexpr,
    X_QPARAM_STRIDE: gl.constexpr,
    OUT_QMIN: gl.constexpr,
    SPLITS: gl.constexpr,
    STAGES: gl.constexpr,
    GROUP: gl.constexpr,
):
    """All tiles of out, or splits of them, that fall to one program."""
    BLOCK_M: gl.constexpr = x_desc.block_type.shape[0]
    BLOCK_N: gl.constexpr = gate_desc.block_type.shape[0]
    BLOCK_K: gl.constexpr = x_desc.block_type.shape[1]
    x_slots = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_M, BLOCK_K], x_desc.layout)
    gate_slots = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, BLOCK_K], gate_desc.layout)
    up_slots = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, BLOCK_K], up_desc.layout)
    staging = gl.allocate_shared_memory(out_desc.dtype, out_desc.block_type.shape, out_desc.layout)
    full, empty = open_ring(STAGES, 1)
    steps = gl.cdiv(K, BLOCK_K)
    vectors = (
        x_scale_ptr,
        x_zero_ptr,
        gate_scale_ptr,
        gate_zero_ptr,
        gate_sum_ptr,
        gate_bias_ptr,
        up_scale_ptr,
        up_zero_ptr,
        up_sum_ptr,
        up_bias_ptr,
        out_scale_ptr,
        out_zero_ptr,
    )
    gl.warp_specialize(
        [
            (
                consume,
                (
                    (x_slots, gate_slots, up_slots, full, empty),
                    (out_desc, staging),
                    (partials_ptr, counters_ptr),
                    vectors,
                    x_sum_ptr,
                    (M, N, K),
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
                (
                    x_desc,
                    gate_desc,
                    up_desc,
                    x_slots,
                    gate_slots,
                    up_slots,
                    full,
                    empty,
                    M,
                    N,
                    steps,
                    SPLITS,
                    GROUP,
                ),
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
    x_slots, gate_slots, up_slots, full, empty = ring
    partials_ptr, counters_ptr = splits
    M, N = sizes[0], sizes[1]
    STAGES: gl.constexpr = x_slots.shape[0]
    BLOCK_M: gl.constexpr = x_slots.shape[1]
    BLOCK_N: gl.constexpr = gate_slots.shape[1]
    ACCUMULATOR: gl.constexpr = accumulator_layout(BLOCK_M, BLOCK_N, out[1].shape[1], gl.num_warps())
    wait_for_previous_kernel()
    slot = 0
    phase = 0
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        tile, split, n, m, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
        gate = gl.zeros([BLOCK_M, BLOCK_N], gl.int32, ACCUMULATOR)
        up = gl.zeros([BLOCK_M, BLOCK_N], gl.int32, ACCUMULATOR)
        for step in range(first, last):
            mbarrier.wait(full.index(slot), phase)
            x = x_slots.index(slot)
            # [BLOCK_M, BLOCK_K] @ [BLOCK_K, BLOCK_N], twice
            gate = warpgroup_mma(x, gate_slots.index(slot).permute((1, 0)), gate, is_async=True)
            up = warpgroup_mma(x, up_slots.index(slot).permute((1, 0)), up, is_async=True)
            gate, up = warpgroup_mma_wait(2, deps=[gate, up])  # for the step before, whose slot is free then
            mbarrier.arrive(empty.index(slot_before(slot, STAGES)), count=1, pred=step > first)
            slot, phase = next_slot(slot, phase, STAGES)
        gate, up = warpgroup_mma_wait(0, deps=[gate, up])
        mbarrier.arrive(empty.index(slot_before(slot, STAGES)), count=1, pred=last > first)

        is_finished = SPLITS == 1
        if SPLITS > 1:
            gate_partials = partial_pointers(gate, partials_ptr, 2 * tile, SPLITS)
            up_partials = partial_pointers(up, partials_ptr, 2 * tile + 1, SPLITS)
            store_partial(gate, gate_partials, split)
            store_partial(up, up_partials, split)
            is_finished = arrive(counters_ptr, tile, SPLITS)
            if is_finished:
                gate = sum_of_partials(gate, gate_partials, SPLITS)
                up = sum_of_partials(up, up_partials, SPLITS)
        if is_finished:
            finish(gate, up, n, m, out, vectors, x_sum_ptr, sizes, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN)
    tma.store_wait(0)


@gluon.jit
def finish(
    gate,
    up,
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
    """The epilogue of two int32 tiles [rows of x, rows of a weight], whose first are m0 and n0, a part at a time."""
    out_desc, staging = out
    HALF: gl.constexpr = gate.shape[1] // 2
    if gate.shape[1] > staging.shape[1]:
        gate, right_gate = halves(gate)
        up, right_up = halves(up)
        rest = (out, vectors, x_sum_ptr, sizes)
        finish(gate, up, n0, m0, *rest, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN)
        finish(right_gate, right_up, n0 + HALF, m0, *rest, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN)
    else:
        M, N, K = sizes
        gate, n, m = turn(gate, n0, m0)
        up, n, m = turn(up, n0, m0)
        if x_sum_ptr is not None:
            x_sum = gl.load(x_sum_ptr + m, mask=m < M, other=0)
            gate = subtract_w_zero(gate, x_sum, vectors[3], n, N)
            up = subtract_w_zero(up, x_sum, vectors[7], n, N)
        values = gated_finished(gate, up, *vectors, n, m, N, M, K, ACTIVATION, X_QPARAM_STRIDE, OUT_QMIN)
        copy_out(values.permute((1, 0)), n0, m0, out_desc, staging)


def hopper_launch(
    x: Operand,
    gate: Operand,
    up: Operand,
    operands: tuple[Operand | None, ...],
    out: Operand,
    constants: dict[str, Any],
    config: TileConfig,
    target: Target,
) -> Launch:
    """Compute ../int8_gated_matmul.py's product: its matrices addressable, the rest as its kernel takes it."""
    (rows, columns), features = x.shape, gate.shape[0]
    is_affine = operands[3] is not None or operands[7] is not None
    tiles = config.tiles(features, rows)
    tile_elements = 2 * config.block_n * config.block_m
    partials, counters = workspace(x, torch.int32, config.splits, tiles, tile_elements)
    return Launch(
        int8_gated_matmul_kernel,
        (min(tiles * config.splits, target.multiprocessors),),
        tile_descriptor(x, config.block_m, config.block_k),
        tile_descriptor(gate, config.block_n, config.block_k, columns),
        tile_descriptor(up, config.block_n, config.block_k, columns),
        *operands,
        tile_descriptor(out, config.block_m, min(config.block_n, WIDTH)),
        x.computed(lambda x: x.sum(dim=1, dtype=torch.int32), (rows,), torch.int32) if is_affine else None,
        partials,
        counters,
        rows,
        features,
        columns,
        **constants,
        SPLITS=config.splits,
        STAGES=config.num_stages,
        GROUP=8,
        num_warps=config.num_warps,
        maxnreg=registers_at_launch(config.num_warps),
        launch_pdl=True,
        enable_fp_fusion=False,
    )
