"""Element by element, then quantized on a given grid, in one pass: activation(gate) · up, and sums of int8 tensors."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..blocks.epilogue import activate, dequantized, to_grid
from ..launch.launch import launch
from ..launch.target import on_device_of

_ELEMENTS_PER_PROGRAM = 4096


@triton.jit
def gated_quantize_kernel(
    gate_ptr,  # float [M, K], row stride stride_gate
    up_ptr,  # float [M, K], row stride stride_up
    codes_ptr,  # int8 [M, K]
    scale_ptr,  # float32 [1]
    zero_ptr,  # int8 [1]
    K,
    stride_gate,
    stride_up,
    ACTIVATION: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Columns program_id(1) · BLOCK onwards of row program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + row * stride_gate + columns, mask=columns < K, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_up + columns, mask=columns < K, other=0.0).to(tl.float32)
    codes = to_grid(activate(gate, ACTIVATION) * up, scale_ptr, zero_ptr, -127.0 if SYMMETRIC else -128.0)
    tl.store(codes_ptr + row * K + columns, codes, mask=columns < K)


@triton.jit
def add_requantize_kernel(
    a_ptr,  # int8 [elements]
    a_scale_ptr,  # float32 [1]
    a_zero_ptr,  # int8 [1], or None for 0
    b_ptr,  # int8 [elements]
    b_scale_ptr,
    b_zero_ptr,
    codes_ptr,  # int8 [elements]
    out_scale_ptr,  # float32 [1]
    out_zero_ptr,  # int8 [1]
    elements,
    ACTIVATION: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """codes of elements program_id(0) · BLOCK onwards."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = dequantized(tl.load(a_ptr + offsets, mask=offsets < elements, other=0), a_scale_ptr, a_zero_ptr)
    b = dequantized(tl.load(b_ptr + offsets, mask=offsets < elements, other=0), b_scale_ptr, b_zero_ptr)
    y = activate(a + b, ACTIVATION)
    codes = to_grid(y, out_scale_ptr, out_zero_ptr, -127.0 if SYMMETRIC else -128.0)
    tl.store(codes_ptr + offsets, codes, mask=offsets < elements)


def gated_quantize_per_tensor(
    gate: Tensor, up: Tensor, activation: str, scale: Tensor, zero_point: Tensor, symmetric: bool
) -> Tensor:
    """activation(gate) · up, both float [M, K]; scale float32 [1]; zero point int8 [1] → int8 codes [M, K]."""
    rows, columns = gate.shape
    codes = torch.empty(rows, columns, dtype=torch.int8, device=gate.device)
    if rows == 0:
        return codes
    if gate.stride(-1) != 1:
        gate = gate.contiguous()
    if up.stride(-1) != 1:
        up = up.contiguous()
    block = min(triton.next_power_of_2(columns), _ELEMENTS_PER_PROGRAM)
    with on_device_of(gate):
        launch(
            gated_quantize_kernel,
            (rows, triton.cdiv(columns, block)),
            gate,
            up,
            codes,
            scale,
            zero_point,
            columns,
            gate.stride(0),
            up.stride(0),
            ACTIVATION=activation,
            SYMMETRIC=symmetric,
            BLOCK=block,
            num_warps=max(1, min(8, block // 512)),
            enable_fp_fusion=False,
        )
    return codes


def add_requantize(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    activation: str,
) -> Tensor:
    """activation(a + b) of int8 tensors of one shape → int8, contiguous; each on a grid float32 [1], int8 [1]."""
    a, b = a.contiguous(), b.contiguous()
    codes = torch.empty_like(a, dtype=torch.int8)
    elements = a.numel()
    if elements == 0:
        return codes
    with on_device_of(a):
        launch(
            add_requantize_kernel,
            (triton.cdiv(elements, _ELEMENTS_PER_PROGRAM),),
            a,
            a_scale,
            a_zero,
            b,
            b_scale,
            b_zero,
            codes,
            out_scale,
            out_zero,
            elements,
            ACTIVATION=activation,
            SYMMETRIC=symmetric,
            BLOCK=_ELEMENTS_PER_PROGRAM,
            num_warps=8,
            enable_fp_fusion=False,
        )
    return codes
