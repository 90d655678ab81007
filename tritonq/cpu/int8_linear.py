"""int8 × int8 on a CPU, torch tensors in and out: from floats or codes to floats, codes or int32 sums.

x is first written to scratch as the product wants it (bytes or int16, with an offset or without, rows apart), by the
kernel that quantizes it or one that copies codes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tritonq.cpu.elements import Int8Dot
from tritonq.cpu.engine import Engine, scratch
from tritonq.cpu.int8 import MOST_BLOCK, Int8Product, int8_product
from tritonq.cpu.processor import Instructions
from tritonq.cpu.quantize import Quantization, Rewriting, quantize_rows, rewrite_codes
from tritonq.cpu.tensors import (
    FIRST_LEVEL,
    LINE,
    MOST_ROWS,
    NAMES,
    address_of,
    apart,
    block_of,
    plain_rows,
)


def int8_linear_dynamic(
    engine: Engine,
    x: Tensor,
    symmetric: bool,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """As the operator of this name (tritonq/ops/int8.py)."""
    rows = x.shape[0]
    if rows > MOST_ROWS:
        operands = (symmetric, weight, weight_scale, weight_zero, weight_sum, bias)
        return torch.cat([int8_linear_dynamic(engine, part, *operands) for part in x.split(MOST_ROWS)])
    codes = _Codes(engine, plain_rows(x), weight)
    codes.quantize(symmetric)
    out = torch.empty(rows, weight.shape[0], dtype=x.dtype)
    grid = (codes.scale, 4, 0 if symmetric else codes.zero, 1)
    _multiply(codes, grid, weight, weight_scale, weight_zero, weight_sum, bias, out)
    return out


def int8_linear(
    engine: Engine,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """As the operator of this name, without activation and residual."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=dtype)
    return _from_codes(engine, x, x_scale, x_zero, (weight, weight_scale, weight_zero, weight_sum, bias), out)


def int8_linear_requantize(
    engine: Engine,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
    relu: bool,
) -> Tensor:
    """As the operator of this name, without residual, and with no activation but relu."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.int8)
    grid = (out_scale, out_zero, -127 if symmetric else -128, relu)
    weight_operands = (weight, weight_scale, weight_zero, weight_sum, bias)
    return _from_codes(engine, x, x_scale, x_zero, weight_operands, out, grid)


def accumulate(
    engine: Engine,
    x: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
) -> Tensor:
    """Σ_k (x - x_zero)(w - w_zero) → int32 [M, N], as `reference.int8_accumulate`."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.int32)
    return _from_codes(engine, x, None, x_zero, (weight, None, weight_zero, weight_sum, None), out)


_WeightOperands = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None]
_OutGrid = tuple[Tensor, Tensor, int, bool]


def _from_codes(
    engine: Engine,
    x: Tensor,
    x_scale: Tensor | None,
    x_zero: Tensor | None,
    weight: _WeightOperands,
    out: Tensor,
    out_grid: _OutGrid | None = None,
) -> Tensor:
    """Fill `out` and return it."""
    rows = x.shape[0]
    if rows > MOST_ROWS:

        def part_of(tensor: Tensor | None, start: int) -> Any:
            return tensor[start : start + MOST_ROWS] if tensor is not None and tensor.numel() != 1 else tensor

        for start in range(0, rows, MOST_ROWS):
            rows_of_x = (x[start : start + MOST_ROWS], part_of(x_scale, start), part_of(x_zero, start))
            _from_codes(engine, *rows_of_x, weight, out[start : start + MOST_ROWS], out_grid)
        return out
    codes = _Codes(engine, plain_rows(x), weight[0])
    codes.rewrite()
    _multiply(codes, _grid(codes.x, x_scale, x_zero), *weight, out, out_grid)
    return out


class _Codes:
    """x's codes in scratch, and what was found of each row: addresses of its scale, sum and zero point."""

    def __init__(self, engine: Engine, x: Tensor, weight: Tensor) -> None:
        self.engine, self.x = engine, x
        rows, columns = x.shape
        if weight.shape[1] < columns:
            raise ValueError(f"weight must have at least {columns} columns, found {weight.shape[1]}")
        self.dot = dot = _dot(engine.instructions)
        self.pitch, self.block, self.depth = _sizes(rows, weight.shape[1], dot.x_bits // 8, dot.columns)
        self.address = scratch.take(rows * (self.pitch + 9) + 2 * LINE)
        self.scale = self.address + rows * self.pitch + LINE
        self.sum = self.scale + 4 * rows
        self.zero = self.sum + 4 * rows

    def quantize(self, symmetric: bool) -> None:
        """On a grid for each row."""
        x, dot = self.x, self.dot
        what = Quantization(NAMES[x.dtype], symmetric, dot.x_bits, dot.offset)
        kernel = self.engine.kernel(quantize_rows, what)
        rows, columns = x.shape
        x_pitch = x.stride(0) * x.element_size()
        places = (x.data_ptr(), x_pitch, self.address, self.pitch, self.scale, self.zero, self.sum)
        kernel(rows * columns, rows, columns, *places)

    def rewrite(self) -> None:
        """As they are."""
        x, dot = self.x, self.dot
        kernel = self.engine.kernel(rewrite_codes, Rewriting(dot.x_bits, dot.offset))
        rows, columns = x.shape
        kernel(rows * columns, rows, columns, x.data_ptr(), x.stride(0), self.address, self.pitch, self.sum)


def _multiply(
    codes: _Codes,
    grid: tuple[int, int, int, int],
    weight: Tensor,
    weight_scale: Tensor | None,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
    bias: Tensor | None,
    out: Tensor,
    out_grid: _OutGrid | None = None,
) -> None:
    """Fill `out`. grid: address and step of x's scales, address (0: none) and step of its zero points."""
    rows, columns = codes.x.shape
    features = weight.shape[0]
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    out_scale, out_zero, low, relu = out_grid or (None, None, -128, False)
    scale_name = "" if weight_scale is None else NAMES[weight_scale.dtype]
    bias_name = None if bias is None else NAMES[bias.dtype]
    variant = (scale_name, bias_name, grid[2] != 0, weight_zero is not None, NAMES[out.dtype], low, relu)
    codes.engine.kernel(int8_product, _variant(*variant))(
        rows * features * columns,
        rows,
        features,
        columns,
        codes.block,
        codes.depth,
        codes.address,
        codes.pitch,
        *grid,
        codes.sum,
        weight.data_ptr(),
        weight.stride(0),
        weight.shape[1],
        address_of(weight_sum, features),
        address_of(weight_scale, features),
        address_of(weight_zero, features),
        address_of(bias, features),
        out.data_ptr(),
        address_of(out_scale, 1),
        address_of(out_zero, 1),
    )


#: A named tuple takes longer to make than to look up.
_variant = functools.cache(Int8Product)


@functools.cache
def _dot(instructions: Instructions) -> Int8Dot:
    return Int8Dot(instructions)


@functools.lru_cache(maxsize=4096)
def _sizes(rows: int, columns: int, size: int, step: int) -> tuple[int, int, int]:
    """(bytes between rows of x in scratch, rows of a block, columns of a part of K); see int8.py."""
    pitch = apart(columns * size)
    block = block_of(rows, MOST_BLOCK)
    tile = columns * (4 + size * (rows if rows <= 8 else 6))
    parts = 1 if rows <= 2 else -(-tile // FIRST_LEVEL)
    depth = -(-columns // (parts * step)) * step
    return pitch, block, depth


def _grid(x: Tensor, scale: Tensor | None, zero: Tensor | None) -> tuple[int, int, int, int]:
    steps = []
    for tensor in (scale, zero):
        per_row = tensor is not None and tensor.numel() != 1
        steps += [address_of(tensor, x.shape[0] if per_row else 1), per_row * (4 if tensor is scale else 1)]
    return steps[0], steps[1], steps[2], steps[3]
