"""Computes and quantizes rows in one pass: RMSNorm (optionally after a residual sum), LayerNorm, gated products.

One program computes one row, a block of columns at a time, in up to four rounds: the mean (LayerNorm), the mean square,
the extremes (per token) and the codes. Each round computes its values again from the inputs. If the row fits into one
block (BLOCKS is 1), the compiler removes the loops and the repeated loads: the row is read once and stays in registers.
Longer rows are read again from cache.

All arithmetic is float32. A sum over a row is kept as BLOCK partial sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..blocks.epilogue import activate
from ..blocks.rounding import to_code
from ..blocks.row_grid import extremes, grid_of_extremes
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher

#: The longest row that stays in registers; and the block of a longer row; in columns.
_LONGEST_SINGLE_READ = 16384
_BLOCK_OF_LONG_ROW = 8192


@triton.jit
def load_values(a_row, b_row, OPERATION: tl.constexpr, ACTIVATION: tl.constexpr, columns, K):
    """float32 [BLOCK] of a row before it is normalized: x, x + residual rounded to x's dtype, or the gated product."""
    values = tl.load(a_row + columns, mask=columns < K, other=0.0).to(tl.float32)
    if OPERATION == "gated":
        values = activate(values, ACTIVATION)
    if b_row is not None:
        b = tl.load(b_row + columns, mask=columns < K, other=0.0).to(tl.float32)
        if OPERATION == "gated":
            values = values * b
        else:
            values = (values + b).to(a_row.dtype.element_ty).to(tl.float32)
    return values


@triton.jit
def normalized(values, mean, inverse, weight_ptr, bias_ptr, OPERATION: tl.constexpr, columns, K):
    """((values - mean) · inverse) · weight + bias, 0 beyond the row's end."""
    if OPERATION == "layer_norm":
        values = values - mean
    if OPERATION != "gated":
        values = values * inverse
        if weight_ptr is not None:
            values = values * tl.load(weight_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            values = values + tl.load(bias_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
    return tl.where(columns < K, values, 0.0)


@triton.jit
def row_quantize_kernel(
    a_ptr,  # float [M, K], row stride stride_a: x, or the gate
    b_ptr,  # float [M, K], row stride stride_b: the residual, or up; None for neither
    weight_ptr,  # float [K], or None for 1
    bias_ptr,  # float [K], or None for 0
    sum_ptr,  # a's dtype [M, K]: x + residual, or None
    codes_ptr,  # int8 [M, K]
    scale_ptr,  # float32 [M], written (PER_TOKEN); [1], read
    zero_ptr,  # int8, as scale
    K,
    stride_a,
    stride_b,
    eps,
    OPERATION: tl.constexpr,  # "rms_norm", "layer_norm" or "gated"
    ACTIVATION: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sum, codes, scale and zero point of row program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    a_row = a_ptr + row * stride_a
    b_row = None
    if b_ptr is not None:
        b_row = b_ptr + row * stride_b

    mean = 0.0
    inverse = 1.0
    if OPERATION == "layer_norm":
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, BLOCKS * BLOCK, BLOCK):
            sums += load_values(a_row, b_row, OPERATION, ACTIVATION, start + lanes, K)
        mean = tl.math.div_rn(tl.sum(sums, axis=0), K * 1.0)
    if OPERATION != "gated":
        squares = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, BLOCKS * BLOCK, BLOCK):
            values = load_values(a_row, b_row, OPERATION, ACTIVATION, start + lanes, K)
            if OPERATION == "layer_norm":
                values = tl.where(start + lanes < K, values - mean, 0.0)
            squares += values * values
        mean_square = tl.math.div_rn(tl.sum(squares, axis=0), K * 1.0)
        inverse = tl.math.div_rn(1.0, tl.math.sqrt_rn(mean_square + eps))

    if PER_TOKEN:
        bits = 0
        low = 0.0
        high = 0.0
        for start in range(0, BLOCKS * BLOCK, BLOCK):
            values = load_values(a_row, b_row, OPERATION, ACTIVATION, start + lanes, K)
            values = normalized(values, mean, inverse, weight_ptr, bias_ptr, OPERATION, start + lanes, K)
            more_bits, lower, higher = extremes(values)
            bits, low, high = tl.maximum(bits, more_bits), tl.minimum(low, lower), tl.maximum(high, higher)
        finite, scale, zero, factor = grid_of_extremes(bits, low, high, SYMMETRIC)
    else:
        factor = tl.math.div_rn(1.0, tl.load(scale_ptr))
        zero = tl.load(zero_ptr).to(tl.float32)

    # Store last: after a store, the compiler cannot reuse the value of an earlier load.
    for start in range(0, BLOCKS * BLOCK, BLOCK):
        columns = start + lanes
        values = load_values(a_row, b_row, OPERATION, ACTIVATION, columns, K)
        scaled = normalized(values, mean, inverse, weight_ptr, bias_ptr, OPERATION, columns, K)
        if PER_TOKEN:
            scaled = tl.where(finite, scaled, 0.0)
        codes = to_code(scaled * factor, zero, -127.0 if SYMMETRIC else -128.0, 127.0)
        tl.store(codes_ptr + row * K + columns, codes, mask=columns < K)
        if sum_ptr is not None:
            tl.store(sum_ptr + row * K + columns, values.to(sum_ptr.dtype.element_ty), mask=columns < K)
    if PER_TOKEN:
        tl.store(scale_ptr + row, scale)
        tl.store(zero_ptr + row, zero.to(tl.int8))


@launcher
def rms_norm_quantize(
    x: Operand,
    weight: Operand | None,
    eps: float,
    symmetric: bool,
    scale: Operand | None = None,
    zero_point: Operand | None = None,
) -> Plan:
    """Quantize the RMSNorm of x.

    Args:
        x: float [M, K].
        weight: float [K], or None for 1.
        eps: ≥ 0.
        symmetric: codes in [-127, 127].
        scale, zero_point: float32 [1] and int8 [1]; None computes them for each row.

    Returns:
        codes int8 [M, K], and the grid: the given one, or scale float32 [M, 1] and zero point int8 [M, 1].
    """
    row, launches = _quantized(
        "rms_norm", x, None, weight, None, None, eps, "none", symmetric, scale, zero_point
    )
    return Plan(row, *launches)


@launcher
def add_rms_norm_quantize(
    x: Operand,
    residual: Operand,
    weight: Operand | None,
    eps: float,
    symmetric: bool,
    scale: Operand | None = None,
    zero_point: Operand | None = None,
) -> Plan:
    """(sum, *`rms_norm_quantize`(sum)), sum = x + residual, both float [M, K], rounded to x's dtype."""
    total = x.new_empty(*x.shape, dtype=x.dtype)
    grid = (scale, zero_point)
    row, launches = _quantized("rms_norm", x, residual, weight, None, total, eps, "none", symmetric, *grid)
    return Plan((total, *row), *launches)


@launcher
def layer_norm_quantize(
    x: Operand,
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
    symmetric: bool,
    scale: Operand | None = None,
    zero_point: Operand | None = None,
) -> Plan:
    """Quantize the LayerNorm of x. bias: float [K] or None for 0; the rest as `rms_norm_quantize`."""
    row, launches = _quantized(
        "layer_norm", x, None, weight, bias, None, eps, "none", symmetric, scale, zero_point
    )
    return Plan(row, *launches)


@launcher
def gated_quantize_per_token(gate: Operand, up: Operand | None, activation: str, symmetric: bool) -> Plan:
    """activation(gate) · up, up None for 1, float [M, K] → codes int8 [M, K], scale float32, zero int8 [M, 1]."""
    row, launches = _quantized("gated", gate, up, None, None, None, 0.0, activation, symmetric, None, None)
    return Plan(row, *launches)


def _quantized(
    operation: str,
    a: Operand,
    b: Operand | None,
    weight: Operand | None,
    bias: Operand | None,
    total: Operand | None,
    eps: float,
    activation: str,
    symmetric: bool,
    scale: Operand | None,
    zero_point: Operand | None,
) -> tuple[tuple[Operand, Operand, Operand], list[Launch]]:
    """(codes, scale and zero point; what writes them); see the kernel for the arguments."""
    rows, columns = a.shape
    codes = a.new_empty(rows, columns, dtype=torch.int8)
    per_token = scale is None or zero_point is None
    if scale is None or zero_point is None:
        scale = a.new_empty(rows, 1, dtype=torch.float32)
        zero_point = a.new_empty(rows, 1, dtype=torch.int8)
    if rows == 0:
        return (codes, scale, zero_point), []
    if a.stride(-1) != 1:
        a = a.contiguous()
    if b is not None and b.stride(-1) != 1:
        b = b.contiguous()
    block = triton.next_power_of_2(columns) if columns <= _LONGEST_SINGLE_READ else _BLOCK_OF_LONG_ROW
    launch = Launch(
        row_quantize_kernel,
        (rows,),
        a,
        b,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        total,
        codes,
        scale,
        zero_point,
        columns,
        a.stride(0),
        0 if b is None else b.stride(0),
        eps,
        OPERATION=operation,
        ACTIVATION=activation,
        PER_TOKEN=per_token,
        SYMMETRIC=symmetric,
        BLOCKS=triton.cdiv(columns, block),
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
        enable_fp_fusion=False,
    )
    return (codes, scale, zero_point), [launch]
