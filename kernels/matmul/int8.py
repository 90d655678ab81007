"""INT8 activations × INT8 weights, exact in int32, with everything around the product in the epilogue:

    zero points   Σ(x - zx)(w - zw) = Σxw - zw·Σx - zx·(Σw - K·zw)
    float out     y = activation((float(acc) · s_x) · s_w + b + residual)
    int8 out      v = y · (1 / s_y);  code = clamp(rint v + z_y)
    and with neither a residual nor an activation but relu
                  v = acc · m + b',  m = (s_x · s_w) / s_y,  b' = b / s_y

Weights are stored in the layout `int8`: rows padded with code 0 to a multiple of 16 columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..blocks.epilogue import finished
from ..blocks.split_k import split_count, sum_of_splits, workspace
from ..config.choose import Problem, configured
from ..config.hopper_shapes import choose_int8_config, is_for_hopper
from ..config.tile import TileConfig, stages_that_fit, tile_of_program
from ..launch.descriptors import is_addressable
from ..launch.gluon_versions import AVAILABLE
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher
from ..launch.target import Target, target_of
from .int8_tile import product_of_split
from .int8_tma import choose_descriptor_config, descriptors_launch, has_copy_engine


@triton.jit
def int8_matmul_kernel(
    x_ptr,  # int8 [M, K], row stride stride_x
    w_ptr,  # int8 [N, stride_w], columns K onwards are padding
    x_scale_ptr,  # float32 [M] or [1]
    x_zero_ptr,  # int8 [M] or [1], or None for 0
    w_scale_ptr,  # float [N]
    w_zero_ptr,  # int8 [N], or None for 0
    w_sum_ptr,  # int32 [N], the sum of each row's codes
    bias_ptr,  # float [N], or None
    residual_ptr,  # float or int8 [M, N], row stride stride_residual, or None
    residual_scale_ptr,  # float32 [1] of an int8 residual, or None
    residual_zero_ptr,  # int8 [1], or None for 0
    out_scale_ptr,  # float32 [1], or None for float output
    out_zero_ptr,  # int8 [1], or None for float output
    out_ptr,  # float or int8 [M, N]
    partials_ptr,  # int32 [tiles, SPLITS, BLOCK_N, BLOCK_M], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    stride_x,
    stride_w,
    stride_residual,
    ACTIVATION: tl.constexpr,
    X_QPARAM_STRIDE: tl.constexpr,  # 1: per token, 0: per tensor
    OUT_QMIN: tl.constexpr,
    EVEN_K: tl.constexpr,  # K % (BLOCK_K · SPLITS) == 0
    SPLITS: tl.constexpr,
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
    # Rows beyond the edge wrap around: a modulo here is cheaper than a mask in the loop.
    w_rows = w_ptr + (n % N).to(tl.int64)[:, None] * stride_w  # [BLOCK_N, 1]
    x_rows = x_ptr + (m % M).to(tl.int64)[None, :] * stride_x  # [1, BLOCK_M]
    acc = product_of_split(
        x_rows, w_rows, w_zero_ptr, None, None, None, n, N, K, split,
        True, EVEN_K, SPLITS, BLOCK_N, BLOCK_M, BLOCK_K,
    )  # fmt: skip
    m_inside = m < M
    if SPLITS > 1:
        acc, is_last = sum_of_splits(acc, partials_ptr, counters_ptr, tile, split, SPLITS)
        m_inside = m < tl.where(is_last, M, 0)
    values = finished(
        acc,
        x_scale_ptr,
        x_zero_ptr,
        w_scale_ptr,
        w_zero_ptr,
        w_sum_ptr,
        bias_ptr,
        residual_ptr,
        residual_scale_ptr,
        residual_zero_ptr,
        out_scale_ptr,
        out_zero_ptr,
        n,
        m,
        N,
        M,
        K,
        stride_residual,
        ACTIVATION,
        X_QPARAM_STRIDE,
        OUT_QMIN,
    )
    out_ptrs = out_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
    inside = (n < N)[:, None] & m_inside[None, :]
    tl.store(out_ptrs, values.to(out_ptr.dtype.element_ty), mask=inside)


@launcher
def int8_matmul(
    x: Operand,
    x_scale: Operand,
    x_zero: Operand | None,
    w: Operand,
    w_scale: Operand,
    w_zero: Operand | None,
    w_sum: Operand,
    bias: Operand | None,
    out_dtype: torch.dtype,
    out_scale: Operand | None = None,
    out_zero: Operand | None = None,
    out_symmetric: bool = False,
    activation: str = "none",
    residual: Operand | None = None,
    residual_scale: Operand | None = None,
    residual_zero: Operand | None = None,
    config: TileConfig | None = None,
) -> Plan:
    """x [M, K] · wᵀ → [M, N].

    Args:
        x: int8 [M, K].
        x_scale: float32, one per row or one for all.
        x_zero: int8, like x_scale; None for 0.
        w: int8 [N, ≥ K], layout `int8`.
        w_scale: float [N], contiguous.
        w_zero: int8 [N] or None for 0.
        w_sum: int32 [N], Σ_k w.
        bias: float [N] or None.
        out_dtype: float dtype of the result; ignored for int8 output.
        out_scale, out_zero: float32 [1] and int8 [1]: the grid of an int8 result.
        out_symmetric: int8 codes in [-127, 127].
        activation: as `epilogue.activate`.
        residual: float [M, N]; or int8 [M, N] with residual_scale float32 [1] and residual_zero int8 [1].
        config: tile shape; None chooses.
    """
    rows, columns = x.shape
    features = w.shape[0]
    if x.stride(-1) != 1:
        x = x.contiguous()
    if residual is not None and residual.stride(-1) != 1:
        residual = residual.contiguous()
    out = x.new_empty(rows, features, dtype=torch.int8 if out_scale is not None else out_dtype)
    if rows == 0:
        return Plan(out)
    target = target_of(x)
    if config is None:
        short_epilogue = residual is None and w_zero is None and activation in ("none", "relu")
        long_epilogue = residual is not None or w_zero is not None
        addressable = is_addressable(x) and is_addressable(w)
        config = configured(
            Problem("int8", (short_epilogue, addressable, long_epilogue), rows, features, columns),
            target,
            lambda: choose_config(
                target, rows, features, columns, short_epilogue, addressable, long_epilogue
            ),
        )
    operands = (x_scale, x_zero, w_scale, w_zero, w_sum, bias, residual, residual_scale, residual_zero)
    operands = (*operands, out_scale, out_zero)
    stride_residual = 0 if residual is None else residual.stride(0)
    constants = {
        "ACTIVATION": activation,
        "X_QPARAM_STRIDE": int(x_scale.numel() > 1),
        "OUT_QMIN": -127.0 if out_symmetric else -128.0,
    }
    if config.path == "hopper":
        from ..hopper.int8 import hopper_launch

        launch = hopper_launch(x, w, operands, out, stride_residual, constants, config, target)
    elif config.path == "descriptors":
        launch = descriptors_launch(x, w, operands, out, stride_residual, constants, config, target)
    else:
        launch = _pointers_launch(x, w, operands, out, stride_residual, constants, config)
    return Plan(out, launch)


def _pointers_launch(
    x: Operand,
    w: Operand,
    operands: tuple[Operand | None, ...],
    out: Operand,
    stride_residual: int,
    constants: dict[str, Any],
    config: TileConfig,
) -> Launch:
    (rows, columns), features = x.shape, w.shape[0]
    tiles = config.tiles(features, rows)
    tile_elements = config.block_n * config.block_m
    partials, counters = workspace(x, torch.int32, config.splits, tiles, tile_elements)
    return Launch(
        int8_matmul_kernel,
        (tiles, config.splits),
        x,
        w,
        *operands,
        out,
        partials,
        counters,
        rows,
        features,
        columns,
        x.stride(0),
        w.shape[1],
        stride_residual,
        **constants,
        EVEN_K=columns % (config.block_k * config.splits) == 0,
        SPLITS=config.splits,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        GROUP=8,
        enable_fp_fusion=False,
        **config.launch_options,
    )


def choose_config(
    target: Target,
    rows: int,
    features: int,
    columns: int,
    short_epilogue: bool,
    addressable: bool,
    long_epilogue: bool,
) -> TileConfig:
    """Tile shapes by M; what fits in shared memory; splits where the tiles leave multiprocessors idle.

    A tile of [256, 128] fits in registers on Hopper alone (elsewhere Triton 3.8 spills 600 bytes of it), and with no
    residual, smooth activation or zero points of the weight beside it.
    """
    if AVAILABLE and addressable and is_for_hopper(target, rows, features):
        return choose_int8_config(target, rows, features, columns, long_epilogue)
    if rows > 512 and addressable and has_copy_engine(target):
        return choose_descriptor_config(target, short_epilogue)
    if target.backend == "hip":
        shape = (
            (64, 16, 128, 4, 2) if rows <= 32 else (64, 64, 64, 4, 2) if rows <= 128 else (128, 128, 64, 8, 2)
        )
    elif (
        columns % 16 != 0
    ):  # rows that are not aligned are loaded byte by byte, each with an address in registers
        shape = (64, 16 if rows <= 16 else 32, 64, 4, 3)
    elif rows <= 16:
        shape = (64, 16, 256, 4, 4)
    elif rows <= 32:
        shape = (64, 32, 256, 4, 3)
    elif rows <= 64:
        shape = (64, 64, 128, 4, 4)
    elif rows <= 512 or target.arch // 10 != 9 or not short_epilogue:
        shape = (128, 128, 128, 8, 3)
    else:
        shape = (256, 128, 128, 8, 3)
    block_n, block_m, block_k, num_warps, num_stages = shape
    while block_k > 64 and stages_that_fit(target, (block_n + block_m) * block_k, num_stages) < 2:
        block_k //= 2
    num_stages = stages_that_fit(target, (block_n + block_m) * block_k, num_stages)
    tiles = triton.cdiv(features, block_n) * triton.cdiv(rows, block_m)
    programs_per_multiprocessor = 3 if rows <= 64 else 1
    splits = split_count(target, tiles, triton.cdiv(columns, block_k), programs_per_multiprocessor)
    return TileConfig(block_n, block_m, block_k, splits, num_warps, num_stages)
