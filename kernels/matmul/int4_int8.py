"""INT8 activations × INT4 weights (W4A8): nibbles become int8 operands for one shift, products are exact in int32.

Weights come in the layout `int4_bytes`. x may be float: then it is quantized per token on the way.
"""

from __future__ import annotations

import torch

from ..config.choose import configured
from ..config.int4_int8_rule import SLABS, choose_config
from ..config.problem import Int4Int8, Problem
from ..config.tile import TileConfig
from ..launch.descriptors import is_addressable
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher
from ..launch.target import target_of
from .int4_int8_pointers import pointers_launch
from .weight_only_pointers import slabs_per_scale


@launcher
def int4_int8_matmul(
    x: Operand,
    x_scale: Operand | None,
    w: Operand,
    w_scale: Operand,
    bias: Operand | None,
    group_size: int,
    padded_group: int,
    slab_width: int,
    out_dtype: torch.dtype,
    config: TileConfig | None = None,
) -> Plan:
    """x [M, K] · wᵀ → [M, N] of out_dtype.

    Args:
        x: int8 [M, K], symmetric codes; or float, to be quantized here.
        x_scale: float32 [M, 1]; None of float x.
        w: int8 bytes [N, ·] of layout `int4_bytes`.
        w_scale: float [G, N], contiguous.
        bias: float [N] or None.
        group_size, padded_group, slab_width: of the weight's layout.
        out_dtype: float dtype of the result.
        config: tile shape; None chooses.
    """
    rows, columns = x.shape
    features = w.shape[0]
    groups = w_scale.shape[0]
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = x.new_empty(rows, features, dtype=out_dtype)
    if rows == 0:
        return Plan(out)
    blocks = w.shape[1] // slab_width
    per_scale = slabs_per_scale(groups, padded_group, slab_width, SLABS)
    is_padded = groups > 1 and padded_group != group_size
    target = target_of(x)
    if config is None:
        copied = x_scale is not None and not is_padded and is_addressable(x) and is_addressable(w)
        config = configured(
            Problem(Int4Int8(group_size, slab_width, copied), rows, features, columns),
            target,
            lambda: choose_config(target, rows, features, blocks, slab_width, 1, groups == 1, copied),
        )
    if config.path == "hopper":
        from ..hopper.int4_int8 import hopper_launch

        assert x_scale is not None
        slabs = (slab_width, padded_group // slab_width, per_scale)
        return Plan(out, hopper_launch(x, x_scale, w, w_scale, bias, out, *slabs, config, target))
    slabs = (group_size, padded_group, slab_width)
    return Plan(out, pointers_launch(x, x_scale, w, w_scale, bias, out, *slabs, per_scale, config))
