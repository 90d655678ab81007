"""Float activations × INT4 or INT8 weights.

The weight is read packed, turned into x's dtype in registers and multiplied; the scale of its group is applied to the
float32 partial product.

INT4 weights come in the layout `int4_words`, INT8 in `int8`. float16 and bfloat16 hold code - zero point exactly;
float32 activations are multiplied in IEEE float32, never in tf32.
"""

from __future__ import annotations

import torch
import triton

from ..config import hopper_weight_only_shapes
from ..config.choose import configured
from ..config.problem import Problem, WeightOnly
from ..config.tile import TileConfig
from ..config.weight_only_rule import choose_config
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
