"""Configurations worth measuring for a problem: tiles first, then what is near the best of them.

    first round     every sensible shape of a tile and count of warps, with as deep a pipeline as fits and K split as
                    the rules split it
    next rounds     the best so far with one thing changed: the pipeline's depth, the splits, the limit of registers

What stands here is tried by `tritonq tune` alone, which compiles each, checks its result and measures it. All of it
keeps within limits.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import triton

from ..blocks.split_k import split_count
from ..launch.target import Target
from . import hopper_shapes, hopper_weight_only_shapes
from .limits import columns_per_step, demands, why_not
from .problem import Problem
from .tile import APART, TileConfig, stages_that_fit

_DEEPEST = 4
#: Rows of x up to which only "pointers" is worth a try: its narrow tiles waste less.
_ROWS_OF_PLAIN = 32
#: Rows of x up to which Hopper's kernel is tried with K split at once.
_ROWS_OF_SPLITS = 512
#: Registers per thread that let two to five programs of four warps share a multiprocessor.
_REGISTER_LIMITS = (96, 128, 168)
#: Rows of x up to which a limit of registers can pay: where memory, not arithmetic, is waited for.
_FEW_ROWS = 128


def first_round(problem: Problem, target: Target) -> list[TileConfig]:
    """One configuration per path and shape of a tile, without doubles."""
    configs = [_completed(problem, target, *shape) for shape in _shapes(problem, target)]
    if problem.family.endswith("_dynamic"):
        configs = [APART, *(dataclasses.replace(config, path="quantizing") for config in configs)]
    if problem.family in ("int8", "int8_gated") and problem.rows > _ROWS_OF_PLAIN:
        configs += _with_descriptors(target)
        configs += _on_hopper(problem, target)
    if problem.family == "int4_int8":
        configs += _int4_int8_on_hopper(problem, target)
    if problem.family == "weight_only":
        configs += hopper_weight_only_shapes.candidates(problem, target)
    return [config for config in dict.fromkeys(configs) if why_not(problem, target, config) is None]


def next_round(problem: Problem, target: Target, best: TileConfig) -> list[TileConfig]:
    """`best` with one thing changed."""
    if best == APART:
        return []
    changes: list[dict[str, int | None]] = [
        {"num_stages": best.num_stages - 1},
        {"num_stages": best.num_stages + 1},
        {"splits": best.splits // 2},
        {"splits": best.splits * 2},
    ]
    if problem.rows <= _FEW_ROWS and target.backend == "cuda" and best.path in ("pointers", "quantizing"):
        changes += [{"max_registers": limit} for limit in (None, *_REGISTER_LIMITS)]
    near = (dataclasses.replace(best, **change) for change in changes)  # type: ignore[arg-type]
    return [config for config in near if config != best and why_not(problem, target, config) is None]


def _shapes(problem: Problem, target: Target) -> Iterator[tuple[int, int, int, int]]:
    """(block_n, block_m, block_k, warps)."""
    least = 16 if target.backend == "hip" or problem.family == "weight_only_gradient" else 8
    # IEEE float32 is multiplied without matrix instructions: less fits in registers.
    is_float32 = "torch.float32" in problem.variant
    covering = max(least, min(32 if is_float32 else 256, triton.next_power_of_2(problem.rows)))
    heights = [block_m for block_m in (covering, covering // 2, covering // 4) if block_m >= least]
    if problem.family == "weight_only_gradient":  # block_n is what one step sums over
        widths: tuple[int, ...] = (16, 32, 64)
    else:
        widths = (32, 64, 128) if problem.rows <= 64 or is_float32 else (64, 128, 256)
    fixed = columns_per_step(problem)
    depths = (64, 128, 256) if fixed is None else (fixed,)
    return itertools.product(widths, heights, depths, (4, 8))


def _with_descriptors(target: Target) -> Iterator[TileConfig]:
    """INT8, path "descriptors": tiles of whole multiprocessors."""
    for block_n, block_m in itertools.product((128, 256), (64, 128, 256)):
        stages = stages_that_fit(target, (block_n + block_m) * hopper_shapes.BLOCK_K, _DEEPEST)
        yield TileConfig(block_n, block_m, hopper_shapes.BLOCK_K, 1, 8, stages, "descriptors")


def _on_hopper(problem: Problem, target: Target) -> Iterator[TileConfig]:
    """INT8, path "hopper": as deep a ring as fits; K split where few rows leave multiprocessors idle."""
    splits = (1, 2, 4) if problem.rows <= _ROWS_OF_SPLITS else (1,)
    weights = 2 if problem.family == "int8_gated" else 1
    for block_n, block_m, split in itertools.product((64, 128, 256), (64, 128), splits):
        stages = hopper_shapes.stages_that_fit(target, weights * block_n + block_m)
        for num_warps in (4, 8):
            yield TileConfig(block_n, block_m, hopper_shapes.BLOCK_K, split, num_warps, stages, "hopper")


def _int4_int8_on_hopper(problem: Problem, target: Target) -> Iterator[TileConfig]:
    """W4A8, path "hopper": tiles as wide as M, or half as wide; K split where few rows leave multiprocessors idle."""
    slab_width = int(problem.variant[1])
    covering = min(256, max(16, triton.next_power_of_2(problem.rows)))
    splits = (1, 2, 4, 8) if problem.rows <= _ROWS_OF_SPLITS else (1,)
    for block_m, split in itertools.product((covering, covering // 2), splits):
        stages = hopper_shapes.int4_int8_stages_that_fit(target, 128, block_m, slab_width)
        yield TileConfig(128, block_m, 2 * slab_width, split, 8, stages, "hopper")


def _completed(
    problem: Problem, target: Target, block_n: int, block_m: int, block_k: int, num_warps: int
) -> TileConfig:
    """A tile with as deep a pipeline as fits, and its K split so that the GPU is full."""
    config = TileConfig(block_n, block_m, block_k, 1, num_warps, 1)
    needs = demands(problem, config)
    stages = stages_that_fit(target, needs.bytes_per_stage, _DEEPEST)
    if problem.family == "weight_only_gradient":
        tiles = triton.cdiv(problem.columns, block_k) * triton.cdiv(problem.rows, block_m)
    else:
        tiles = config.tiles(problem.features, problem.rows)
    programs = 4 if problem.rows <= 32 else 2 if problem.rows <= 64 else 1
    splits = split_count(target, tiles, needs.steps, programs)
    return dataclasses.replace(config, num_stages=stages, splits=splits)
