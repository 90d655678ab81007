"""Gradients of fake quantization with a learned scale or zero point: one pass over x and dy, then one over sums.

Each tile (as in fake_quantize.py) writes partial sums for its scales and zero points: one per row, or one per tile if
all rows share their scales. A second launch adds the partial sums of each scale in a fixed order. There are no atomics,
so every run gives the same bits.

tritonq/reference/fake_quantize.py defines the results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher
from .fake_quantize import (
    NUM_WARPS,
    grid_of_rows,
    round_to_grid,
    rows_of_tile,
    tile_of_group,
    with_dense_rows,
)

_PARTIALS_PER_PROGRAM = 1024


@triton.jit
def gradients_kernel(
    dy_ptr,  # float [R, C], row stride stride_dy
    x_ptr,  # float [R, C], row stride stride_x
    scale_ptr,  # float [R or 1, groups], row stride stride_scale
    zero_ptr,  # as scale, or None
    dx_ptr,  # x's dtype [R, C], or None
    scale_partials_ptr,  # float32 [R or blocks of rows, tiles], or None
    zero_partials_ptr,  # the same, or None
    R,
    C,
    groups,
    group_size,
    tiles_per_group,
    stride_dy,
    stride_x,
    stride_scale,
    QMIN: tl.constexpr,
    QMAX: tl.constexpr,
    ROWS_SHARE: tl.constexpr,  # one row of scales for all rows
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of dx, and its partial sums for scale and zero point."""
    rows, columns, exists, tile, group = tile_of_group(
        R, C, groups, group_size, tiles_per_group, ROWS, COLUMNS
    )
    scale, zero = grid_of_rows(scale_ptr, zero_ptr, rows, R, stride_scale, group, QMIN, QMAX)
    x = tl.load(x_ptr + rows * stride_x + columns, mask=exists, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + rows * stride_dy + columns, mask=exists, other=0.0).to(tl.float32)
    v, rounded, steps, inside = round_to_grid(x, scale, zero, QMIN, QMAX)
    if dx_ptr is not None:
        dx = tl.where(inside, dy, 0.0).to(dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + rows * C + columns, dx, mask=exists)

    tiles = groups * tiles_per_group
    if scale_partials_ptr is not None:
        by_scale = dy * tl.where(inside, rounded - v, steps)
        store_sums(scale_partials_ptr, tl.where(exists, by_scale, 0.0), rows, R, tile, tiles, ROWS_SHARE)
    if zero_partials_ptr is not None:
        clipped = tl.where(inside, 0.0, dy)
        store_sums(zero_partials_ptr, clipped, rows, R, tile, tiles, ROWS_SHARE)


@triton.jit
def store_sums(partials_ptr, terms, rows, R, tile, tiles, ROWS_SHARE: tl.constexpr):
    """Sum the terms [ROWS, COLUMNS] of a tile, by row or in total, and store them in the tile's column of partials."""
    sums = tl.sum(terms, axis=1, keep_dims=True)
    if ROWS_SHARE:
        tl.store(partials_ptr + tl.program_id(0), tl.sum(tl.sum(sums, axis=1), axis=0))
    else:
        tl.store(partials_ptr + rows * tiles + tile, sums, mask=rows < R)


@triton.jit
def sum_of_partials(
    partials_ptr, outs, outs_inside, tiles, tiles_per_group, terms, OUTS: tl.constexpr, TERMS: tl.constexpr
):
    """float32 [OUTS]: for each scale the sum over its tiles, and over blocks of rows if rows share scales."""
    acc = tl.zeros((OUTS, TERMS), tl.float32)
    for start in range(0, terms, TERMS):
        term = start + tl.arange(0, TERMS)
        offsets = (term // tiles_per_group).to(tl.int64) * tiles + term % tiles_per_group
        acc += tl.load(
            partials_ptr + outs[:, None] * tiles_per_group + offsets[None, :],
            mask=outs_inside[:, None] & (term < terms)[None, :],
            other=0.0,
        )
    return tl.sum(acc, axis=1)


@triton.jit
def sum_partials_kernel(
    scale_partials_ptr,  # float32 [R or blocks of rows, groups, tiles_per_group], or None
    zero_partials_ptr,  # the same, or None
    scale_ptr,  # float [scales]
    dscale_ptr,  # scale's dtype [scales], or None
    dzero_ptr,  # zero point's dtype [scales], or None
    gradient_factor,
    scales,
    tiles,
    tiles_per_group,
    terms,  # partial sums of one scale
    OUTS: tl.constexpr,
    TERMS: tl.constexpr,
):
    """dscale = factor · Σ, dzero = -factor · scale · Σ, of OUTS scales."""
    outs = tl.program_id(0).to(tl.int64) * OUTS + tl.arange(0, OUTS)
    inside = outs < scales
    if dscale_ptr is not None:
        sums = sum_of_partials(scale_partials_ptr, outs, inside, tiles, tiles_per_group, terms, OUTS, TERMS)
        tl.store(dscale_ptr + outs, (sums * gradient_factor).to(dscale_ptr.dtype.element_ty), mask=inside)
    if dzero_ptr is not None:
        sums = sum_of_partials(zero_partials_ptr, outs, inside, tiles, tiles_per_group, terms, OUTS, TERMS)
        factor = -gradient_factor * tl.load(scale_ptr + outs, mask=inside, other=0.0).to(tl.float32)
        tl.store(dzero_ptr + outs, (sums * factor).to(dzero_ptr.dtype.element_ty), mask=inside)


@launcher
def gradients(
    dy: Operand,
    x: Operand,
    scale: Operand,
    zero_point: Operand | None,
    group_size: int,
    qmin: int,
    qmax: int,
    tile_columns: int,
    gradient_factor: float,
    wanted: tuple[bool, bool, bool],
) -> Plan:
    """Gradients of x, scale and zero point.

    Args:
        dy: [R, C], the gradient of y.
        gradient_factor: multiplies the gradients of scale and zero point.
        wanted: which of the three to compute.
        the others: as `fake_quantize`.

    Returns:
        dx, dscale, dzero, with the shapes and dtypes of x, scale and zero point; [0] if not wanted.
    """
    rows, columns = x.shape
    likes = (x, scale, scale if zero_point is None else zero_point)
    wanted = (*wanted[:2], wanted[2] and zero_point is not None)
    results = tuple(
        like.new_empty(*(like.shape if want else (0,)), dtype=like.dtype)
        for like, want in zip(likes, wanted, strict=True)
    )
    if rows == 0 or columns == 0:
        return Plan(tuple(result.computed(Tensor.zero_) for result in results))
    dy, x, scale = with_dense_rows(dy), with_dense_rows(x), scale.contiguous()
    scale_rows, groups = scale.shape
    tiles_per_group = triton.cdiv(group_size, tile_columns)
    tiles = groups * tiles_per_group
    tile_rows = rows_of_tile(rows, tile_columns)
    row_blocks = triton.cdiv(rows, tile_rows)
    rows_share = scale_rows == 1

    def partials() -> Operand:
        summed_rows = row_blocks if rows_share else rows
        return x.new_empty(summed_rows, tiles, dtype=torch.float32)

    dx, dscale, dzero = (result if want else None for result, want in zip(results, wanted, strict=True))
    scale_partials = None if dscale is None else partials()
    zero_partials = None if dzero is None else partials()
    products = Launch(
        gradients_kernel,
        (row_blocks * tiles,),
        dy,
        x,
        scale,
        None if zero_point is None else zero_point.contiguous(),
        dx,
        scale_partials,
        zero_partials,
        rows,
        columns,
        groups,
        group_size,
        tiles_per_group,
        dy.stride(0),
        x.stride(0),
        0 if rows_share else groups,
        QMIN=qmin,
        QMAX=qmax,
        ROWS_SHARE=rows_share,
        ROWS=tile_rows,
        COLUMNS=tile_columns,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    if dscale is None and dzero is None:
        return Plan(results, products)
    terms = tiles_per_group * (row_blocks if rows_share else 1)
    block = min(_PARTIALS_PER_PROGRAM, triton.next_power_of_2(terms))
    outs = _PARTIALS_PER_PROGRAM // block
    sums = Launch(
        sum_partials_kernel,
        (triton.cdiv(scale.numel(), outs),),
        scale_partials,
        zero_partials,
        scale,
        dscale,
        dzero,
        gradient_factor,
        scale.numel(),
        tiles,
        tiles_per_group,
        terms,
        OUTS=outs,
        TERMS=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return Plan(results, products, sums)
