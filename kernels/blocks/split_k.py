"""Splits K over several programs and sums in a fixed order: every run gives the same bits, without float atomics.

Each program writes its partial tile to a workspace and increments a counter. The program that arrives last sums all
partials from split 0 upwards, resets the counter for the next launch, and runs the epilogue. No program waits for
another, so they need not be resident together.

Partial tiles lie in memory of the launch's own. Counters must be zero when a launch starts, and no two launches that
may run at once may share them (counters.py sees to both).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..launch.operands import Counters, Operand
from ..launch.target import Target


@triton.jit
def sum_of_splits(acc, partials_ptr, counters_ptr, tile, split, SPLITS: tl.constexpr):
    """Exchange partial tiles.

    acc: this split's [ROWS, COLUMNS] partial, float32 or int32; partials_ptr: [tiles, SPLITS, ROWS, COLUMNS] of the
    same dtype; counters_ptr: int32 [tiles], zero between launches.
    Returns (tile sum, True) to the program that arrived last, (something, False) to the others.
    """
    partials = partials_of(acc, partials_ptr, tile, SPLITS)
    store_partial(acc, partials, split)
    is_last = arrive(counters_ptr, tile, SPLITS)
    if is_last:
        acc = sum_of_partials(acc, partials, SPLITS)
    return acc, is_last


@triton.jit
def sums_of_splits(first, second, partials_ptr, counters_ptr, tile, split, SPLITS: tl.constexpr):
    """`sum_of_splits` of two tiles that belong together; partials_ptr: [tiles, 2, SPLITS, ROWS, COLUMNS]."""
    first_partials = partials_of(first, partials_ptr, 2 * tile, SPLITS)
    second_partials = partials_of(second, partials_ptr, 2 * tile + 1, SPLITS)
    store_partial(first, first_partials, split)
    store_partial(second, second_partials, split)
    is_last = arrive(counters_ptr, tile, SPLITS)
    if is_last:
        first = sum_of_partials(first, first_partials, SPLITS)
        second = sum_of_partials(second, second_partials, SPLITS)
    return first, second, is_last


@triton.jit
def store_partial(acc, partials, split):
    """Store a split's [ROWS, COLUMNS] partial; partials: pointers to the partial of split 0."""
    tl.store(partials + split * (acc.shape[0] * acc.shape[1]), acc)


@triton.jit
def arrive(counters_ptr, tile, SPLITS: tl.constexpr):
    """Increment the tile's counter. The last program resets it and gets True."""
    # The barrier puts all threads' stores before one thread's atomic add, which publishes them (release at GPU scope).
    tl.debug_barrier()
    arrived = tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel", scope="gpu")
    is_last = arrived == SPLITS - 1
    if is_last:
        tl.store(counters_ptr + tile, 0)
    return is_last


@triton.jit
def sum_of_partials(acc, partials, SPLITS: tl.constexpr):
    """Add the partials of a tile from split 0 upwards; acc, one of them, gives the shape."""
    total = tl.load(partials, cache_modifier=".cg")
    for other in range(1, SPLITS):
        total += tl.load(partials + other * (acc.shape[0] * acc.shape[1]), cache_modifier=".cg")
    return total


@triton.jit
def partials_of(acc, partials_ptr, tile, SPLITS: tl.constexpr):
    """Pointers [ROWS, COLUMNS] to split 0's partial of a tile."""
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return partials_ptr + tile.to(tl.int64) * (SPLITS * ROWS * COLUMNS) + offsets


def workspace(
    x: Operand, dtype: torch.dtype, splits: int, tiles: int, tile_elements: int
) -> tuple[Operand, Operand] | tuple[None, None]:
    """(partial tiles of `dtype`, zeroed int32 counters) on x's device; Nones for one split."""
    if splits == 1:
        return None, None
    partials = x.new_empty(tiles * splits * tile_elements, dtype=dtype)
    return partials, Operand(Counters(), torch.int32, (tiles,), x.device)


def split_count(target: Target, tiles: int, steps: int, programs_per_multiprocessor: int) -> int:
    """The largest power of two ≤ 8 that does not exceed one wave of programs and leaves each split a step or more."""
    # No splits on AMD: there the barrier before the atomic add does not wait for the stores of other waves.
    most = 1 if target.backend == "hip" else 8
    wanted = programs_per_multiprocessor * target.multiprocessors
    splits = 1
    while splits < most and 2 * splits * tiles <= wanted and 2 * splits <= steps:
        splits *= 2
    return splits
