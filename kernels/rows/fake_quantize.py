"""Fake quantization in one pass: writes rounded values, and one bit per element as the backward pass's mask.

A program computes a tile [ROWS, COLUMNS] within one group of columns, so each of its rows has one scale:

        group 0         group 1
    ┌────────────────┬──────────────
    │ tile 0 │ tile 1│ tile 2 │ …       COLUMNS: a power of two, 8 … 1024; a group's last tile may exceed the group
    ├────────┴───────┼────────┴─────
    │ …                                 the next ROWS rows

The mask has one byte for eight columns of a tile, padding included: [R, tiles · COLUMNS / 8].
tritonq/reference/fake_quantize.py defines the results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..blocks.rounding import round_to_even
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher

NUM_WARPS = 8
_ELEMENTS_PER_TILE = 4096


@triton.jit
def tile_of_group(R, C, groups, group_size, tiles_per_group, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(rows int64 [ROWS, 1], columns [1, COLUMNS], a mask of those that exist, tile along columns, group)."""
    tiles = groups * tiles_per_group
    tile = tl.program_id(0) % tiles
    group = tile // tiles_per_group
    rows = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    within = tile % tiles_per_group * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    columns = group * group_size + within
    exists = (rows < R) & (within < group_size) & (columns < C)
    return rows, columns, exists, tile, group


@triton.jit
def grid_of_rows(scale_ptr, zero_ptr, rows, R, stride_scale, group, QMIN: tl.constexpr, QMAX: tl.constexpr):
    """(scale, zero point): float32 [ROWS, 1]. A learned zero point is rounded and clamped; NaN stays NaN."""
    offsets = tl.minimum(rows, R - 1) * stride_scale + group
    scale = tl.load(scale_ptr + offsets).to(tl.float32)
    zero = tl.zeros_like(scale)
    if zero_ptr is not None:
        zero = tl.load(zero_ptr + offsets).to(tl.float32)
        on_grid = round_to_even(tl.minimum(tl.maximum(zero, QMIN * 1.0), QMAX * 1.0))
        zero = tl.where(zero == zero, on_grid, zero)
    return scale, zero


@triton.jit
def round_to_grid(x, scale, zero, QMIN: tl.constexpr, QMAX: tl.constexpr):
    """(v = x · (1/scale), rint(v) clamped to one step beyond the range, code - zero, True if the code is in range)."""
    v = x * tl.math.div_rn(1.0, scale)
    v = tl.where(v == v, v, 0.0)
    low = QMIN - zero
    high = QMAX - zero
    # Clamp to one step beyond the range: it still counts as outside, and is small enough for `round_to_even`.
    rounded = round_to_even(tl.minimum(tl.maximum(v, low - 1.0), high + 1.0))
    inside = (rounded >= low) & (rounded <= high)
    steps = (
        tl.minimum(tl.maximum(rounded, low), high) + zero
    ) - zero  # through the code, so 0.0 and never -0.0
    return v, rounded, steps, inside


@triton.jit
def byte_offsets(rows, tiles, tile, COLUMNS: tl.constexpr):
    """Offsets of a tile's bytes in the mask: int64 [ROWS, COLUMNS / 8]."""
    return (rows * tiles + tile) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)[None, :]


@triton.jit
def fake_quantize_kernel(
    x_ptr,  # float [R, C], row stride stride_x
    scale_ptr,  # float [R or 1, groups], row stride stride_scale (0 if all rows share one)
    zero_ptr,  # int8 or float32, as scale; or None for 0
    y_ptr,  # x's dtype [R, C]
    mask_ptr,  # uint8 [R, tiles · COLUMNS / 8], or None
    R,
    C,
    groups,
    group_size,
    tiles_per_group,
    stride_x,
    stride_scale,
    QMIN: tl.constexpr,
    QMAX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of y, and its mask."""
    rows, columns, exists, tile, group = tile_of_group(
        R, C, groups, group_size, tiles_per_group, ROWS, COLUMNS
    )
    scale, zero = grid_of_rows(scale_ptr, zero_ptr, rows, R, stride_scale, group, QMIN, QMAX)
    x = tl.load(x_ptr + rows * stride_x + columns, mask=exists, other=0.0).to(tl.float32)
    _, _, steps, inside = round_to_grid(x, scale, zero, QMIN, QMAX)
    tl.store(y_ptr + rows * C + columns, (steps * scale).to(y_ptr.dtype.element_ty), mask=exists)
    if mask_ptr is not None:
        bits = tl.reshape((inside & exists).to(tl.int32), (ROWS, COLUMNS // 8, 8))
        packed = tl.sum(bits << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)
        offsets = byte_offsets(rows, groups * tiles_per_group, tile, COLUMNS)
        tl.store(mask_ptr + offsets, packed, mask=rows < R)


@triton.jit
def masked_kernel(
    dy_ptr,  # float [R, C], row stride stride_dy
    mask_ptr,  # uint8 [R, tiles · COLUMNS / 8]
    dx_ptr,  # dy's dtype [R, C]
    R,
    C,
    groups,
    group_size,
    tiles_per_group,
    stride_dy,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of dx: dy where the mask is 1, else 0."""
    rows, columns, exists, tile, _ = tile_of_group(R, C, groups, group_size, tiles_per_group, ROWS, COLUMNS)
    offsets = byte_offsets(rows, groups * tiles_per_group, tile, COLUMNS)
    packed = tl.load(mask_ptr + offsets, mask=rows < R, other=0).to(tl.int32)
    bits = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    dy = tl.load(dy_ptr + rows * stride_dy + columns, mask=exists, other=0.0)
    dx = tl.where(tl.reshape(bits, (ROWS, COLUMNS)) != 0, dy, tl.zeros_like(dy))
    tl.store(dx_ptr + rows * C + columns, dx, mask=exists)


@launcher
def fake_quantize(
    x: Operand,
    scale: Operand,
    zero_point: Operand | None,
    group_size: int,
    qmin: int,
    qmax: int,
    tile_columns: int,
) -> Plan:
    """Quantize and dequantize x.

    Args:
        x: float [R, C].
        scale: float [R or 1, G].
        zero_point: int8 or float, of scale's shape, or None for 0.
        group_size: columns per scale.
        qmin, qmax: the code range.
        tile_columns: a power of two ≥ 8.

    Returns:
        [R, C] of x's dtype.
    """
    y = x.new_empty(*x.shape, dtype=x.dtype)
    return Plan(y, *_launches(x, scale, zero_point, group_size, qmin, qmax, tile_columns, y, None))


@launcher
def fake_quantize_with_mask(
    x: Operand,
    scale: Operand,
    zero_point: Operand | None,
    group_size: int,
    qmin: int,
    qmax: int,
    tile_columns: int,
) -> Plan:
    """The same, and the mask that a backward pass wants, uint8 [R, tiles · tile_columns / 8]."""
    y = x.new_empty(*x.shape, dtype=x.dtype)
    width = scale.shape[1] * triton.cdiv(group_size, tile_columns) * tile_columns // 8
    mask = x.new_empty(x.shape[0], width, dtype=torch.uint8)
    launches = _launches(x, scale, zero_point, group_size, qmin, qmax, tile_columns, y, mask)
    return Plan((y, mask if launches else mask.computed(Tensor.zero_)), *launches)


def _launches(
    x: Operand,
    scale: Operand,
    zero_point: Operand | None,
    group_size: int,
    qmin: int,
    qmax: int,
    tile_columns: int,
    y: Operand,
    mask: Operand | None,
) -> list[Launch]:
    rows, columns = x.shape
    if rows == 0 or columns == 0:
        return []
    x = with_dense_rows(x)
    tiles_per_group = triton.cdiv(group_size, tile_columns)
    tile_rows = rows_of_tile(rows, tile_columns)
    return [
        Launch(
            fake_quantize_kernel,
            (triton.cdiv(rows, tile_rows) * scale.shape[1] * tiles_per_group,),
            x,
            scale.contiguous(),
            None if zero_point is None else zero_point.contiguous(),
            y,
            mask,
            rows,
            columns,
            scale.shape[1],
            group_size,
            tiles_per_group,
            x.stride(0),
            scale.shape[1] if scale.shape[0] > 1 else 0,
            QMIN=qmin,
            QMAX=qmax,
            ROWS=tile_rows,
            COLUMNS=tile_columns,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    ]


@launcher
def masked(dy: Operand, mask: Operand, groups: int, group_size: int, tile_columns: int) -> Plan:
    """dy [R, C] where the mask of `fake_quantize_with_mask` is 1, else 0; other arguments as there."""
    rows, columns = dy.shape
    dy = with_dense_rows(dy)
    dx = dy.new_empty(rows, columns, dtype=dy.dtype)
    if rows == 0 or columns == 0:
        return Plan(dx)
    tiles_per_group = triton.cdiv(group_size, tile_columns)
    tile_rows = rows_of_tile(rows, tile_columns)
    launch = Launch(
        masked_kernel,
        (triton.cdiv(rows, tile_rows) * groups * tiles_per_group,),
        dy,
        mask,
        dx,
        rows,
        columns,
        groups,
        group_size,
        tiles_per_group,
        dy.stride(0),
        ROWS=tile_rows,
        COLUMNS=tile_columns,
        num_warps=NUM_WARPS,
    )
    return Plan(dx, launch)


def with_dense_rows(x: Operand) -> Operand:
    """x, or a copy of it whose columns are contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rows_of_tile(rows: int, tile_columns: int) -> int:
    """Rows of a tile: a power of two, at most the next one ≥ rows."""
    return min(_ELEMENTS_PER_TILE // tile_columns, triton.next_power_of_2(rows))
