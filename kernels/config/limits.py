"""Checks whether a configuration can run a problem on a GPU, and says why not.

A table's row was right for the GPU, the kernels and the shapes it was measured with. A tuned file may hold anything. So
each configuration is checked before it is used; if it does not fit, the next source is asked. The families' rules keep
within the same limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import triton

from ..launch import gluon_versions
from ..launch.target import Target
from . import hopper_shapes, hopper_weight_only_shapes
from .problem import (
    Int4Int8,
    Int4Int8Dynamic,
    Int8,
    Int8Dynamic,
    Int8Gated,
    Problem,
    WeightOnly,
    WeightOnlyGradient,
)
from .tile import TileConfig, stages_that_fit

#: 32-bit sums that a thread may hold, of its 255 registers.
_MOST_SUMS = 128
_MOST_SPLITS = 8
_MOST_STAGES = 8
_REGISTERS = range(24, 256)
_WARPS = (1, 2, 4, 8, 16)
#: The least columns per step, and rows, that matrix instructions take; AMD needs more rows of x.
_LEAST_K, _LEAST_N, _LEAST_M, _LEAST_M_HIP = 32, 16, 8, 16
_MOST_TILE = 256
#: The most rows of x that are quantized inside of a product: registers hold their extremes and the tile's floats.
_MOST_ROWS_QUANTIZED = 16
#: The path "quantizing" needs a row length that is a multiple of this many elements.
_ALIGNED = 16


@dataclasses.dataclass(frozen=True)
class Demands:
    """What one program of a configuration needs.

    Attributes:
        bytes_per_stage: shared memory per stage of the pipeline.
        sums: 32-bit accumulators of the whole tile.
        steps: steps of the loop over K, which the splits divide.
    """

    bytes_per_stage: int
    sums: int
    steps: int


def why_not(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """Why a configuration cannot run a problem on a target, in words; None if it can."""
    check = _CHECKS.get((problem.family, config.path))
    if check is None:
        return f"there is no path {config.path!r} of {problem.family}"
    return why_not_numbers(config) or check(problem, target, config)


def missing_paths(target: Target) -> dict[str, str | None]:
    """Path of INT8 products → why a target lacks it, or None. Other kernels run wherever Triton does."""
    problem = Problem(Int8("short", True), 4096, 4096, 4096)
    paths = [path for family, path in _CHECKS if family == problem.family]
    return {path: why_not(problem, target, TileConfig(128, 128, 128, 1, 8, 2, path)) for path in paths}


def why_not_numbers(config: TileConfig) -> str | None:
    """The part of `why_not` that needs no problem: each number must be within its bounds."""
    blocks = (config.block_n, config.block_m, config.block_k)
    if not all(_is_power_of_two(block) for block in blocks):
        return f"blocks must be powers of two, found {blocks}"
    if not (_LEAST_N <= config.block_n <= _MOST_TILE and _LEAST_M <= config.block_m <= _MOST_TILE):
        return f"a tile of {config.block_n} × {config.block_m} is not between 16 × 8 and 256 × 256"
    if not _LEAST_K // 2 <= config.block_k <= 2 * _MOST_TILE:
        return f"block_k must be 16 to 512, found {config.block_k}"
    if not (_is_power_of_two(config.splits) and config.splits <= _MOST_SPLITS):
        return f"splits must be 1, 2, 4 or 8, found {config.splits}"
    if config.num_warps not in _WARPS:
        return f"num_warps must be one of {_WARPS}, found {config.num_warps}"
    if not 1 <= config.num_stages <= _MOST_STAGES:
        return f"num_stages must be 1 to {_MOST_STAGES}, found {config.num_stages}"
    if config.max_registers is not None and config.max_registers not in _REGISTERS:
        return f"max_registers must be 24 to 255, found {config.max_registers}"
    return None


def demands(problem: Problem, config: TileConfig) -> Demands:
    """What a configuration of the paths "pointers", "descriptors" and "quantizing" needs."""
    variant, columns = problem.variant, problem.columns
    bn, bm, bk = config.block_n, config.block_m, config.block_k
    match variant:
        case Int8():
            return Demands((bn + bm) * bk, bn * bm, triton.cdiv(columns, bk))
        case Int8Gated():
            return Demands((2 * bn + bm) * bk, 2 * bn * bm, triton.cdiv(columns, bk))
        case Int8Dynamic():
            return Demands((bn + bm * _element_size(variant.dtype)) * bk, bn * bm, triton.cdiv(columns, bk))
        case WeightOnlyGradient():
            block = variant.slabs * variant.slab_width
            stage = bn * block * 2 + bn * (bm + block) * _element_size(variant.dtype)
            return Demands(stage, bm * block, triton.cdiv(problem.features, bn))
        case WeightOnly():
            block = variant.slabs * variant.slab_width
            words = bn * variant.slab_width * (2 if variant.slabs == 4 else 1)
            stage = words + bm * block * _element_size(variant.dtype)
        case Int4Int8() | Int4Int8Dynamic():
            block = 2 * variant.slab_width
            size = 1 if isinstance(variant, Int4Int8) else _element_size(variant.dtype)
            stage = bn * variant.slab_width + bm * block * size
    sums = bn * bm * (2 if variant.group_size < columns else 1)
    return Demands(stage, sums, triton.cdiv(columns, block))


def columns_per_step(problem: Problem) -> int | None:
    """The block_k that a problem's layout requires; None if any will do."""
    match problem.variant:
        case WeightOnly(slabs=slabs, slab_width=width) | WeightOnlyGradient(slabs=slabs, slab_width=width):
            return slabs * width
        case Int4Int8(slab_width=width) | Int4Int8Dynamic(slab_width=width):
            return 2 * width
    return None


def _pointers(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """`why_not` of the path "pointers"."""
    needs = demands(problem, config)
    step = columns_per_step(problem)
    if step is not None and config.block_k != step:
        return f"block_k must be {step}, as the weight's layout requires, found {config.block_k}"
    if step is None and config.block_k < _LEAST_K:
        return f"block_k must be at least {_LEAST_K}, found {config.block_k}"
    if target.backend == "hip":
        if config.splits > 1:
            return "K is not split on AMD"  # split_k.py has the reason
        if config.block_m < _LEAST_M_HIP or config.max_registers is not None:
            return "AMD needs at least 16 rows of x, and takes no register limit"
    if config.splits > needs.steps:
        return f"{config.splits} splits of {needs.steps} steps"
    if config.num_stages > stages_that_fit(target, needs.bytes_per_stage, config.num_stages):
        return f"{config.num_stages} stages of {needs.bytes_per_stage:,} bytes do not fit in {target.shared_memory:,}"
    if needs.sums > _MOST_SUMS * 32 * config.num_warps:
        return f"{needs.sums // (32 * config.num_warps)} sums per thread, {_MOST_SUMS} allowed"
    return _miscompiled(problem, target, config)


def _descriptors(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """`why_not` of the path "descriptors"."""
    if target.backend == "hip" or (target.backend == "cuda" and target.arch < 90):
        return "descriptors need compute capability 9.0 or newer"
    assert isinstance(problem.variant, Int8)
    if not problem.variant.addressable:
        return "descriptors need rows that start at multiples of 16 bytes"
    return "descriptors do not split K" if config.splits > 1 else _pointers(problem, target, config)


def _hopper(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """`why_not` of the path "hopper"."""
    if not gluon_versions.AVAILABLE:
        return "this version of Triton lacks the Gluon features that Hopper's kernels use"
    check = {
        "int8": hopper_shapes.why_not_int8,
        "int8_gated": hopper_shapes.why_not_gated,
        "int4_int8": hopper_shapes.why_not_int4_int8,
        "weight_only": hopper_weight_only_shapes.why_not_weight_only,
    }[problem.family]
    return check(problem, target, config)


def _quantizing(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """`why_not` of the path "quantizing"."""
    if problem.columns % _ALIGNED != 0:
        return "unaligned rows are quantized in a separate launch"
    if config.block_m > _MOST_ROWS_QUANTIZED:
        return (
            f"at most {_MOST_ROWS_QUANTIZED} rows are quantized inside of the product, found {config.block_m}"
        )
    return _pointers(problem, target, config)


def _apart(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """`why_not` of the path "apart", which has no limits: it only means a separate launch."""
    return None


def _miscompiled(problem: Problem, target: Target, config: TileConfig) -> str | None:
    """Configurations that Triton 3.7 is known to compile wrongly."""
    variant = problem.variant
    if not isinstance(variant, WeightOnly) or not 100 <= target.arch < 120:
        return None
    if variant.slabs == 4 and config.block_m > 64:
        return "four products per step into a tile of 128 columns trap on sm_100"
    if variant.dtype == "torch.float32" and config.block_n > 32:
        return "IEEE float32 becomes tf32 from 64 rows on, on sm_100"
    return None


def _element_size(dtype: str) -> int:
    return 4 if dtype == "torch.float32" else 2


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


Check = Callable[[Problem, Target, TileConfig], str | None]
#: (family, path) → its check.
_CHECKS: dict[tuple[str, str], Check] = {
    (family, "pointers"): _pointers
    for family in ("int8", "int8_gated", "weight_only", "int4_int8", "weight_only_gradient")
} | {
    ("int8", "descriptors"): _descriptors,
    ("int8", "hopper"): _hopper,
    ("int8_gated", "hopper"): _hopper,
    ("int4_int8", "hopper"): _hopper,
    ("weight_only", "hopper"): _hopper,
    ("int8_dynamic", "quantizing"): _quantizing,
    ("int8_dynamic", "apart"): _apart,
    ("int4_int8_dynamic", "quantizing"): _quantizing,
    ("int4_int8_dynamic", "apart"): _apart,
}
