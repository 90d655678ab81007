"""The two warps that have the copy engine bring the weight and x, each into its own ring.

The weight's first slots are asked for while the kernel before this one still runs: their codes, and codes alone
(producer.py says why). x, scales and zero points wait until it has ended.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..launch.gluon_versions import allow_next_kernel, load_tile, wait_for_previous_kernel
from .ring import next_slot, piece_of_work


@gluon.constexpr_function
def columns_of_step(w_slots):
    """Columns of K whose codes are in one slot."""
    return w_slots.shape[2] * (4 if w_slots.dtype == gl.int16 else 1)


@gluon.jit
def produce_weights(descriptors, w_ring, x_slots, sizes, SPLITS: gl.constexpr, GROUP: gl.constexpr):
    """Fill the weight's ring with the steps of all pieces of this program."""
    w_desc, scale_desc, zero_desc = descriptors
    w_slots, _, _, full, empty = w_ring
    M, N, steps, group_size = sizes
    STAGES: gl.constexpr = w_slots.shape[0]
    BLOCK_N: gl.constexpr = w_slots.shape[1]
    BLOCK_M: gl.constexpr = x_slots.shape[1]
    STEP: gl.constexpr = columns_of_step(w_slots)
    BYTES: gl.constexpr = (
        w_desc.block_type.nbytes
        + (0 if scale_desc is None else scale_desc.block_type.nbytes)
        + (0 if zero_desc is None else zero_desc.block_type.nbytes)
    )
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    piece = gl.program_id(0)
    _, _, n, _, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
    ahead = gl.minimum(last - first, STAGES)
    for slot in range(ahead):
        mbarrier.expect(full.index(slot), BYTES)
        load_codes(w_desc, w_ring, n, first + slot, slot)
    wait_for_previous_kernel()
    for slot in range(ahead):
        load_grids(descriptors, w_ring, n, (first + slot) * STEP // group_size, slot)

    slot = ahead % STAGES
    phase = ahead // STAGES
    first += ahead
    while piece < pieces:
        for step in range(first, last):
            mbarrier.wait(empty.index(slot), phase ^ 1)
            mbarrier.expect(full.index(slot), BYTES)
            load_codes(w_desc, w_ring, n, step, slot)
            load_grids(descriptors, w_ring, n, step * STEP // group_size, slot)
            slot, phase = next_slot(slot, phase, STAGES)
        piece += gl.num_programs(0)
        _, _, n, _, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)


@gluon.jit
def load_codes(w_desc, w_ring, n, step, slot):
    """The codes of one step, of rows n and following of the weight."""
    w_slots, _, _, full, _ = w_ring
    load_tile(w_desc, [n, step * w_slots.shape[2]], full.index(slot), w_slots.index(slot))


@gluon.jit
def load_grids(descriptors, w_ring, n, group, slot):
    """The scales and zero points of a step whose first group is `group`, where there is more than one."""
    _, scale_desc, zero_desc = descriptors
    _, scale_slots, zero_slots, full, _ = w_ring
    if scale_desc is not None:
        load_tile(scale_desc, [group, n], full.index(slot), scale_slots.index(slot))
        if zero_desc is not None:
            load_tile(zero_desc, [group, n], full.index(slot), zero_slots.index(slot))


@gluon.jit
def produce_x(x_desc, x_ring, w_slots, sizes, SPLITS: gl.constexpr, GROUP: gl.constexpr):
    """Fill x's ring alike, one or several slots a step."""
    x_slots, full, empty = x_ring
    M, N, steps, _ = sizes
    STAGES: gl.constexpr = x_slots.shape[0]
    BLOCK_M: gl.constexpr = x_slots.shape[1]
    WIDTH: gl.constexpr = x_slots.shape[2]
    BLOCK_N: gl.constexpr = w_slots.shape[1]
    SLOTS: gl.constexpr = columns_of_step(w_slots) // WIDTH
    wait_for_previous_kernel()
    # Not earlier: producer.py says why.
    allow_next_kernel()
    slot = 0
    phase = 0
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    for piece in range(gl.program_id(0), pieces, gl.num_programs(0)):
        _, _, _, m, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
        for part in range(first * SLOTS, last * SLOTS):
            mbarrier.wait(empty.index(slot), phase ^ 1)
            mbarrier.expect(full.index(slot), x_desc.block_type.nbytes)
            load_tile(x_desc, [m, part * WIDTH], full.index(slot), x_slots.index(slot))
            slot, phase = next_slot(slot, phase, STAGES)
