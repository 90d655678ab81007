"""int8 × int4 on a CPU, torch tensors in and out; x's codes are first moved to the slabs' columns, summed by group."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.cpu.engine import Engine, scratch
from tritonq.cpu.int4_int8 import FEW, FEW_SLAB, Int4Int8Product, int4_int8_product
from tritonq.cpu.quantize import Quantization, quantize_rows
from tritonq.cpu.spread import Spreading, spread_codes
from tritonq.cpu.tensors import LINE, MOST_ROWS, NAMES, address_of, apart, per_group, plain_rows
from tritonq.numerics.slabs import SlabLayout


def int4_int8_linear_dynamic(
    engine: Engine, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, layout: SlabLayout
) -> Tensor:
    """As the operator of this name (tritonq/ops/int4.py)."""
    if x.shape[0] > MOST_ROWS:
        operands = (weight, weight_scale, bias, layout)
        return torch.cat([int4_int8_linear_dynamic(engine, part, *operands) for part in x.split(MOST_ROWS)])
    x = plain_rows(x)
    rows, columns = x.shape
    pitch = apart(columns)
    needed = rows * (pitch + 9) + LINE
    codes = scratch.take(needed + _spread_bytes(rows, layout))
    scale, sums, zero = (codes + rows * (pitch + offset) for offset in (0, 4, 8))
    places = (x.data_ptr(), x.stride(0) * x.element_size(), codes, pitch, scale, zero, sums)
    engine.kernel(quantize_rows, Quantization(NAMES[x.dtype], True))(rows * columns, rows, columns, *places)
    out = torch.empty(rows, weight.shape[0], dtype=x.dtype)
    _multiply(engine, codes, pitch, scale, codes + needed, weight, weight_scale, bias, layout, out)
    return out


def int4_int8_linear(
    engine: Engine,
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    layout: SlabLayout,
    dtype: torch.dtype,
) -> Tensor:
    """As the operator of this name (tritonq/ops/int4.py)."""
    if x.shape[0] > MOST_ROWS:
        parts = zip(x.split(MOST_ROWS), x_scale.split(MOST_ROWS), strict=True)
        operands = (weight, weight_scale, bias, layout, dtype)
        return torch.cat([int4_int8_linear(engine, codes, scale, *operands) for codes, scale in parts])
    x = plain_rows(x)
    rows = x.shape[0]
    out = torch.empty(rows, weight.shape[0], dtype=dtype)
    place = (x.data_ptr(), x.stride(0), address_of(x_scale, rows), scratch.take(_spread_bytes(rows, layout)))
    _multiply(engine, *place, weight, weight_scale, bias, layout, out)
    return out


def _spread_bytes(rows: int, layout: SlabLayout) -> int:
    """Scratch that `_multiply` takes."""
    return rows * (apart(layout.columns) + 4 * layout.groups) + 2 * LINE


def _whole_blocks(layout: SlabLayout) -> bool:
    """Whether slabs are as wide as those of few rows, and no block of two slabs lies in two groups."""
    return layout.slab_width == FEW_SLAB and (layout.groups == 1 or layout.padded_group % (2 * FEW_SLAB) == 0)


def _multiply(
    engine: Engine,
    codes: int,
    pitch: int,
    x_scale: int,
    free: int,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    layout: SlabLayout,
    out: Tensor,
) -> None:
    """Fill `out`, from the addresses of x's codes and scales and of free memory."""
    rows, features = out.shape
    groups, spread_pitch = layout.groups, apart(layout.columns)
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    spread = (free + LINE - 1) & -LINE
    sums = spread + rows * spread_pitch
    engine.kernel(spread_codes, Spreading())(
        rows * layout.columns,
        rows,
        layout.in_features,
        groups,
        layout.group_size,
        layout.padded_group,
        codes,
        pitch,
        spread,
        spread_pitch,
        layout.columns,
        sums,
    )
    what = Int4Int8Product(
        layout.slab_width,
        NAMES[weight_scale.dtype],
        None if bias is None else NAMES[bias.dtype],
        groups > 1,
        NAMES[out.dtype],
        rows <= FEW and _whole_blocks(layout),
    )
    engine.kernel(int4_int8_product, what)(
        rows * features * layout.in_features,
        rows,
        features,
        groups,
        layout.columns // (2 * layout.slab_width),
        (layout.columns if groups == 1 else layout.padded_group) // layout.slab_width,
        spread,
        spread_pitch,
        x_scale,
        sums,
        weight.data_ptr(),
        weight.stride(0),
        *per_group(weight_scale, groups, features),
        address_of(bias, features),
        out.data_ptr(),
    )
