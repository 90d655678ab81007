"""Quantizes activations: per token with a scale computed in the same launch, or per tensor with a given scale.

The per-token kernel writes codes (for integer products) or the dequantized values (for training).

One program quantizes one row. A row that fits into one block is read once and stays in registers; a longer row is read
twice, the second time from cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..blocks.rounding import to_code
from ..blocks.row_grid import extremes, grid_of_extremes
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher

_LARGEST_ROW_BLOCK = 16384
_ELEMENTS_PER_PROGRAM = 4096


@triton.jit
def quantize_per_token_kernel(
    x_ptr,  # float [M, K], row stride stride_x
    out_ptr,  # int8 codes [M, K]; x's dtype [M, K] if FAKE
    scale_ptr,  # float32 [M]; None if FAKE
    zero_ptr,  # int8 [M]; None if FAKE
    K,
    stride_x,
    SYMMETRIC: tl.constexpr,
    FAKE: tl.constexpr,  # write (code - zero point) · scale instead
    ONE_BLOCK: tl.constexpr,  # K ≤ BLOCK
    BLOCK: tl.constexpr,
):
    """codes, scale and zero point of row program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    x_row = x_ptr + row * stride_x
    out_row = out_ptr + row * K

    x = tl.load(x_row + columns, mask=columns < K, other=0.0).to(tl.float32)
    bits, low, high = extremes(x)
    if not ONE_BLOCK:
        for start in range(BLOCK, K, BLOCK):
            x = tl.load(x_row + start + columns, mask=start + columns < K, other=0.0).to(tl.float32)
            more_bits, lower, higher = extremes(x)
            bits, low, high = tl.maximum(bits, more_bits), tl.minimum(low, lower), tl.maximum(high, higher)
    finite, scale, zero, inverse = grid_of_extremes(bits, low, high, SYMMETRIC)
    qmin: tl.constexpr = -127.0 if SYMMETRIC else -128.0

    if ONE_BLOCK:
        out = to_code(tl.where(finite, x, 0.0) * inverse, zero, qmin, 127.0)
        if FAKE:
            out = (out.to(tl.float32) - zero) * scale
        tl.store(out_row + columns, out.to(out_ptr.dtype.element_ty), mask=columns < K)
    else:
        for start in range(0, K, BLOCK):
            x = tl.load(x_row + start + columns, mask=start + columns < K, other=0.0).to(tl.float32)
            out = to_code(tl.where(finite, x, 0.0) * inverse, zero, qmin, 127.0)
            if FAKE:
                out = (out.to(tl.float32) - zero) * scale
            tl.store(out_row + start + columns, out.to(out_ptr.dtype.element_ty), mask=start + columns < K)
    if not FAKE:
        tl.store(scale_ptr + row, scale)
        tl.store(zero_ptr + row, zero.to(tl.int8))


@triton.jit
def quantize_per_tensor_kernel(
    x_ptr,  # float [elements]
    codes_ptr,  # int8 [elements]
    scale_ptr,  # float32 [1]
    zero_ptr,  # int8 [1]
    elements,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """codes of elements program_id(0) · BLOCK onwards."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < elements, other=0.0).to(tl.float32)
    inverse = tl.math.div_rn(1.0, tl.load(scale_ptr))
    zero = tl.load(zero_ptr).to(tl.float32)
    codes = to_code(x * inverse, zero, -127.0 if SYMMETRIC else -128.0, 127.0)
    tl.store(codes_ptr + offsets, codes, mask=offsets < elements)


@launcher
def quantize_per_token(x: Operand, symmetric: bool) -> Plan:
    """x float [M, K] → codes int8 [M, K], scale float32 [M, 1], zero point int8 [M, 1]; see the reference."""
    rows, columns = x.shape
    codes = x.new_empty(rows, columns, dtype=torch.int8)
    scale = x.new_empty(rows, 1, dtype=torch.float32)
    zero_point = x.new_empty(rows, 1, dtype=torch.int8)
    return Plan((codes, scale, zero_point), *_per_token(x, codes, scale, zero_point, symmetric))


@launcher
def fake_quantize_per_token(x: Operand, symmetric: bool) -> Plan:
    """x float [M, K], quantized per token and dequantized to x's dtype; a row that is not finite becomes NaN."""
    y = x.new_empty(*x.shape, dtype=x.dtype)
    return Plan(y, *_per_token(x, y, None, None, symmetric))


def _per_token(
    x: Operand, out: Operand, scale: Operand | None, zero_point: Operand | None, symmetric: bool
) -> list[Launch]:
    rows, columns = x.shape
    if rows == 0:
        return []
    if x.stride(-1) != 1:
        x = x.contiguous()
    block = min(triton.next_power_of_2(columns), _LARGEST_ROW_BLOCK)
    return [
        Launch(
            quantize_per_token_kernel,
            (rows,),
            x,
            out,
            scale,
            zero_point,
            columns,
            x.stride(0),
            SYMMETRIC=symmetric,
            FAKE=scale is None,
            ONE_BLOCK=columns <= block,
            BLOCK=block,
            num_warps=max(1, min(16, block // 512)),
            enable_fp_fusion=False,
        )
    ]


@launcher
def quantize_per_tensor(x: Operand, scale: Operand, zero_point: Operand, symmetric: bool) -> Plan:
    """x float, any shape; scale float32 [1]; zero point int8 [1] → int8 codes, contiguous; see the reference."""
    x = x.contiguous()
    codes = x.new_empty(*x.shape, dtype=torch.int8)
    elements = x.numel()
    if elements == 0:
        return Plan(codes)
    launch = Launch(
        quantize_per_tensor_kernel,
        (triton.cdiv(elements, _ELEMENTS_PER_PROGRAM),),
        x,
        codes,
        scale,
        zero_point,
        elements,
        SYMMETRIC=symmetric,
        BLOCK=_ELEMENTS_PER_PROGRAM,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return Plan(codes, launch)
