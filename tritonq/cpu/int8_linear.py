"""int8 × int8 on a CPU, torch tensors in and out: from floats or codes to floats, codes or int32 sums.

x is first written to scratch as the product wants it (bytes or int16, with an offset or without, rows apart), by the
kernel that quantizes it or one that copies codes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tritonq.cpu.elements import Int8Dot
from tritonq.cpu.engine import Engine, scratch
from tritonq.cpu.int8 import MOST_BLOCK, Int8Product, int8_product
from tritonq.cpu.processor import Instructions
from tritonq.cpu.quantize import Quantization, Rewriting, quantize_rows, rewrite_codes

NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int8: "int8",
    torch.int32: "int32",
}
_FIRST_LEVEL, _SECOND_LEVEL = 28 << 10, 512 << 10
_LINE = 64
#: Rows at multiples of this distance share their places in a first-level cache.
_CONFLICT = 1024


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
    codes = _Codes(engine, x, weight)
    codes.quantize(symmetric)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype)
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
    codes = _Codes(engine, x, weight)
    codes.rewrite()
    out = torch.empty(x.shape[0], weight.shape[0], dtype=dtype)
    grid = _grid(x, x_scale, x_zero)
    _multiply(codes, grid, weight, weight_scale, weight_zero, weight_sum, bias, out)
    return out


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
    codes = _Codes(engine, x, weight)
    codes.rewrite()
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.int8)
    grid, out_grid = _grid(x, x_scale, x_zero), (out_scale, out_zero, -127 if symmetric else -128, relu)
    _multiply(codes, grid, weight, weight_scale, weight_zero, weight_sum, bias, out, out_grid)
    return out


def accumulate(
    engine: Engine,
    x: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_zero: Tensor | None,
    weight_sum: Tensor,
) -> Tensor:
    """Σ_k (x - x_zero)(w - w_zero) → int32 [M, N], as `reference.int8_accumulate`."""
    codes = _Codes(engine, x, weight)
    codes.rewrite()
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.int32)
    _multiply(codes, _grid(x, None, x_zero), weight, None, weight_zero, weight_sum, None, out)
    return out


class _Codes:
    """x's codes in scratch, and what was found of each row: addresses of its scale, sum and zero point."""

    def __init__(self, engine: Engine, x: Tensor, weight: Tensor) -> None:
        self.engine, self.x = engine, plain_rows(x)
        rows, columns = self.x.shape
        if weight.shape[1] < columns:
            raise ValueError(f"weight must have at least {columns} columns, found {weight.shape[1]}")
        self.dot = dot = _dot(engine.instructions)
        self.pitch, self.block, self.depth = _sizes(rows, weight.shape[1], dot.x_bits // 8, dot.columns)
        self.address = scratch.take(rows * (self.pitch + 9) + 2 * _LINE)
        self.scale = self.address + rows * self.pitch + _LINE
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
    out_grid: tuple[Tensor, Tensor, int, bool] | None = None,
) -> None:
    """Fill `out`. grid: address and step of x's scales, address (0: none) and step of its zero points."""
    rows, columns = codes.x.shape
    features = weight.shape[0]
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    out_scale, out_zero, low, relu = out_grid or (None, None, -128, False)
    what = Int8Product(
        "" if weight_scale is None else NAMES[weight_scale.dtype],
        None if bias is None else NAMES[bias.dtype],
        grid[2] != 0,
        weight_zero is not None,
        NAMES[out.dtype],
        low,
        relu,
    )
    codes.engine.kernel(int8_product, what)(
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


@functools.cache
def _dot(instructions: Instructions) -> Int8Dot:
    return Int8Dot(instructions)


@functools.lru_cache(maxsize=4096)
def _sizes(rows: int, columns: int, size: int, step: int) -> tuple[int, int, int]:
    """(bytes between rows of x in scratch, rows of a block, columns of a part of K); see int8.py."""
    pitch = -(-columns // _LINE) * _LINE * size
    if pitch % _CONFLICT == 0:
        pitch += _LINE
    block = max(6, min(MOST_BLOCK, _SECOND_LEVEL // pitch // 6 * 6))
    tile = columns * (4 + size * (rows if rows <= 8 else 6))
    parts = 1 if rows <= 2 else -(-tile // _FIRST_LEVEL)
    depth = -(-columns // (parts * step)) * step
    return pitch, block, depth


def _grid(x: Tensor, scale: Tensor | None, zero: Tensor | None) -> tuple[int, int, int, int]:
    steps = []
    for tensor in (scale, zero):
        per_row = tensor is not None and tensor.numel() != 1
        steps += [address_of(tensor, x.shape[0] if per_row else 1), per_row * (4 if tensor is scale else 1)]
    return steps[0], steps[1], steps[2], steps[3]


def plain_rows(x: Tensor) -> Tensor:
    """x [M, K] such that its rows can be read at its address."""
    if x.dim() != 2:
        raise ValueError(f"x must be [rows, columns], found shape {list(x.shape)}")
    return x if x.stride(1) == 1 and not x.is_neg() else x.contiguous().resolve_neg()


def address_of(tensor: Tensor | None, count: int) -> int:
    """Where `count` dense numbers lie, 0 for None."""
    if tensor is None:
        return 0
    if tensor.numel() != count or not tensor.is_contiguous():
        raise ValueError(f"expected {count} numbers in a row, found shape {list(tensor.shape)}")
    return tensor.data_ptr()
