"""The producer: one warp that makes the copy engine load x and weights, slot after slot, for all pieces of work.

It may start while the previous kernel still runs (programmatic dependent launch). It loads the first slots' weights at
once, because weights are constant. It loads everything else, which the previous kernel may write, after that kernel has
ended.

Early reads are safe under these rules:

    Only codes are read early     The previous kernel never writes codes. Code that makes weights (packs, loads, joins,
                                  moves) writes scales after the codes. Scales are not read early, because they may be
                                  copies made for this call.
    One kernel at most overlaps   A kernel lets the next one start only after its own predecessor has ended. So at most
                                  one earlier kernel is unfinished when codes are read.
    Nothing is written early      Only the warps that multiply write output, partial sums and counters, and they wait
                                  first. So when a kernel has ended, all kernels before it have ended too.

A CUDA graph keeps the order of its kernels, and starts when all work before it has ended.

If your kernel writes weight codes, launch another kernel before the product: the product prefetches codes before it
waits.
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
    ring,  # shared [STAGES, tile of x], as many of each weight (None without a second), and barriers full and empty
    M,
    N,
    steps,
    SPLITS: gl.constexpr,
    GROUP: gl.constexpr,
):
    """Fill the ring with the steps of all pieces of this program."""
    x_slots, w_slots, v_slots, full, empty = ring
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
