"""Splitting K over several programs, with a sum in fixed order: the same bits every run, no float atomics.

Each program writes its partial tile to a workspace and counts itself in; the one that arrives last sums all partials
from split 0 upwards, sets the counter back to zero for the next launch, and alone runs the epilogue. It waits for
nobody, so the programs need not be resident together.

Partial tiles lie in memory of the launch's own. Counters must be zero when a launch starts, and no two launches that
may run at once may share them (counters.py sees to both).
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch.counters import zeroed_counters
from ..launch.recording import ask_again
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
    """Write a split's [ROWS, COLUMNS] partial to its place; partials: pointers to split 0's."""
    tl.store(partials + split * (acc.shape[0] * acc.shape[1]), acc)


@triton.jit
def arrive(counters_ptr, tile, SPLITS: tl.constexpr):
    """Count this program in; True, and the counter back at zero, for the last one."""
    # Every thread's stores come before the one thread's counting, which publishes them (release at GPU scope).
    tl.debug_barrier()
    arrived = tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel", scope="gpu")
    is_last = arrived == SPLITS - 1
    if is_last:
        tl.store(counters_ptr + tile, 0)
    return is_last


@triton.jit
def sum_of_partials(acc, partials, SPLITS: tl.constexpr):
    """Add the partials of a tile from split 0 upwards; acc is one of them, and gives the shape."""
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
    device: torch.device, dtype: torch.dtype, splits: int, tiles: int, tile_elements: int
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """(partial tiles of `dtype`, zeroed int32 counters) on the current stream of `device`; Nones without splits."""
    if splits == 1:
        return None, None
    partials = torch.empty(tiles * splits * tile_elements, dtype=dtype, device=device)
    return partials, ask_again(functools.partial(zeroed_counters, device, tiles))


def split_count(target: Target, tiles: int, steps: int, programs_per_multiprocessor: int) -> int:
    """The power of two ≤ 8 that fills the GPU with programs but not more, leaving each split a step or more."""
    # On AMD the barrier before counting does not wait for the other waves' stores: no splits there.
    most = 1 if target.backend == "hip" else 8
    wanted = programs_per_multiprocessor * target.multiprocessors
    splits = 1
    while splits < most and 2 * splits * tiles <= wanted and 2 * splits <= steps:
        splits *= 2
    return splits
