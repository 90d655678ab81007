"""Float activations × INT4 or INT8 weights on Hopper: outᵀ [N, M] = W [N, K] · xᵀ, the weight unpacked into registers.

    1 warp         fills a ring with the weight's codes, and with the scales and zero points of their groups; the first
                   codes while the kernel before this one still runs (producer.py says why codes, and codes alone)
    1 warp         fills another ring with x, from when the kernel before has ended
    2 × 4 warps    64 or more rows of the weight each: codes → left operand in registers (weight_operand.py), times the
                   slice of x that belongs to them, asynchronously, while the next operand is unpacked

One form of weight and one kernel serve every M. A step of the weight's ring is 128 bytes a row, 256 or 128 columns.
Where many rows of x share it, x comes in smaller slots, for which there is more room; where few do, in the same steps.

The product of a group's columns is a separate partial sum in float32, to which the group's scale is applied; so all
M give the same numbers but for the order of float32 sums. The two groups of consumer warps go their own ways: while
one applies scales the other keeps the matrix unit busy.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from ..blocks.split_k import arrive, store_partial, sum_of_partials, workspace
from ..config.hopper_weight_only_shapes import (
    BLOCK_N,
    TURNED,
    consumer_registers,
    programs_per_multiprocessor,
    rings_of,
    slab_width_in_kernel,
)
from ..config.tile import TileConfig
from ..launch.descriptors import is_addressable
from ..launch.gluon_versions import wait_for_previous_kernel
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.target import Target
from .output import halves, partial_pointers
from .ring import PRODUCER_REGISTERS, next_slot, open_ring, piece_of_work
from .tile_descriptors import tile_descriptor
from .weight_only_producers import columns_of_step, produce_weights, produce_x
from .weight_operand import negative_offsets, operand_of

#: Rows of x whose results are stored at a time, exchanged between threads first; fewer are stored as they lie.
_TURNED = gl.constexpr(TURNED)


@gluon.jit
def weight_only_matmul_kernel(
    x_desc,  # bfloat16 or float16 [M, K] in tiles of [BLOCK_M, columns of x's slot]
    w_desc,  # int16 words or int8 [N, ·] in tiles of [BLOCK_N, 128 bytes]
    scale_desc,  # float [G, N] in tiles of [groups of a step, BLOCK_N], or None for one group
    zero_desc,  # int8 [G, N] alike, or None
    scale_ptr,  # float [N] where there is one group
    zero_ptr,  # int8 [N] where there is one group, or None
    bias_ptr,  # float [N], or None
    out_ptr,  # x's dtype [M, N]
    partials_ptr,  # float32 [2 · tiles, SPLITS, BLOCK_N / 2, BLOCK_M], or None
    counters_ptr,  # int32 [2 · tiles], or None
    M,
    N,
    steps,  # of 128 bytes, per row of the weight
    group_size,
    SLAB: gl.constexpr,  # columns whose codes lie side by side
    SPLITS: gl.constexpr,
    W_STAGES: gl.constexpr,
    X_STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    GROUP: gl.constexpr,
):
    """All tiles of outᵀ, or splits of them, that fall to one program."""
    w_slots = slots_of(w_desc, W_STAGES)
    x_slots = slots_of(x_desc, X_STAGES)
    w_full, w_empty = open_ring(W_STAGES, 2)
    x_full, x_empty = open_ring(X_STAGES, 2)
    if scale_desc is None:
        w_ring = (w_slots, None, None, w_full, w_empty)
    elif zero_desc is None:
        w_ring = (w_slots, slots_of(scale_desc, W_STAGES), None, w_full, w_empty)
    else:
        w_ring = (w_slots, slots_of(scale_desc, W_STAGES), slots_of(zero_desc, W_STAGES), w_full, w_empty)
    x_ring = (x_slots, x_full, x_empty)
    sizes = (M, N, steps, group_size)
    pointers = (scale_ptr, zero_ptr, partials_ptr, counters_ptr)
    output = (bias_ptr, out_ptr)
    gl.warp_specialize(
        [
            (consume, (w_ring, x_ring, pointers, output, sizes, 0, SLAB, SPLITS, GROUP)),
            (consume, (w_ring, x_ring, pointers, output, sizes, 1, SLAB, SPLITS, GROUP)),
            (produce_weights, ((w_desc, scale_desc, zero_desc), w_ring, x_slots, sizes, SPLITS, GROUP)),
            (produce_x, (x_desc, x_ring, w_slots, sizes, SPLITS, GROUP)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def slots_of(desc, STAGES: gl.constexpr):
    """Shared memory [STAGES, tile] for what a descriptor brings."""
    ROWS: gl.constexpr = desc.block_type.shape[0]
    COLUMNS: gl.constexpr = desc.block_type.shape[1]
    return gl.allocate_shared_memory(desc.dtype, [STAGES, ROWS, COLUMNS], desc.layout)


@gluon.jit
def consume(
    w_ring,
    x_ring,
    pointers,
    output,
    sizes,
    HALF: gl.constexpr,  # of the tile's rows of the weight: 0 or 1
    SLAB: gl.constexpr,
    SPLITS: gl.constexpr,
    GROUP: gl.constexpr,
):
    """One of the two groups of warps that multiply."""
    w_slots, scale_slots, zero_slots, w_full, w_empty = w_ring
    x_slots, x_full, x_empty = x_ring
    scale_ptr, zero_ptr, partials_ptr, counters_ptr = pointers
    M, N, steps, _ = sizes
    BLOCK_N: gl.constexpr = w_slots.shape[1]
    BLOCK_M: gl.constexpr = x_slots.shape[1]
    ROWS: gl.constexpr = BLOCK_N // 2
    CODES: gl.constexpr = w_slots.dtype
    OPERAND: gl.constexpr = x_slots.dtype
    SLABS: gl.constexpr = 4 if CODES == gl.int16 else 1
    POSITIONS: gl.constexpr = columns_of_step(w_slots) // SLAB
    HAS_GROUPS: gl.constexpr = scale_slots is not None
    PER_SCALE: gl.constexpr = POSITIONS // scale_slots.shape[1] if HAS_GROUPS else POSITIONS
    PER_X_SLOT: gl.constexpr = x_slots.shape[2] // SLAB
    HAS_ZERO: gl.constexpr = zero_slots is not None or zero_ptr is not None
    ACCUMULATOR: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, ACCUMULATOR, 2)

    wait_for_previous_kernel()
    w_slot = 0
    w_phase = 0
    x_slot = 0
    x_phase = 0
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        tile, split, n0, m0, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
        n = n0 + HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, ACCUMULATOR))
        zero = gl.zeros([ROWS, 1], gl.float32, LEFT)
        if not HAS_GROUPS:
            scale = gl.load(scale_ptr + n, mask=n < N, other=0.0).to(gl.float32)[:, None]
            if zero_ptr is not None:
                row = n0 + HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LEFT))
                zero = gl.load(zero_ptr + row, mask=row < N, other=0).to(gl.float32)[:, None]
        acc = gl.zeros([ROWS, BLOCK_M], gl.float32, ACCUMULATOR)
        partial = gl.zeros([ROWS, BLOCK_M], gl.float32, ACCUMULATOR)
        for _ in range(first, last):
            mbarrier.wait(w_full.index(w_slot), w_phase)
            codes_of_step = w_slots.index(w_slot).slice(HALF * ROWS, ROWS, 0)
            w = gl.zeros([ROWS, SLAB], OPERAND, LEFT)
            for position in gl.static_range(POSITIONS + 1):
                if position < POSITIONS:
                    if zero_slots is not None and position % PER_SCALE == 0:
                        zero = row_of_step(zero_slots.index(w_slot), position // PER_SCALE, HALF, LEFT)
                    if position % SLABS == 0:
                        codes = codes_of_step.slice(position // SLABS * SLAB, SLAB, 1).load(LEFT)
                    offsets = negative_offsets(zero, OPERAND, CODES)
                    unpacked = operand_of(codes, position % SLABS, offsets, HAS_ZERO)
                if position > 0:
                    # The product of the slab before has run while this one was unpacked.
                    # acc waits with it: scales are then applied group by group. At the step's end, where the compiler
                    # would put that otherwise, every group's partial sums would still need registers.
                    partial, w, acc = warpgroup_mma_wait(0, deps=[partial, w, acc])
                    if position % PER_X_SLOT == 0:
                        mbarrier.arrive(x_empty.index(x_slot), count=1)
                        x_slot, x_phase = next_slot(x_slot, x_phase, x_slots.shape[0])
                    if HAS_GROUPS and position % PER_SCALE == 0:
                        acc += partial * scale
                if position < POSITIONS:
                    if HAS_GROUPS and position % PER_SCALE == 0:
                        scale = row_of_step(
                            scale_slots.index(w_slot), position // PER_SCALE, HALF, ACCUMULATOR
                        )
                    if position % PER_X_SLOT == 0:
                        mbarrier.wait(x_full.index(x_slot), x_phase)
                    w = unpacked
                    x = x_slots.index(x_slot).slice(position % PER_X_SLOT * SLAB, SLAB, 1).permute((1, 0))
                    adds = not HAS_GROUPS or position % PER_SCALE != 0
                    # [ROWS, SLAB] @ [SLAB, BLOCK_M]
                    partial = warpgroup_mma(w, x, partial, use_acc=adds, is_async=True)
            mbarrier.arrive(w_empty.index(w_slot), count=1)
            w_slot, w_phase = next_slot(w_slot, w_phase, w_slots.shape[0])
        if not HAS_GROUPS:
            acc = partial * scale

        is_finished = SPLITS == 1
        if SPLITS > 1:
            partials = partial_pointers(acc, partials_ptr, 2 * tile + HALF, SPLITS)
            store_partial(acc, partials, split)
            is_finished = arrive(counters_ptr, 2 * tile + HALF, SPLITS)
            if is_finished:
                acc = sum_of_partials(acc, partials, SPLITS)
        if is_finished:
            finish(acc, n, m0, output, M, N)


@gluon.jit
def row_of_step(slot, ROW: gl.constexpr, HALF: gl.constexpr, LAYOUT: gl.constexpr):
    """float32 [rows of a half, 1]: row ROW of a slot [groups of a step, BLOCK_N], scales or zero points.

    The slot is read as the vector that the copy engine wrote, row after row. A transposed view of it would not do: the
    compiler takes what is not swizzled for row after row, transposed or not.
    """
    BLOCK_N: gl.constexpr = slot.shape[1]
    ROWS: gl.constexpr = BLOCK_N // 2
    vector = slot._reinterpret(slot.dtype, [slot.shape[0] * BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    row = vector.slice(ROW * BLOCK_N + HALF * ROWS, ROWS)
    return row.load(gl.SliceLayout(1, LAYOUT)).to(gl.float32)[:, None]


@gluon.jit
def finish(acc, n, m0, output, M, N):
    """Add the bias to float32 acc [rows of the weight n, rows of x from m0 on], and store it."""
    COLUMNS: gl.constexpr = acc.shape[1]
    if COLUMNS > _TURNED:
        # A part after the other: beside the sums that wait, few registers are left.
        left, right = halves(acc)
        finish(left, n, m0, output, M, N)
        finish(right, n, m0 + COLUMNS // 2, output, M, N)
    else:
        bias_ptr, out_ptr = output
        n = gl.convert_layout(n, gl.SliceLayout(1, acc.type.layout), assert_trivial=True)
        if bias_ptr is not None:
            acc += gl.load(bias_ptr + n, mask=n < N, other=0.0).to(gl.float32)[:, None]
        values = acc.to(out_ptr.dtype.element_ty)
        if COLUMNS == _TURNED:
            # Eight neighbours of a row of out for each thread.
            NEIGHBOURS: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1])
            values = gl.convert_layout(values, NEIGHBOURS)
            n = gl.convert_layout(n, gl.SliceLayout(1, NEIGHBOURS))
        m = m0 + gl.arange(0, COLUMNS, gl.SliceLayout(0, values.type.layout))
        out_ptrs = out_ptr + m.to(gl.int64)[None, :] * N + n[:, None]
        gl.store(out_ptrs, values, mask=(n < N)[:, None] & (m < M)[None, :])


def hopper_launch(
    x: Operand,
    w: Operand,
    scale: Operand,
    zero_point: Operand | None,
    bias: Operand | None,
    out: Operand,
    group_size: int,
    slab_width: int,
    config: TileConfig,
    target: Target,
) -> Launch:
    """Compute the product of ../matmul/weight_only.py into out [M, N]; all but bias and out addressable."""
    (rows, columns), features, groups = x.shape, w.shape[0], scale.shape[0]
    x = _addressable_rows(x)
    slabs = 4 if w.element_size() == 2 else 1
    rings, step = rings_of(config), config.block_k
    one_scale = groups == 1
    tiles = config.tiles(features, rows)
    pieces = tiles * config.splits
    # The two groups of consumer warps exchange the partial sums of their halves each by itself.
    partials, counters = workspace(x, torch.float32, config.splits, 2 * tiles, BLOCK_N // 2 * config.block_m)
    groups_of_step = max(1, step // group_size)
    return Launch(
        weight_only_matmul_kernel,
        (min(pieces, target.multiprocessors * programs_per_multiprocessor(config)),),
        tile_descriptor(x, config.block_m, rings.x_columns),
        tile_descriptor(w, BLOCK_N, 128 // w.element_size()),
        None if one_scale else tile_descriptor(scale, groups_of_step, BLOCK_N, swizzled=False),
        None
        if one_scale or zero_point is None
        else tile_descriptor(zero_point, groups_of_step, BLOCK_N, swizzled=False),
        scale if one_scale else None,
        zero_point if one_scale else None,
        bias,
        out,
        partials,
        counters,
        rows,
        features,
        -(-columns // step),
        group_size,
        SLAB=slab_width_in_kernel(slabs, slab_width, groups, group_size),
        SPLITS=config.splits,
        W_STAGES=rings.w_stages,
        X_STAGES=rings.x_stages,
        CONSUMER_REGISTERS=consumer_registers(config),
        GROUP=8,
        num_warps=4,
        maxnreg=config.max_registers,
        launch_pdl=True,
        enable_fp_fusion=True,
    )


def _addressable_rows(x: Operand) -> Operand:
    """x [M, K], or a copy of it where the copy engine cannot reach its rows; K · 2 bytes are a multiple of 16."""
    rows, columns = x.shape
    if rows == 1:
        x = x.with_row_stride(columns)  # a stride that is never taken may be anything
    if is_addressable(x) and x.stride(0) >= columns:
        return x
    return x.computed(lambda x: x.clone(memory_format=torch.contiguous_format))
