"""Float activations × INT4 or INT8 weights.

The weight is read packed, turned into x's dtype in registers and multiplied; the scale of its group is applied to the
float32 partial product.

INT4 weights come in the layout `int4_words`, INT8 in `int8`. float16 and bfloat16 hold code - zero point exactly;
float32 activations are multiplied in IEEE float32, never in tf32.
"""

from __future__ import annotations

import torch
import triton

from ..blocks.split_k import split_count
from ..config import hopper_weight_only_shapes
from ..config.choose import configured
from ..config.problem import Problem, WeightOnly
from ..config.tile import TileConfig, stages_that_fit
from ..launch.descriptors import is_addressable
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher
from ..launch.target import Target, target_of
from .weight_only_pointers import int8_slab_width, pointers_launch


@launcher
def weight_only_matmul(
    x: Operand,
    w: Operand,
    scale: Operand,
    zero_point: Operand | None,
    bias: Operand | None,
    group_size: int,
    padded_group: int,
    slab_width: int,
    config: TileConfig | None = None,
) -> Plan:
    """x [M, K] · dequantized wᵀ + bias → [M, N] of x's dtype.

    Args:
        x: float [M, K].
        w: int16 words [N, ·] of layout `int4_words`, or int8 [N, ·] of layout `int8`.
        scale: float [G, N], contiguous.
        zero_point: int8 [G, N], contiguous, or None for 0.
        bias: float [N] or None.
        group_size, padded_group, slab_width: of the weight's layout.
        config: tile shape; None chooses.
    """
    rows, features, groups = x.shape[0], w.shape[0], scale.shape[0]
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = x.new_empty(rows, features, dtype=x.dtype)
    if rows == 0:
        return Plan(out)
    slabs = 4 if w.dtype == torch.int16 else 1
    target = target_of(x)
    if slabs == 1:
        slab_width = int8_slab_width(padded_group, groups, x.element_size())
    if config is None:
        config = _config(x, w, scale, zero_point, target, group_size, padded_group, slab_width)
    operands = (w, scale, zero_point, bias, out)
    if config.path == "hopper":
        from ..hopper.weight_only import hopper_launch

        launch = hopper_launch(x, *operands, group_size, slab_width, config, target)
    else:
        launch = pointers_launch(x, *operands, group_size, padded_group, slab_width, config, target)
    return Plan(out, launch)


def _config(
    x: Operand,
    w: Operand,
    scale: Operand,
    zero_point: Operand | None,
    target: Target,
    group_size: int,
    padded_group: int,
    slab_width: int,
) -> TileConfig:
    """The configuration of a product."""
    (rows, columns), features, groups = x.shape, w.shape[0], scale.shape[0]
    slabs = 4 if w.dtype == torch.int16 else 1
    # Of x, only what its shape says: where its rows lie, a copy can mend.
    suits_hopper = (
        x.element_size() == 2
        and hopper_weight_only_shapes.suits(slabs, slab_width, groups, group_size, padded_group)
        and columns % 8 == 0
        and is_addressable(w)
        and (groups == 1 or is_addressable(scale))
        and (groups == 1 or zero_point is None or is_addressable(zero_point))
    )

    variant = WeightOnly(slabs, group_size, slab_width, str(x.dtype), suits_hopper)
    problem = Problem(variant, rows, features, columns)

    def rule() -> TileConfig:
        if hopper_weight_only_shapes.takes(problem, target):
            return hopper_weight_only_shapes.choose_config(target, rows, features, columns, slabs, group_size)
        blocks = triton.cdiv(w.shape[1], slab_width)
        aligned = columns % 16 == 0
        return choose_config(
            target, rows, features, blocks, groups, slabs, slab_width, x.element_size(), aligned
        )

    return configured(problem, target, rule)


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
