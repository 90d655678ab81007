"""Float activations × INT8 weights, quantized per token inside of the launch (quantize_inside.py): few rows alone.

    out = (float(Σ (q - z_x)(w - z_w)) · s_x) · s_w + b        q, s_x, z_x of a row as `quantize_per_token` has them

The tile, its split along K and the weight's layout are those of int8_matmul.py, and so are the results, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..blocks.epilogue import subtract_x_zeros, with_scales_and_bias
from ..blocks.split_k import split_count, sum_of_splits, workspace
from ..config.tile import TileConfig, stages_that_fit, tile_of_program
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher
from ..launch.target import Target
from .int8_tile import product_of_split
from .quantize_inside import grids_of_rows


@triton.jit
def quantizing_int8_matmul_kernel(
    x_ptr,  # float [M, K], row stride stride_x
    w_ptr,  # int8 [N, stride_w], columns K onwards are padding
    w_scale_ptr,  # float [N]
    w_zero_ptr,  # int8 [N], or None for 0
    w_sum_ptr,  # int32 [N], the sum of each row's codes
    bias_ptr,  # float [N], or None
    out_ptr,  # float [M, N]
    partials_ptr,  # int32 [tiles, SPLITS, BLOCK_N, BLOCK_M], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    stride_x,
    stride_w,
    SYMMETRIC: tl.constexpr,
    EVEN_K: tl.constexpr,  # K % (BLOCK_K · SPLITS) == 0
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,  # BLOCK_M, or 1 where M is 1
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One [BLOCK_N, BLOCK_M] tile of outᵀ, or one split of it."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    tile_n, tile_m = tile_of_program(tile, N, M, BLOCK_N, BLOCK_M, GROUP)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    read = tile_m * BLOCK_M + tl.arange(0, ROWS)
    finite, scale, zero, inverse = grids_of_rows(x_ptr, read, M, K, stride_x, SYMMETRIC, ROWS)

    w_rows = w_ptr + (n % N).to(tl.int64)[:, None] * stride_w  # [BLOCK_N, 1]
    x_rows = x_ptr + (read % M).to(tl.int64)[None, :] * stride_x  # [1, ROWS]
    acc = product_of_split(
        x_rows, w_rows, w_zero_ptr, finite, zero, inverse, n, N, K, split,
        SYMMETRIC, EVEN_K, SPLITS, BLOCK_N, BLOCK_M, BLOCK_K,
    )  # fmt: skip
    m_inside = m < M
    if SPLITS > 1:
        acc, is_last = sum_of_splits(acc, partials_ptr, counters_ptr, tile, split, SPLITS)
        m_inside = m < tl.where(is_last, M, 0)
    if not SYMMETRIC:
        acc = subtract_x_zeros(acc, zero.to(tl.int32), w_sum_ptr, w_zero_ptr, n, N, K)
    values = with_scales_and_bias(acc, scale, w_scale_ptr, bias_ptr, n, N)
    out_ptrs = out_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out_ptrs, values.to(out_ptr.dtype.element_ty), mask=(n < N)[:, None] & m_inside[None, :])


@launcher
def quantizing_int8_matmul(
    x: Operand,
    symmetric: bool,
    w: Operand,
    w_scale: Operand,
    w_zero: Operand | None,
    w_sum: Operand,
    bias: Operand | None,
    config: TileConfig,
) -> Plan:
    """x [M, K] · wᵀ → [M, N] of x's dtype, x quantized on the way.

    Args:
        x: float [M, K], columns next to each other.
        symmetric: how rows are quantized.
        w, w_scale, w_zero, w_sum, bias: as `int8_matmul`.
        config: tile shape.
    """
    (rows, columns), features = x.shape, w.shape[0]
    out = x.new_empty(rows, features, dtype=x.dtype)
    if rows == 0:
        return Plan(out)
    tiles = config.tiles(features, rows)
    tile_elements = config.block_n * config.block_m
    partials, counters = workspace(x, torch.int32, config.splits, tiles, tile_elements)
    launch = Launch(
        quantizing_int8_matmul_kernel,
        (tiles, config.splits),
        x,
        w,
        w_scale,
        w_zero,
        w_sum,
        bias,
        out,
        partials,
        counters,
        rows,
        features,
        columns,
        x.stride(0),
        w.shape[1],
        SYMMETRIC=symmetric,
        EVEN_K=columns % (config.block_k * config.splits) == 0,
        SPLITS=config.splits,
        ROWS=1 if rows == 1 else config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        GROUP=8,
        enable_fp_fusion=False,
        **config.launch_options,
    )
    return Plan(out, launch)


def choose_config(target: Target, features: int, columns: int, element_size: int) -> TileConfig:
    """The tile of few rows, as int8_matmul.py has it; stages that fit with floats in them."""
    block_n, block_m = 64, 16
    block_k, num_stages = (128, 2) if target.backend == "hip" else (256, 4)
    bytes_per_column = block_n + block_m * element_size
    while block_k > 64 and stages_that_fit(target, bytes_per_column * block_k, num_stages) < 2:
        block_k //= 2
    num_stages = stages_that_fit(target, bytes_per_column * block_k, num_stages)
    tiles = triton.cdiv(features, block_n)
    splits = split_count(target, tiles, triton.cdiv(columns, block_k), 3)
    return TileConfig(block_n, block_m, block_k, splits, 4, num_stages, "quantizing")
