"""Products of float activations that are quantized per token: in a launch before, or in the product's own.

    apart         quantize_per_token, then int8_matmul or int4_int8_matmul with its own configuration
    quantizing    one launch (quantize_inside.py): each program reads its rows of x twice, none writes codes

Bit for bit the same. Which is faster is a question of M, K and the GPU: `TileConfig.path` of the families
"int8_dynamic" and "int4_int8_dynamic" answers it, found as all configurations are (config/choose.py). A single row is
a separate problem: a program quantizes it once, not once for each column of its tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..blocks.int8_product import FloatActivation, Int8Activation, Int8Weight
from ..config.choose import configured
from ..config.int8_rule import choose_quantizing
from ..config.problem import Int4Int8Dynamic, Int8Dynamic, Problem
from ..config.tile import APART, TileConfig
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher
from ..launch.target import target_of
from ..rows.quantize import quantize_per_token
from . import int4_int8 as int4
from .int8 import int8_matmul

#: Most bytes and rows of x that the rule lets every program read for itself. An estimate, not yet measured: what some
#: hundreds of programs read from L2 in the time that a launch takes.
_MOST_BYTES, _MOST_ROWS = 1 << 15, 16


@launcher
def int8_dynamic_matmul(x: Operand, symmetric: bool, w: Int8Weight, config: TileConfig | None = None) -> Plan:
    """x [M, K] · wᵀ → [M, N] of x's dtype.

    Args:
        x: float [M, K].
        symmetric: how its rows are quantized.
        w: as `int8_matmul`.
        config: tile shape and path; None chooses.
    """
    (rows, columns), features = x.shape, w.codes.shape[0]
    if x.stride(-1) != 1:
        x = x.contiguous()
    if config is None:
        target = target_of(x)
        problem = Problem(Int8Dynamic(str(x.dtype), symmetric, rows == 1), rows, features, columns)
        config = configured(
            problem, target, lambda: chosen(x, lambda: choose_quantizing(problem, target, x.element_size()))
        )
    if config.path == "quantizing":
        return int8_matmul(FloatActivation(x, symmetric), w, x.dtype, config=config)
    quantized = quantize_per_token(x, symmetric)
    codes, scale, zero = quantized.results
    rows_of_x = Int8Activation(codes, scale, None if symmetric else zero)
    return quantized.then(int8_matmul(rows_of_x, w, x.dtype))


@launcher
def int4_int8_dynamic_matmul(
    x: Operand,
    w: Operand,
    w_scale: Operand,
    bias: Operand | None,
    group_size: int,
    padded_group: int,
    slab_width: int,
    config: TileConfig | None = None,
) -> Plan:
    """x [M, K] · wᵀ → [M, N] of x's dtype.

    Args:
        x: float [M, K].
        w, w_scale, bias, group_size, padded_group, slab_width: as `int4_int8_matmul`.
        config: tile shape and path; None chooses.
    """
    (rows, columns), features = x.shape, w.shape[0]
    if x.stride(-1) != 1:
        x = x.contiguous()
    if config is None:
        target = target_of(x)
        blocks = w.shape[1] // slab_width
        config = configured(
            Problem(
                Int4Int8Dynamic(group_size, slab_width, str(x.dtype), rows == 1), rows, features, columns
            ),
            target,
            lambda: chosen(
                x, lambda: int4.choose_config(target, rows, features, blocks, slab_width, x.element_size())
            ),
        )
    layout = (group_size, padded_group, slab_width)
    if config.path == "quantizing":
        return int4.int4_int8_matmul(x, None, w, w_scale, bias, *layout, x.dtype, config)
    quantized = quantize_per_token(x, True)
    codes, scale, _ = quantized.results
    return quantized.then(int4.int4_int8_matmul(codes, scale, w, w_scale, bias, *layout, x.dtype))


def chosen(x: Operand, inside: Callable[[], TileConfig]) -> TileConfig:
    """The rule: `inside` for rows that are few, short, and aligned."""
    rows, columns = x.shape
    few = rows <= _MOST_ROWS and x.numel() * x.element_size() <= _MOST_BYTES
    return dataclasses.replace(inside(), path="quantizing") if few and columns % 16 == 0 else APART
