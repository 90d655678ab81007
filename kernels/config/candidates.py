"""Configurations that `tritonq tune` measures for a problem: first tiles, then variations of the best one.

    first round     every sensible tile shape and number of warps, with the deepest pipeline that fits, and K split as
                    by the rules
    next rounds     the best so far with one change: the pipeline's depth, the splits, the register limit

`tritonq tune` compiles each, checks its result and measures it. Nothing else uses them. All keep within limits.py.
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
from .problem import Int4Int8, Problem
from .tile import APART, TileConfig, stages_that_fit

_DEEPEST = 4
#: Up to this many rows of x only "pointers" is tried, because its narrow tiles waste less.
_ROWS_OF_PLAIN = 32
#: Up to this many rows of x the first round tries Hopper's kernel with K split.
_ROWS_OF_SPLITS = 512
#: Registers per thread with which two to five programs of four warps share a multiprocessor.
_REGISTER_LIMITS = (96, 128, 168)
#: Up to this many rows of x a register limit can help, because the kernel waits for memory, not for arithmetic.
_FEW_ROWS = 128


def first_round(problem: Problem, target: Target) -> list[TileConfig]:
    """One configuration per path and tile shape, without duplicates."""
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
    """`best` with one change each."""
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
    # IEEE float32 products use no matrix instructions, so less fits in registers.
    is_float32 = getattr(problem.variant, "dtype", None) == "torch.float32"
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
    """INT8, path "descriptors": tiles that fill a multiprocessor."""
    for block_n, block_m in itertools.product((128, 256), (64, 128, 256)):
        stages = stages_that_fit(target, (block_n + block_m) * hopper_shapes.BLOCK_K, _DEEPEST)
        yield TileConfig(block_n, block_m, hopper_shapes.BLOCK_K, 1, 8, stages, "descriptors")


def _on_hopper(problem: Problem, target: Target) -> Iterator[TileConfig]:
    """INT8, path "hopper": the deepest ring that fits; K split if few rows leave multiprocessors idle."""
    splits = (1, 2, 4) if problem.rows <= _ROWS_OF_SPLITS else (1,)
    weights = 2 if problem.family == "int8_gated" else 1
    for block_n, block_m, split in itertools.product((64, 128, 256), (64, 128), splits):
        stages = hopper_shapes.stages_that_fit(target, weights * block_n + block_m)
        for num_warps in (4, 8):
            yield TileConfig(block_n, block_m, hopper_shapes.BLOCK_K, split, num_warps, stages, "hopper")


def _int4_int8_on_hopper(problem: Problem, target: Target) -> Iterator[TileConfig]:
    """W4A8, path "hopper": tiles as wide as M, or half as wide; K split if few rows leave multiprocessors idle."""
    assert isinstance(problem.variant, Int4Int8)
    slab_width = problem.variant.slab_width
    covering = min(256, max(16, triton.next_power_of_2(problem.rows)))
    splits = (1, 2, 4, 8) if problem.rows <= _ROWS_OF_SPLITS else (1,)
    for block_m, split in itertools.product((covering, covering // 2), splits):
        stages = hopper_shapes.int4_int8_stages_that_fit(target, 128, block_m, slab_width)
        yield TileConfig(128, block_m, 2 * slab_width, split, 8, stages, "hopper")


def _completed(
    problem: Problem, target: Target, block_n: int, block_m: int, block_k: int, num_warps: int
) -> TileConfig:
    """A tile with the deepest pipeline that fits, and K split to fill the GPU."""
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
