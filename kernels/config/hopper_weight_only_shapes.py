"""Tile shapes of Hopper's weight-only kernel: what it can run, what fits a multiprocessor, and the rule that chooses.

    M ≤ 16       tiles of 8 or 16 rows of x, two programs per multiprocessor: only the stream of weights matters
    M ≤ 64       tiles of 32 or 64
    above        128, or 256 if one scale per row leaves room for the sums; 64 if wider tiles are too few for all
                 multiprocessors

K is split if tiles leave multiprocessors idle. These are starting points, measured on an H100 with kernels of this
design.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import triton

from ..launch.gluon_versions import AVAILABLE
from ..launch.target import Target
from .hopper_shapes import is_hopper
from .problem import Problem, WeightOnly
from .tile import TileConfig

#: Rows of the weight per tile, 64 for each of the two groups of consumer warps.
BLOCK_N = 128
_CONSUMER_WARPS = 8
#: Columns of x per slot if a tile has many rows; with few rows a slot of x covers a whole step.
_X_COLUMNS = 64
_MOST_ROWS_OF_WHOLE_STEPS = 64
#: Two programs share a multiprocessor if a tile has at most this many rows of x.
_MOST_ROWS_OF_TWO_PROGRAMS = 16
#: Tiles for this part of the multiprocessors count as enough for all.
_FULL = 0.9
#: Results are transposed through shared memory, this many rows of x at a time; smaller tiles are stored directly.
TURNED = 32
#: Registers per thread at launch, for one and for two programs per multiprocessor; see ring.py.
_REGISTERS = {1: 168, 2: 80}
_PRODUCER_REGISTERS = 24
#: Shared memory that the hardware reserves per program, and that of barriers.
_RESERVED_BYTES, _BARRIER_BYTES = 1024, 512
#: Shared memory to transpose results.
_TURNING_BYTES = 8 * 1024
_MOST_STAGES, _MOST_SPLITS = 8, 8


@dataclasses.dataclass(frozen=True)
class Rings:
    """The sizes of the rings.

    Attributes:
        w_stages, x_stages: slots of the weight's ring and of x's.
        x_columns: columns of x in one slot.
    """

    w_stages: int
    x_stages: int
    x_columns: int


def columns_per_step(slabs: int) -> int:
    """Columns whose codes take 128 bytes of a row: 64 words of four codes, or 128 bytes."""
    return 256 if slabs == 4 else 128


def slab_width_in_kernel(slabs: int, slab_width: int, groups: int, group_size: int) -> int:
    """Columns per product: the slab width for words; for bytes, where any width works, 64 if it divides a group."""
    if slabs == 4:
        return slab_width
    return 64 if groups == 1 or group_size % 64 == 0 else 32


def suits(slabs: int, slab_width: int, groups: int, group_size: int, padded_group: int) -> bool:
    """True for the layouts that the kernel knows: unpadded groups, whole groups per step or whole steps per group."""
    if slabs == 4 and slab_width < 32:
        return False
    step = columns_per_step(slabs)
    return groups == 1 or (
        padded_group == group_size and group_size % 32 == 0 and 0 in (step % group_size, group_size % step)
    )


def takes(problem: Problem, target: Target) -> bool:
    """True if the kernel can run a problem. It is expected to be the fastest for all of them."""
    variant = problem.variant
    return AVAILABLE and is_hopper(target) and isinstance(variant, WeightOnly) and variant.suits_hopper


def rings_of(config: TileConfig) -> Rings:
    """The rings of a configuration; its `num_stages` is the number of x's slots."""
    if config.block_m <= _MOST_ROWS_OF_WHOLE_STEPS:
        return Rings(config.num_stages, config.num_stages, config.block_k)
    ahead = triton.cdiv(config.num_stages * _X_COLUMNS, config.block_k)
    return Rings(ahead + 1, config.num_stages, _X_COLUMNS)


def shared_bytes(config: TileConfig, group_size: int, one_scale: bool) -> int:
    """Bytes of shared memory of one program; scales count as float32, with zero points."""
    rings = rings_of(config)
    scales = 0 if one_scale else max(1, config.block_k // group_size) * BLOCK_N * (4 + 1)
    weights = rings.w_stages * (BLOCK_N * 128 + scales)
    x = rings.x_stages * config.block_m * rings.x_columns * 2
    turned = _TURNING_BYTES if config.block_m >= TURNED else 0
    return weights + x + turned + _BARRIER_BYTES


def programs_per_multiprocessor(config: TileConfig) -> int:
    """How many programs fit in a multiprocessor by their registers."""
    return 2 if config.max_registers == _REGISTERS[2] else 1


def consumer_registers(config: TileConfig) -> int:
    """Registers of a consumer's thread, after the producers' four warps have given up theirs."""
    at_launch = _REGISTERS[programs_per_multiprocessor(config)]
    return (12 * at_launch - 4 * _PRODUCER_REGISTERS) // _CONSUMER_WARPS // 8 * 8


def most_rows(one_scale: bool) -> int:
    """The most rows of x in a tile. Groups need two sets of sums, so they get half as many."""
    return 256 if one_scale else 128


def choose_config(
    target: Target, rows: int, features: int, columns: int, slabs: int, group_size: int
) -> TileConfig:
    """The shape for a problem; group_size ≥ columns means one scale per row."""
    most = most_rows(group_size >= columns)
    tiles_n = triton.cdiv(features, BLOCK_N)

    def fills(block_m: int) -> bool:
        return tiles_n * triton.cdiv(rows, block_m) >= _FULL * target.multiprocessors

    if rows <= _MOST_ROWS_OF_WHOLE_STEPS:
        block_m = max(8, triton.next_power_of_2(rows))
    elif most == 256 and rows > 256 and fills(256):
        block_m = 256
    else:
        block_m = 128 if fills(128) else 64
    programs = 2 if block_m <= _MOST_ROWS_OF_TWO_PROGRAMS else 1
    tiles = tiles_n * triton.cdiv(rows, block_m)
    steps = triton.cdiv(columns, columns_per_step(slabs))
    splits = 1
    while (
        splits < _MOST_SPLITS
        and 2 * splits <= steps
        and 2 * splits * tiles <= programs * target.multiprocessors
    ):
        splits *= 2
    return with_deep_rings(target, block_m, splits, programs, slabs, group_size, group_size >= columns)


def candidates(problem: Problem, target: Target) -> Iterator[TileConfig]:
    """Shapes worth measuring for a problem."""
    variant = problem.variant
    assert isinstance(variant, WeightOnly)
    slabs, group_size = variant.slabs, variant.group_size
    covering = max(8, triton.next_power_of_2(problem.rows))
    for block_m in (8, 16, 32, 64, 128, 256):
        if min(covering, 256) // 4 <= block_m <= covering:
            for splits in (1, 2, 4, 8):
                for programs in _REGISTERS:
                    yield with_deep_rings(
                        target, block_m, splits, programs, slabs, group_size, group_size >= problem.columns
                    )


def with_deep_rings(
    target: Target, block_m: int, splits: int, programs: int, slabs: int, group_size: int, one_scale: bool
) -> TileConfig:
    """A shape with the most stages (at least one) with which the rings of `programs` programs fit."""
    config = TileConfig(
        BLOCK_N,
        block_m,
        columns_per_step(slabs),
        splits,
        _CONSUMER_WARPS,
        _MOST_STAGES,
        "hopper",
        _REGISTERS[programs],
    )
    while config.num_stages > 1 and not fit(target, config, group_size, one_scale):
        config = dataclasses.replace(config, num_stages=config.num_stages - 1)
    return config


def fit(target: Target, config: TileConfig, group_size: int, one_scale: bool) -> bool:
    """True if the rings of all programs of a multiprocessor fit in its shared memory."""
    needed = programs_per_multiprocessor(config) * (
        shared_bytes(config, group_size, one_scale) + _RESERVED_BYTES
    )
    return needed <= target.shared_memory + _RESERVED_BYTES


def why_not_weight_only(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """Why a configuration of the path "hopper" cannot run a weight-only problem, in words; None if it can."""
    variant = problem.variant
    assert isinstance(variant, WeightOnly)
    slabs, group_size = variant.slabs, variant.group_size
    if not is_hopper(target):
        return "Hopper's kernels need compute capability 9.0"
    if not variant.suits_hopper:
        return "Hopper's kernel does not take this layer's dtype, group size or alignment"
    if config.block_k != columns_per_step(slabs):
        return f"block_k must be {columns_per_step(slabs)}, found {config.block_k}"
    if config.block_n != BLOCK_N or config.num_warps != _CONSUMER_WARPS:
        return f"tiles have {BLOCK_N} rows of the weight and {_CONSUMER_WARPS} warps"
    if config.max_registers not in _REGISTERS.values():
        return f"max_registers must be one of {sorted(_REGISTERS.values())}, found {config.max_registers}"
    one_scale = group_size >= problem.columns
    most_m = most_rows(one_scale)
    if config.max_registers == _REGISTERS[2]:
        most_m = _MOST_ROWS_OF_TWO_PROGRAMS
    if config.block_m > most_m:
        return f"{config.block_m} rows of x, {most_m} allowed"
    if config.splits > triton.cdiv(problem.columns, config.block_k):
        return f"{config.splits} splits of {triton.cdiv(problem.columns, config.block_k)} steps"
    if not fit(target, config, group_size, one_scale):
        return f"{config.num_stages} slots do not fit in {target.shared_memory:,} bytes"
    return None
