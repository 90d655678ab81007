"""Tile shapes of the kernels of this folder: what fits a multiprocessor, and the rule that chooses.

The rule counts: a shape costs its waves of pieces over the multiprocessors, times the steps of one piece and what a
piece costs besides. The costs are proportions, from measurements of a kernel of this design on an H100; they say that
a tile of 128 rows of x and 256 of the weight is worth more than two halves of it, and that splitting K costs an
exchange of partial tiles. Nothing needs Gluon here.
"""

from __future__ import annotations

import triton

from ..problem import Problem
from ..target import Target
from ..tiles import TileConfig

#: Columns of int8 that a step multiplies: one row of shared memory's widest swizzle.
BLOCK_K = 128
_CONSUMER_WARPS = 8
#: Bytes in which finished results wait to be copied out, and those of barriers and scratch.
_STAGING_BYTES, _BARRIER_BYTES = 32 * 1024, 1024
_MOST_SUMS = 128
_MOST_SPLITS = 8
#: Rows of x up to which the plain kernel, with the weight as the operand of 64 rows, reads no more and wastes less.
_ROWS_OF_PLAIN = 64
#: In units of a step of the widest tile: a step, what a tile costs besides (fill, drain, epilogue), an exchange.
_STEP = {256: 1.0, 128: 0.55}
_TILE = {256: 4.0, 128: 2.5}
_EXCHANGE = {256: 4.0, 128: 2.0}


def is_hopper(target: Target) -> bool:
    """True on the GPUs that these kernels are written for."""
    return target.backend == "cuda" and target.arch == 90


def is_for_hopper(target: Target, rows: int) -> bool:
    """True where the kernels of this folder are expected to be the fastest."""
    return is_hopper(target) and rows > _ROWS_OF_PLAIN


def stages_that_fit(target: Target, rows_per_stage: int) -> int:
    """Slots of the ring for so many rows of x and the weights together."""
    return min(8, (target.shared_memory - _STAGING_BYTES - _BARRIER_BYTES) // (rows_per_stage * BLOCK_K))


def choose_int8_config(target: Target, rows: int, features: int, columns: int, residual: bool) -> TileConfig:
    """The cheapest shape; a residual takes the registers that the wider tile has its sums in."""
    steps = triton.cdiv(columns, BLOCK_K)

    def cost(block_n: int, splits: int) -> float:
        pieces = triton.cdiv(rows, 128) * triton.cdiv(features, block_n) * splits
        waves = triton.cdiv(pieces, target.multiprocessors)
        exchange = _EXCHANGE[block_n] if splits > 1 else 0.0
        return waves * (triton.cdiv(steps, splits) * _STEP[block_n] + _TILE[block_n] + exchange)

    widths = (128,) if residual else (256, 128)
    splits = [count for count in (1, 2, 4, 8) if 2 * count <= steps] or [1]
    block_n, count = min(((n, s) for n in widths for s in splits), key=lambda shape: cost(*shape))
    stages = stages_that_fit(target, 128 + block_n)
    return TileConfig(block_n, 128, BLOCK_K, count, _CONSUMER_WARPS, stages, "hopper")


def why_not_int8(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """Why a configuration of the path "hopper" cannot run an INT8 problem, in words; None where it can."""
    if not is_hopper(target):
        return "Hopper's kernels need compute capability 9.0"
    if not problem.variant[1]:
        return "the copy engine needs rows that start at multiples of 16 bytes"
    if config.block_k != BLOCK_K:
        return f"block_k must be {BLOCK_K}, found {config.block_k}"
    if config.block_m not in (64, 128) or config.block_n < 64 or config.num_warps not in (4, 8):
        return f"a tile of {config.block_n} × {config.block_m} by {config.num_warps} warps is not one of Hopper's"
    if config.num_stages > stages_that_fit(target, config.block_n + config.block_m):
        return f"{config.num_stages} slots do not fit in {target.shared_memory:,} bytes"
    sums = config.block_n * config.block_m // (32 * config.num_warps)
    most = _MOST_SUMS // 2 if problem.variant[2] else _MOST_SUMS
    return f"{sums} sums per thread, {most} allowed" if sums > most else None
