"""The rule of gradients through packed weights."""

from __future__ import annotations

import triton

from ..blocks.split_k import split_count
from ..launch.target import Target
from .tile import TileConfig, stages_that_fit


def choose_config(
    target: Target, rows: int, features: int, tiles_k: int, block_k: int, element_size: int
) -> TileConfig:
    """Tile shapes by M; stages that fit in shared memory; splits of N where tiles leave multiprocessors idle."""
    block_m, block_n, num_warps, num_stages = (64 if rows <= 64 else 128), 32, 8, 3
    if element_size == 4:  # no matrix instruction multiplies IEEE float32: less fits in registers
        block_m, block_n, num_stages = 16, 16, 2
    if target.backend == "hip":
        num_stages = 2
    block_m = min(block_m, max(16, triton.next_power_of_2(rows)))
    bytes_per_stage = block_n * block_k * 2 + block_n * (block_m + block_k) * element_size
    num_stages = stages_that_fit(target, bytes_per_stage, num_stages)
    tiles = tiles_k * triton.cdiv(rows, block_m)
    splits = split_count(target, tiles, triton.cdiv(features, block_n), 1)
    return TileConfig(block_n, block_m, block_k, splits, num_warps, num_stages)
