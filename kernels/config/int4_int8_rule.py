"""The rule of W4A8: tiles by M, stages that fit, splits where tiles leave multiprocessors idle."""

from __future__ import annotations

import triton

from ..blocks.split_k import split_count
from ..launch.gluon_versions import AVAILABLE
from ..launch.target import Target
from .hopper_shapes import choose_int4_int8_config, is_hopper
from .tile import TileConfig, stages_that_fit

#: Slabs of a block: codes of a byte.
SLABS = 2


def choose_config(
    target: Target,
    rows: int,
    features: int,
    blocks: int,
    slab_width: int,
    element_size: int = 1,
    one_group: bool = False,
    copied: bool = False,
) -> TileConfig:
    """Of x whose elements have so many bytes.

    one_group: a row has one scale; copied: the copy engine can bring both operands.
    """
    if AVAILABLE and copied and is_hopper(target) and features % 16 == 0:
        return choose_int4_int8_config(target, rows, features, blocks, slab_width, one_group)
    block_m = min(128, max(16 if target.backend == "hip" else 8, triton.next_power_of_2(rows)))
    block_n, num_warps, num_stages = (64, 4, 4) if rows <= 64 else (128, 8, 3)
    if target.backend == "hip":
        num_stages = 2
    num_stages = stages_that_fit(target, (block_n + 2 * block_m * element_size) * slab_width, num_stages)
    tiles = triton.cdiv(features, block_n) * triton.cdiv(rows, block_m)
    programs_per_multiprocessor = 4 if rows <= 32 else 2 if rows <= 64 else 1
    splits = split_count(target, tiles, blocks, programs_per_multiprocessor)
    return TileConfig(block_n, block_m, slab_width * SLABS, splits, num_warps, num_stages)
