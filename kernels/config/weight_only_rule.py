"""The rule of weight-only products in plain Triton."""

from __future__ import annotations

import triton

from ..blocks.split_k import split_count
from ..launch.target import Target
from .tile import TileConfig, stages_that_fit


def choose_config(
    target: Target,
    rows: int,
    features: int,
    blocks: int,
    groups: int,
    slabs: int,
    slab_width: int,
    element_size: int,
    aligned: bool,
) -> TileConfig:
    """Tile shapes by M; stages that fit in shared memory; splits where the tiles leave multiprocessors idle."""
    # Scales per group take a second accumulator: a [128, 128] tile of two would spill registers. And of four products
    # per step into one [128, 128] tile Triton 3.7 makes a kernel for sm_100 that does nothing but trap.
    most_m = 64 if groups > 1 or (slabs == 4 and 100 <= target.arch < 120) else 128
    block_n, num_warps, num_stages = (64, 4, 3) if rows <= 64 or not aligned else (128, 8, 3)
    if not aligned:  # addresses of rows of x that are not aligned take registers
        most_m = min(most_m, 32)
    if element_size == 4:  # no matrix instruction multiplies IEEE float32 on NVIDIA: less fits in registers
        # From 64 rows on Triton 3.7 takes tf32 for sm_100, "ieee" or not.
        most_m, block_n, num_warps = 32, 32 if 100 <= target.arch < 120 else 64, 4 if rows <= 8 else 8
    if target.backend == "hip" or element_size == 4:
        num_stages = 2
    block_m = min(most_m, max(16 if target.backend == "hip" else 8, triton.next_power_of_2(rows)))

    def bytes_per_stage() -> int:
        words = block_n * slab_width * (2 if slabs == 4 else 1)
        return words + block_m * slabs * slab_width * element_size

    while block_m > 16 and stages_that_fit(target, bytes_per_stage(), 2) < 2:
        block_m //= 2
    num_stages = stages_that_fit(target, bytes_per_stage(), num_stages)
    tiles = triton.cdiv(features, block_n) * triton.cdiv(rows, block_m)
    programs_per_multiprocessor = 4 if rows <= 32 else 2 if rows <= 64 else 1
    splits = split_count(target, tiles, blocks, programs_per_multiprocessor)
    return TileConfig(block_n, block_m, slab_width * slabs, splits, num_warps, num_stages)
