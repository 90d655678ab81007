"""Splitting K over several programs, with a sum in fixed order: the same bits every run, no float atomics.

Each program writes its partial tile to a workspace and counts itself in; the one that arrives last sums all partials
from split 0 upwards, sets the counter back to zero for the next launch, and alone runs the epilogue. It waits for
nobody, so the programs need not be resident together.

The workspace belongs to one (device, stream), where launches follow each other. A graph under capture gets its own,
from the graph's memory: graphs replay on any stream, side by side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_workspaces: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
_SMALLEST_PARTIALS = 1 << 20
_SMALLEST_COUNTERS = 1 << 12


@triton.jit
def sum_of_splits(acc, partials_ptr, counters_ptr, tile, split, SPLITS: tl.constexpr):
    """Exchange partial tiles.

    acc: this split's [ROWS, COLUMNS] partial, float32 or int32; partials_ptr: [tiles, SPLITS, ROWS, COLUMNS] of the
    same dtype; counters_ptr: int32 [tiles], zero between launches.
    Returns (tile sum, True) to the program that arrived last, (something, False) to the others.
    """
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    offsets = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tile_ptr = partials_ptr + tile.to(tl.int64) * (SPLITS * ROWS * COLUMNS)
    tl.store(tile_ptr + split * (ROWS * COLUMNS) + offsets, acc)
    # Every thread's stores come before the one thread's counting, which publishes them (release at GPU scope).
    tl.debug_barrier()
    arrived = tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel", scope="gpu")
    is_last = arrived == SPLITS - 1
    if is_last:
        acc = tl.load(tile_ptr + offsets, cache_modifier=".cg")
        for other in range(1, SPLITS):
            acc += tl.load(tile_ptr + other * (ROWS * COLUMNS) + offsets, cache_modifier=".cg")
        tl.store(counters_ptr + tile, 0)
    return acc, is_last


def workspace(device: torch.device, partials: int, tiles: int) -> tuple[Tensor, Tensor]:
    """Room for `partials` int32 elements and `tiles` zeroed int32 counters on the current stream of `device`."""
    if device.type != "cuda":
        return _allocate(device, partials, tiles)
    if torch.cuda.is_current_stream_capturing():
        return _allocate(device, partials, tiles)
    key = (device.index, torch.cuda.current_stream(device).cuda_stream)
    held = _workspaces.get(key)
    if held is None or held[0].numel() < partials or held[1].numel() < tiles:
        held = _allocate(
            device,
            max(triton.next_power_of_2(partials), _SMALLEST_PARTIALS),
            max(triton.next_power_of_2(tiles), _SMALLEST_COUNTERS),
        )
        _workspaces[key] = held
    return held


def split_count(tiles: int, steps: int, wanted_programs: int, most: int = 8) -> int:
    """The power of two ≤ `most` that brings `tiles` closest to `wanted_programs`, leaving each split a step or more."""
    splits = 1
    while splits < most and 2 * splits * tiles <= wanted_programs and 2 * splits <= steps:
        splits *= 2
    return splits


def _allocate(device: torch.device, partials: int, tiles: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(partials, dtype=torch.int32, device=device),
        torch.zeros(tiles, dtype=torch.int32, device=device),
    )
