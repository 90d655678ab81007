"""The middle of a gated MLP in one launch: activation(x · gateᵀ) · (x · upᵀ), all three operands int8, exact in int32.

A program holds a tile of each weight against one tile of x, in two accumulators, so that neither product is ever
written, and x is read once:

    y_gate, y_up  as in int8_matmul.py: (float(acc) · s_x) · s_w + b
    float out     y = activation(y_gate) · y_up
    int8 out      v = y · (1 / s_y);  code = clamp(rint v + z_y)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..blocks.epilogue import gated_finished, subtract_w_zero
from ..blocks.split_k import split_count, sums_of_splits, workspace
from ..config.choose import Problem, configured
from ..config.hopper_shapes import choose_gated_config, is_for_hopper
from ..config.tile import TileConfig, stages_that_fit, tile_of_program
from ..launch.descriptors import is_addressable
from ..launch.gluon_versions import AVAILABLE
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher
from ..launch.target import Target, target_of


@triton.jit
def int8_gated_matmul_kernel(
    x_ptr,  # int8 [M, K], row stride stride_x
    gate_ptr,  # int8 [N, stride_gate], columns K onwards are padding
    up_ptr,  # int8 [N, stride_up], alike
    x_scale_ptr,  # float32 [M] or [1]
    x_zero_ptr,  # int8 [M] or [1], or None for 0
    gate_scale_ptr,  # float [N]
    gate_zero_ptr,  # int8 [N], or None for 0
    gate_sum_ptr,  # int32 [N], the sum of each row's codes
    gate_bias_ptr,  # float [N], or None
    up_scale_ptr,  # what follows as for gate
    up_zero_ptr,
    up_sum_ptr,
    up_bias_ptr,
    out_scale_ptr,  # float32 [1], or None for float output
    out_zero_ptr,  # int8 [1], or None for float output
    out_ptr,  # float or int8 [M, N]
    partials_ptr,  # int32 [tiles, 2, SPLITS, BLOCK_N, BLOCK_M], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    stride_x,
    stride_gate,
    stride_up,
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
    k = tl.arange(0, BLOCK_K)
    # Rows beyond the edge wrap around: a modulo here is cheaper than a mask in the loop.
    n_wrapped = (n % N).to(tl.int64)[:, None]
    gate_rows = gate_ptr + n_wrapped * stride_gate  # [BLOCK_N, 1]
    up_rows = up_ptr + n_wrapped * stride_up
    x_rows = x_ptr + (m % M).to(tl.int64)[None, :] * stride_x  # [1, BLOCK_M]

    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS)
    first = split * steps * BLOCK_K
    gate = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    up = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    x_sum = tl.zeros((BLOCK_M,), tl.int32)
    for step in range(steps):
        columns = first + step * BLOCK_K + k
        if EVEN_K:
            x = tl.load(x_rows + columns[:, None])
            gate_codes = tl.load(gate_rows + columns[None, :])
            up_codes = tl.load(up_rows + columns[None, :])
        else:
            x = tl.load(x_rows + columns[:, None], mask=columns[:, None] < K, other=0)
            gate_codes = tl.load(gate_rows + columns[None, :], mask=columns[None, :] < K, other=0)
            up_codes = tl.load(up_rows + columns[None, :], mask=columns[None, :] < K, other=0)
        gate = tl.dot(gate_codes, x, gate, out_dtype=tl.int32)
        up = tl.dot(up_codes, x, up, out_dtype=tl.int32)
        if gate_zero_ptr is not None or up_zero_ptr is not None:
            x_sum += tl.sum(x.to(tl.int32), axis=0)

    gate = subtract_w_zero(gate, x_sum, gate_zero_ptr, n, N)
    up = subtract_w_zero(up, x_sum, up_zero_ptr, n, N)
    m_inside = m < M
    if SPLITS > 1:
        gate, up, is_last = sums_of_splits(gate, up, partials_ptr, counters_ptr, tile, split, SPLITS)
        m_inside = m < tl.where(is_last, M, 0)
    values = gated_finished(
        gate,
        up,
        x_scale_ptr,
        x_zero_ptr,
        gate_scale_ptr,
        gate_zero_ptr,
        gate_sum_ptr,
        gate_bias_ptr,
        up_scale_ptr,
        up_zero_ptr,
        up_sum_ptr,
        up_bias_ptr,
        out_scale_ptr,
        out_zero_ptr,
        n,
        m,
        N,
        M,
        K,
        ACTIVATION,
        X_QPARAM_STRIDE,
        OUT_QMIN,
    )
    inside = (n < N)[:, None] & m_inside[None, :]
    out_ptrs = out_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out_ptrs, values.to(out_ptr.dtype.element_ty), mask=inside)


@launcher
def int8_gated_matmul(
    x: Operand,
    x_scale: Operand,
    x_zero: Operand | None,
    gate: Operand,
    gate_scale: Operand,
    gate_zero: Operand | None,
    gate_sum: Operand,
    gate_bias: Operand | None,
    up: Operand,
    up_scale: Operand,
    up_zero: Operand | None,
    up_sum: Operand,
    up_bias: Operand | None,
    out_dtype: torch.dtype,
    activation: str,
    out_scale: Operand | None = None,
    out_zero: Operand | None = None,
    out_symmetric: bool = False,
    config: TileConfig | None = None,
) -> Plan:
    """activation(x [M, K] · gateᵀ) · (x · upᵀ) → [M, N].

    Args:
        x, x_scale, x_zero: as `int8_matmul`.
        gate, gate_scale, gate_zero, gate_sum, gate_bias: a weight, as `int8_matmul`.
        up, up_scale, up_zero, up_sum, up_bias: another of the same shape.
        out_dtype, out_scale, out_zero, out_symmetric: of the result, as `int8_matmul`.
        activation: as `epilogue.activate`.
        config: tile shape, block_n being rows of each weight; None chooses.
    """
    rows, columns = x.shape
    features = gate.shape[0]
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = x.new_empty(rows, features, dtype=torch.int8 if out_scale is not None else out_dtype)
    if rows == 0:
        return Plan(out)
    target = target_of(x)
    if config is None:
        addressable = is_addressable(x) and is_addressable(gate) and is_addressable(up)
        config = configured(
            Problem("int8_gated", (addressable,), rows, features, columns),
            target,
            lambda: choose_config(target, rows, features, columns, addressable),
        )
    operands = (x_scale, x_zero, gate_scale, gate_zero, gate_sum, gate_bias)
    operands = (*operands, up_scale, up_zero, up_sum, up_bias, out_scale, out_zero)
    constants = {
        "ACTIVATION": activation,
        "X_QPARAM_STRIDE": int(x_scale.numel() > 1),
        "OUT_QMIN": -127.0 if out_symmetric else -128.0,
    }
    if config.path == "hopper":
        from ..hopper.int8_gated import hopper_launch

        launch = hopper_launch(x, gate, up, operands, out, constants, config, target)
    else:
        launch = _pointers_launch(x, gate, up, operands, out, constants, config)
    return Plan(out, launch)


def _pointers_launch(
    x: Operand,
    gate: Operand,
    up: Operand,
    operands: tuple[Operand | None, ...],
    out: Operand,
    constants: dict[str, Any],
    config: TileConfig,
) -> Launch:
    (rows, columns), features = x.shape, gate.shape[0]
    tiles = config.tiles(features, rows)
    tile_elements = 2 * config.block_n * config.block_m
    partials, counters = workspace(x, torch.int32, config.splits, tiles, tile_elements)
    return Launch(
        int8_gated_matmul_kernel,
        (tiles, config.splits),
        x,
        gate,
        up,
        *operands,
        out,
        partials,
        counters,
        rows,
        features,
        columns,
        x.stride(0),
        gate.shape[1],
        up.shape[1],
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


def choose_config(target: Target, rows: int, features: int, columns: int, addressable: bool) -> TileConfig:
    """Tile shapes by M; what fits in shared memory; splits where the tiles leave multiprocessors idle.

    Two tiles of weights take the registers and the shared memory of one with twice the rows.
    """
    if AVAILABLE and addressable and is_for_hopper(target, rows, features):
        return choose_gated_config(target, rows, features, columns)
    if target.backend == "hip":
        shape = (64, 16, 128, 4, 2) if rows <= 32 else (64, 64, 64, 4, 2)
    elif (
        columns % 16 != 0
    ):  # rows that are not aligned are loaded byte by byte, each with an address in registers
        shape = (64, 16, 64, 8, 3)
    elif rows <= 16:
        shape = (64, 16, 128, 4, 4)
    elif rows <= 32:
        shape = (64, 32, 128, 4, 4)
    elif rows <= 64:
        shape = (64, 64, 128, 4, 4)
    elif rows <= 512 or target.arch // 10 != 9:
        shape = (64, 128, 128, 8, 3)
    else:
        shape = (128, 128, 128, 8, 3)
    block_n, block_m, block_k, num_warps, num_stages = shape
    bytes_per_column = 2 * block_n + block_m
    while block_k > 64 and stages_that_fit(target, bytes_per_column * block_k, num_stages) < 2:
        block_k //= 2
    num_stages = stages_that_fit(target, bytes_per_column * block_k, num_stages)
    tiles = triton.cdiv(features, block_n) * triton.cdiv(rows, block_m)
    programs_per_multiprocessor = 3 if rows <= 64 else 1
    splits = split_count(target, tiles, triton.cdiv(columns, block_k), programs_per_multiprocessor)
    return TileConfig(block_n, block_m, block_k, splits, num_warps, num_stages)
