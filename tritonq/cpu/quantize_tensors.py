"""Floats to int8 codes on a CPU, torch tensors in and out."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.cpu.engine import Engine, scratch
from tritonq.cpu.quantize import OnGrid, Quantization, quantize_on_grid, quantize_rows
from tritonq.cpu.tensors import NAMES, address_of, plain_rows


def quantize_per_token(engine: Engine, x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As the operator of this name (tritonq/ops/quantize.py)."""
    x = plain_rows(x)
    rows, columns = x.shape
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scale, zero = torch.empty(rows, 1), torch.empty(rows, 1, dtype=torch.int8)
    engine.kernel(quantize_rows, Quantization(NAMES[x.dtype], symmetric))(
        rows * columns,
        rows,
        columns,
        x.data_ptr(),
        x.stride(0) * x.element_size(),
        codes.data_ptr(),
        columns,
        scale.data_ptr(),
        zero.data_ptr(),
        scratch.take(4 * rows),
    )
    return codes, scale, zero


def quantize_per_tensor(
    engine: Engine, x: Tensor, scale: Tensor, zero_point: Tensor, symmetric: bool
) -> Tensor:
    """As the operator of this name (tritonq/ops/quantize.py)."""
    x = x.contiguous().resolve_neg()
    codes = torch.empty(x.shape, dtype=torch.int8)
    kernel = engine.kernel(quantize_on_grid, OnGrid(NAMES[x.dtype], -127 if symmetric else -128))
    count = x.numel()
    kernel(count, count, x.data_ptr(), codes.data_ptr(), address_of(scale, 1), address_of(zero_point, 1))
    return codes
