"""The producer: one warp that has the copy engine bring x and weights, slot after slot, for all pieces of work.

It starts while the kernel before may still run (programmatic dependent launch): weights are constant, so the first
slots' weights are asked for at once; all else, which that kernel may write, only when it has ended.

What may be read early, and why that is safe:

    codes of the weight alone        the kernel right before never writes them. Where weights are made (packed, loaded,
                                     joined, moved), scales are written behind the codes; and scales may be copies made
                                     for this very call
    not what kernels before wrote    the next kernel is allowed in only once the one before this has ended, so that at
                                     most one kernel is ever unfinished when codes are read
    nothing is written early         output, partial sums and counters belong to the warps that multiply, and each of
                                     them waits first; so a kernel that has ended says that all before it have

A graph keeps the order of the kernels that it was captured from, and starts when all before it has ended. Who writes
codes by himself, in a kernel right before the product, puts another kernel between the two.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..launch.gluon_versions import allow_next_kernel, load_tile, wait_for_previous_kernel
from .ring import next_slot, piece_of_work


@gluon.jit
def produce(
    x_desc,  # of x, in tiles of [BLOCK_M, columns of x a step]
    w_desc,  # of a weight, in tiles of [BLOCK_N, words a step]
    v_desc,  # of a second weight alike, or None
    x_slots,  # shared [STAGES, tile of x]
    w_slots,
    v_slots,
    full,
    empty,
    M,
    N,
    steps,
    SPLITS: gl.constexpr,
    GROUP: gl.constexpr,
):
    """Fill the ring of `open_ring` with the steps of all pieces of this program."""
    BLOCK_M: gl.constexpr = x_desc.block_type.shape[0]
    BLOCK_N: gl.constexpr = w_desc.block_type.shape[0]
    STAGES: gl.constexpr = x_slots.shape[0]
    BYTES: gl.constexpr = x_desc.block_type.nbytes + w_desc.block_type.nbytes * (1 if v_desc is None else 2)
    pieces = gl.cdiv(N, BLOCK_N) * gl.cdiv(M, BLOCK_M) * SPLITS
    piece = gl.program_id(0)
    _, _, n, m, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)
    ahead = gl.minimum(last - first, STAGES)
    for slot in range(ahead):
        mbarrier.expect(full.index(slot), BYTES)
        load_weights(w_desc, v_desc, n, first + slot, full.index(slot), w_slots.index(slot), v_slots, slot)
    wait_for_previous_kernel()
    allow_next_kernel()
    for slot in range(ahead):
        load_step(x_desc, m, first + slot, full.index(slot), x_slots.index(slot))

    slot = ahead % STAGES
    phase = ahead // STAGES
    first += ahead
    while piece < pieces:
        for step in range(first, last):
            ready = full.index(slot)
            mbarrier.wait(empty.index(slot), phase ^ 1)
            mbarrier.expect(ready, BYTES)
            load_step(x_desc, m, step, ready, x_slots.index(slot))
            load_weights(w_desc, v_desc, n, step, ready, w_slots.index(slot), v_slots, slot)
            slot, phase = next_slot(slot, phase, STAGES)
        piece += gl.num_programs(0)
        _, _, n, m, first, last = piece_of_work(piece, N, M, steps, SPLITS, BLOCK_N, BLOCK_M, GROUP)


@gluon.jit
def load_weights(w_desc, v_desc, n, step, ready, w_slot, v_slots, slot):
    """A step of one weight, or of two."""
    load_step(w_desc, n, step, ready, w_slot)
    if v_desc is not None:
        load_step(v_desc, n, step, ready, v_slots.index(slot))


@gluon.jit
def load_step(desc, row, step, ready, destination):
    """The tile from `row` on, of the columns of one step."""
    load_tile(desc, [row, step * desc.block_type.shape[1]], ready, destination)
