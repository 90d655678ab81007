"""Floats × int8 or int4 on a CPU, torch tensors in and out; x is first widened to float32, in the slabs' columns."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.cpu.engine import Engine, scratch
from tritonq.cpu.spread import Widening, widen_rows
from tritonq.cpu.tensors import LINE, MOST_ROWS, NAMES, address_of, apart, block_of, per_group, plain_rows
from tritonq.cpu.weight_only import FEW, MOST_BLOCK, WeightOnlyProduct, weight_only_product
from tritonq.numerics.slabs import SlabLayout


def weight_only_linear(
    engine: Engine,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    layout: SlabLayout,
    dtype: torch.dtype,
) -> Tensor:
    """As the operator of this name (tritonq/ops/weight_only.py), without an activation, in `dtype`."""
    if x.shape[0] > MOST_ROWS:
        operands = (weight, weight_scale, weight_zero, bias, layout, dtype)
        return torch.cat([weight_only_linear(engine, part, *operands) for part in x.split(MOST_ROWS)])
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    out = torch.empty(x.shape[0], weight.shape[0], dtype=dtype)
    _multiply(engine, plain_rows(x), weight, weight_scale, weight_zero, bias, layout, out)
    return out


def _multiply(
    engine: Engine,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    layout: SlabLayout,
    out: Tensor,
) -> None:
    """Fill `out` [M, N], dense."""
    rows, columns = x.shape
    features, groups = weight.shape[0], layout.groups
    pitch = apart(4 * layout.columns)
    floats = scratch.take(rows * pitch + LINE)
    engine.kernel(widen_rows, Widening(NAMES[x.dtype]))(
        rows * columns,
        rows,
        columns,
        groups,
        layout.group_size,
        layout.padded_group,
        x.data_ptr(),
        x.stride(0) * x.element_size(),
        floats,
        pitch,
        layout.columns,
    )
    few = rows <= FEW
    what = WeightOnlyProduct(
        layout.form,
        layout.slab_width,
        NAMES[weight_scale.dtype],
        None if bias is None else NAMES[bias.dtype],
        weight_zero is not None,
        groups > 1,
        NAMES[out.dtype],
        few,
    )
    engine.kernel(weight_only_product, what)(
        rows * features * columns,
        rows,
        features,
        groups,
        layout.columns // (layout.slab_width * layout.slabs_per_block),
        layout.padded_group // layout.slab_width,
        FEW if few else block_of(rows, MOST_BLOCK),
        floats,
        pitch,
        weight.data_ptr(),
        weight.stride(0) * weight.element_size(),
        *per_group(weight_scale, groups, features),
        *per_group(weight_zero, groups, features),
        address_of(bias, features),
        out.data_ptr(),
    )
