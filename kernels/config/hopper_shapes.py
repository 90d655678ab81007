"""Tile shapes of the kernels of this folder: what fits a multiprocessor, and the rule that chooses.

The rule counts: a shape costs its waves of pieces over the multiprocessors, times the steps of one piece and what a
piece costs besides. The costs are proportions, from measurements of a kernel of this design on an H100; they say that
a tile of 128 rows of x and 256 of the weight is worth more than two halves of it, and that splitting K costs an
exchange of partial tiles. Nothing needs Gluon here.
"""

from __future__ import annotations

import dataclasses

import triton

from ..launch.target import Target
from .problem import Problem
from .tile import TileConfig

#: Columns of int8 that a step multiplies: one row of shared memory's widest swizzle.
BLOCK_K = 128
_CONSUMER_WARPS = 8
#: Bytes in which finished results wait to be copied out, and those of barriers and scratch.
_STAGING_BYTES, _BARRIER_BYTES = 32 * 1024, 1024
#: 32-bit sums per thread; half of them where K is split, or much follows the product.
_MOST_SUMS = 128
#: Rows of x up to which the plain kernel, with the weight as the operand of 64 rows, reads no more and wastes less.
_ROWS_OF_PLAIN = 64
#: By columns of a tile, in units of a step of the widest: a step; what a tile costs besides (fill, drain, epilogue);
#: and what it costs to exchange partial tiles.
_STEP = {256: 1.0, 128: 0.55}
_TILE = {256: 4.0, 128: 2.5}
_EXCHANGE = 2.0


def is_hopper(target: Target) -> bool:
    """True on the GPUs that these kernels are written for."""
    return target.backend == "cuda" and target.arch == 90


def is_for_hopper(target: Target, rows: int, features: int) -> bool:
    """True where the kernels of this folder can run, and are expected to be the fastest."""
    return is_hopper(target) and rows > _ROWS_OF_PLAIN and features % 16 == 0


def stages_that_fit(target: Target, rows_per_stage: int) -> int:
    """Slots of the ring for so many rows of x and the weights together."""
    return min(8, (target.shared_memory - _STAGING_BYTES - _BARRIER_BYTES) // (rows_per_stage * BLOCK_K))


def choose_int8_config(target: Target, rows: int, features: int, columns: int, long: bool) -> TileConfig:
    """The cheapest shape; long: behind the product comes what takes the registers of the wider tile's sums."""
    shapes = [(128, splits) for splits in (1, 2, 4, 8)] + ([] if long else [(256, 1)])
    block_n, splits = _cheapest(shapes, target, rows, features, columns)
    stages = stages_that_fit(target, 128 + block_n)
    return TileConfig(block_n, 128, BLOCK_K, splits, _CONSUMER_WARPS, stages, "hopper")


def choose_gated_config(target: Target, rows: int, features: int, columns: int) -> TileConfig:
    """Two tiles of 128 columns are what one of 256 is, two of 64 what one of 128 is."""
    shapes = [(128, splits) for splits in (1, 2, 4, 8)] + [(256, 1)]
    both, splits = _cheapest(shapes, target, rows, 2 * features, columns)
    stages = stages_that_fit(target, 128 + both)
    return TileConfig(both // 2, 128, BLOCK_K, splits, _CONSUMER_WARPS, stages, "hopper")


def choose_int4_int8_config(
    target: Target, rows: int, features: int, blocks: int, slab_width: int, one_group: bool
) -> TileConfig:
    """As wide as M; the widest has no room for the float32 sums that groups need. Steps are blocks of the layout."""
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
    """Slots of a ring of bytes of the weight and twice as many columns of x."""
    slot = (block_n + 2 * block_m) * slab_width
    return min(8, (target.shared_memory - _STAGING_BYTES // 2 - _BARRIER_BYTES) // slot)


def why_not_int4_int8(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """The same of a problem of W4A8."""
    group_size, slab_width, copied = problem.variant
    if not is_hopper(target):
        return "Hopper's kernels need compute capability 9.0"
    if not copied or problem.features % 16:
        return (
            "the copy engine needs int8 rows that start at multiples of 16 bytes, and groups without padding"
        )
    if (config.block_n, config.num_warps, config.block_k) != (128, 8, 2 * int(slab_width)):
        return f"8 warps take 128 rows of the weight and {2 * int(slab_width)} columns, found {config}"
    most = 256 if int(group_size) >= problem.columns and config.splits == 1 else 128
    if not 16 <= config.block_m <= most:
        return f"block_m must be 16 to {most}, found {config.block_m}"
    if config.num_stages > int4_int8_stages_that_fit(target, 128, config.block_m, int(slab_width)):
        return f"{config.num_stages} slots do not fit in {target.shared_memory:,} bytes"
    return None


def _cheapest(
    shapes: list[tuple[int, int]], target: Target, rows: int, features: int, columns: int
) -> tuple[int, int]:
    """Of some (columns of a tile, splits)."""
    steps = triton.cdiv(columns, BLOCK_K)

    def cost(shape: tuple[int, int]) -> float:
        width, splits = shape
        pieces = triton.cdiv(rows, 128) * triton.cdiv(features, width) * splits
        waves = triton.cdiv(pieces, target.multiprocessors)
        exchange = _EXCHANGE if splits > 1 else 0.0
        return waves * (triton.cdiv(steps, splits) * _STEP[width] + _TILE[width] + exchange)

    return min((shape for shape in shapes if shape[1] <= steps), key=cost)


def why_not_int8(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """Why a configuration of the path "hopper" cannot run an INT8 problem, in words; None where it can."""
    aligned, long = problem.variant[-2:]
    reason = _why_not(target, config, bool(aligned), problem.features)
    if reason is None and (long or config.splits > 1) and _sums(config) > _MOST_SUMS // 2:
        return (
            f"{_sums(config)} sums per thread leave no registers for what follows, {_MOST_SUMS // 2} allowed"
        )
    return reason


def why_not_gated(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """The same of a gated problem."""
    both = dataclasses.replace(config, block_n=2 * config.block_n)
    reason = _why_not(target, both, bool(problem.variant[0]), problem.features)
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
