"""The ring between the warp that copies and the warps that multiply, and the order of their tiles.

Shared memory holds STAGES slots. One producer warp makes the copy engine (TMA) fill slot after slot. The consumer warps
multiply the slots. Two barriers per slot synchronize them:

    full    the slot is filled    the producer announces the bytes, the engine counts them, the consumers wait
    empty   the slot is read      the consumers arrive, the producer waits before it fills the slot again

A barrier has a phase that flips each time it completes. Each slot is used once per turn of the ring, so the turn tells
the phase to wait for. `wait(barrier, phase)` returns when that phase has completed. On a new barrier phase 1 counts as
completed, so the producer does not wait in its first turn:

    producer                                          consumers
    mbarrier.wait(empty.index(slot), phase ^ 1)       mbarrier.wait(full.index(slot), phase)
    mbarrier.expect(full.index(slot), bytes)          … read the slot …
    load_tile(…, full.index(slot), …)                 mbarrier.arrive(empty.index(slot), count=1)
    slot, phase = next_slot(slot, phase, STAGES)      slot, phase = next_slot(slot, phase, STAGES)

Kernels are persistent: there are as many programs as multiprocessors, and each computes one piece of work after
another. So the producer loads the next tile while the consumers still store the last one. Both sides compute the same
sequence of pieces with `piece_of_work`.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from ..config.tile import tile_of_program

#: Registers of each thread of the producer's warp.
PRODUCER_REGISTERS = gl.constexpr(24)


def registers_at_launch(consumer_warps: int, programs_per_multiprocessor: int = 1) -> int:
    """`maxnreg` that uses all registers of the multiprocessor, for 4 or 8 consumer warps.

    At launch all warps get the same number; the producer's warp counts as four. Then registers move from the producer
    to the consumers: 12 warps · 32 threads · 168 registers become 8 · 32 · 240 and 4 · 32 · 24.
    """
    threads = 32 * (consumer_warps + 4) * programs_per_multiprocessor
    return min(65_536 // threads // 8 * 8, 248)


@gluon.jit
def open_ring(STAGES: gl.constexpr, CONSUMERS: gl.constexpr):
    """(full, empty): int64 [STAGES, 1] barriers, made before the warps specialize; CONSUMERS partitions read a slot."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    fence_async_shared()
    return full, empty


@gluon.jit
def next_slot(slot, phase, STAGES: gl.constexpr):
    """The next (slot, phase), int32 scalars that start at 0."""
    slot += 1
    wraps = slot == STAGES
    return gl.where(wraps, 0, slot), gl.where(wraps, phase ^ 1, phase)


@gluon.jit
def slot_before(slot, STAGES: gl.constexpr):
    """The slot before this one. A kernel that kept it in a variable would lose it: the compiler carries no variable
    through a loop that is another name of the same value when the loop starts and when a round ends.
    """
    return (slot + STAGES - 1) % STAGES


@gluon.jit
def piece_of_work(
    piece,
    N,
    M,
    steps,
    SPLITS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_M: gl.constexpr,
    GROUP: gl.constexpr,
):
    """(tile, split, n, m, first, last): the numbers of tile and split, the tile's first row of the weight and of x, and
    the split's steps along K, first … last - 1 of `steps`, perhaps none.

    Splits of a tile are consecutive pieces, so they run at the same time.
    """
    tile = piece // SPLITS
    split = piece % SPLITS
    tile_n, tile_m = tile_of_program(tile, N, M, BLOCK_N, BLOCK_M, GROUP)
    steps_per_split = (steps + SPLITS - 1) // SPLITS
    first = gl.minimum(split * steps_per_split, steps)
    last = gl.minimum(first + steps_per_split, steps)
    return tile, split, tile_n * BLOCK_N, tile_m * BLOCK_M, first, last
