"""Tile shapes of Hopper's kernels for int8 activations: what fits a multiprocessor, and the rule that chooses.

The rule computes a cost: the waves of tiles over the multiprocessors, times the cost of one tile, which is its steps
plus a fixed part. The costs are relative numbers, measured on an H100 with a kernel of this design. A tile of 128 rows
of x and 256 of the weight costs less than two of its halves. Splitting K costs an exchange of partial tiles. This file
needs no Gluon.
"""

from __future__ import annotations

import dataclasses

import triton

from ..launch.target import Target
from .problem import Int4Int8, Int8, Int8Gated, Problem
from .tile import TileConfig

#: int8 columns per step: one row of the widest swizzle of shared memory.
BLOCK_K = 128
_CONSUMER_WARPS = 8
#: Shared memory for results on their way out, and for barriers and scratch.
_STAGING_BYTES, _BARRIER_BYTES = 32 * 1024, 1024
#: 32-bit sums per thread; half of them if K is split, or if the epilogue is long.
_MOST_SUMS = 128
#: Up to this many rows of x, the plain kernel, whose operand of 64 rows is the weight, reads as little and wastes less.
_ROWS_OF_PLAIN = 64
#: Costs by columns of a tile, in units of a step of the widest tile: a step; the fixed part of a tile (fill, drain,
#: epilogue); the exchange of partial tiles.
_STEP = {256: 1.0, 128: 0.55}
_TILE = {256: 4.0, 128: 2.5}
_EXCHANGE = 2.0


def is_hopper(target: Target) -> bool:
    """True on the GPUs that these kernels are written for."""
    return target.backend == "cuda" and target.arch == 90


def is_for_hopper(target: Target, rows: int, features: int) -> bool:
    """True if Hopper's kernels can run and are expected to be the fastest."""
    return is_hopper(target) and rows > _ROWS_OF_PLAIN and features % 16 == 0


def stages_that_fit(target: Target, rows_per_stage: int) -> int:
    """Slots of the ring; `rows_per_stage` counts the rows of x and of the weights together."""
    return min(8, (target.shared_memory - _STAGING_BYTES - _BARRIER_BYTES) // (rows_per_stage * BLOCK_K))


def choose_int8_config(target: Target, rows: int, features: int, columns: int, long: bool) -> TileConfig:
    """The cheapest shape; `long`: the epilogue needs the registers that the wider tile's sums would take."""
    shapes = [(128, splits) for splits in (1, 2, 4, 8)] + ([] if long else [(256, 1)])
    block_n, splits = _cheapest(shapes, target, rows, features, columns)
    stages = stages_that_fit(target, 128 + block_n)
    return TileConfig(block_n, 128, BLOCK_K, splits, _CONSUMER_WARPS, stages, "hopper")


def choose_gated_config(target: Target, rows: int, features: int, columns: int) -> TileConfig:
    """The cheapest shape. Two tiles of 128 columns cost as much as one of 256, two of 64 as much as one of 128."""
    shapes = [(128, splits) for splits in (1, 2, 4, 8)] + [(256, 1)]
    both, splits = _cheapest(shapes, target, rows, 2 * features, columns)
    stages = stages_that_fit(target, 128 + both)
    return TileConfig(both // 2, 128, BLOCK_K, splits, _CONSUMER_WARPS, stages, "hopper")


def choose_int4_int8_config(
    target: Target, rows: int, features: int, blocks: int, slab_width: int, one_group: bool
) -> TileConfig:
    """A tile as wide as M. The widest has no room for the float32 sums of groups. Steps are blocks of the layout."""
    block_n, block_k = 128, 2 * slab_width
    most = 256 if one_group else 128
    block_m = min(most, max(16, triton.next_power_of_2(rows)))

    def cost(splits: int) -> float:
        pieces = triton.cdiv(rows, block_m) * triton.cdiv(features, block_n) * splits
        waves = triton.cdiv(pieces, target.multiprocessors)
        exchange = _EXCHANGE if splits > 1 else 0.0
        return waves * (triton.cdiv(blocks, splits) + 1.0 + exchange)

    may_split = (1, 2, 4, 8) if block_m <= 128 else (1,)
    splits = min((count for count in may_split if count <= blocks), key=cost)
    stages = int4_int8_stages_that_fit(target, block_n, block_m, slab_width)
    return TileConfig(block_n, block_m, block_k, splits, _CONSUMER_WARPS, stages, "hopper")


def int4_int8_stages_that_fit(target: Target, block_n: int, block_m: int, slab_width: int) -> int:
    """Slots of the ring; a slot has `slab_width` bytes per row of the weight and twice as many per row of x."""
    slot = (block_n + 2 * block_m) * slab_width
    return min(8, (target.shared_memory - _STAGING_BYTES // 2 - _BARRIER_BYTES) // slot)


def why_not_int4_int8(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """`why_not_int8` for a W4A8 problem."""
    variant = problem.variant
    assert isinstance(variant, Int4Int8)
    slab_width = variant.slab_width
    if not is_hopper(target):
        return "Hopper's kernels need compute capability 9.0"
    if not variant.addressable or problem.features % 16:
        return (
            "the copy engine needs int8 rows that start at multiples of 16 bytes, and groups without padding"
        )
    if (config.block_n, config.num_warps, config.block_k) != (128, 8, 2 * slab_width):
        return f"8 warps take 128 rows of the weight and {2 * slab_width} columns, found {config}"
    most = 256 if variant.group_size >= problem.columns and config.splits == 1 else 128
    if not 16 <= config.block_m <= most:
        return f"block_m must be 16 to {most}, found {config.block_m}"
    if config.num_stages > int4_int8_stages_that_fit(target, 128, config.block_m, slab_width):
        return f"{config.num_stages} slots do not fit in {target.shared_memory:,} bytes"
    return None


def _cheapest(
    shapes: list[tuple[int, int]], target: Target, rows: int, features: int, columns: int
) -> tuple[int, int]:
    """The cheapest (columns of a tile, splits) of `shapes`."""
    steps = triton.cdiv(columns, BLOCK_K)

    def cost(shape: tuple[int, int]) -> float:
        width, splits = shape
        pieces = triton.cdiv(rows, 128) * triton.cdiv(features, width) * splits
        waves = triton.cdiv(pieces, target.multiprocessors)
        exchange = _EXCHANGE if splits > 1 else 0.0
        return waves * (triton.cdiv(steps, splits) * _STEP[width] + _TILE[width] + exchange)

    return min((shape for shape in shapes if shape[1] <= steps), key=cost)


def why_not_int8(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """Why a configuration of the path "hopper" cannot run an INT8 problem, in words; None if it can."""
    variant = problem.variant
    assert isinstance(variant, Int8)
    reason = _why_not(target, config, variant.addressable, problem.features)
    if (
        reason is None
        and (variant.epilogue == "long" or config.splits > 1)
        and _sums(config) > _MOST_SUMS // 2
    ):
        return (
            f"{_sums(config)} sums per thread leave no registers for what follows, {_MOST_SUMS // 2} allowed"
        )
    return reason


def why_not_gated(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """`why_not_int8` for a gated problem."""
    both = dataclasses.replace(config, block_n=2 * config.block_n)
    assert isinstance(problem.variant, Int8Gated)
    reason = _why_not(target, both, problem.variant.addressable, problem.features)
    if reason is None and config.splits > 1 and _sums(both) > _MOST_SUMS // 2:
        return f"{_sums(both)} sums per thread leave no registers for splits, {_MOST_SUMS // 2} allowed"
    return reason


def _why_not(target: Target, config: TileConfig, aligned: bool, features: int) -> str | None:
    if not is_hopper(target):
        return "Hopper's kernels need compute capability 9.0"
    if not aligned or features % 16:
        return "the copy engine needs rows that start at multiples of 16 bytes, of the output too"
    if config.block_k != BLOCK_K:
        return f"block_k must be {BLOCK_K}, found {config.block_k}"
    if config.block_m not in (64, 128) or config.block_n < 64 or config.num_warps not in (4, 8):
        return f"a tile of {config.block_n} × {config.block_m} by {config.num_warps} warps is not one of Hopper's"
    if config.num_stages > stages_that_fit(target, config.block_n + config.block_m):
        return f"{config.num_stages} slots do not fit in {target.shared_memory:,} bytes"
    if _sums(config) > _MOST_SUMS:
        return f"{_sums(config)} sums per thread, {_MOST_SUMS} allowed"
    return None


def _sums(config: TileConfig) -> int:
    """32-bit sums that a thread holds."""
    return config.block_n * config.block_m // (32 * config.num_warps)
