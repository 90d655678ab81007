"""Launching the weight-only kernel of this folder (weight_only_kernel.py)."""

from __future__ import annotations

import torch

from ..blocks.split_k import workspace
from ..config.hopper_weight_only_shapes import (
    BLOCK_N,
    consumer_registers,
    programs_per_multiprocessor,
    rings_of,
    slab_width_in_kernel,
)
from ..config.tile import TileConfig
from ..launch.descriptors import is_addressable
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.target import Target
from .tile_descriptors import tile_descriptor
from .weight_only_kernel import weight_only_matmul_kernel


def hopper_launch(
    x: Operand,
    w: Operand,
    scale: Operand,
    zero_point: Operand | None,
    bias: Operand | None,
    out: Operand,
    group_size: int,
    slab_width: int,
    config: TileConfig,
    target: Target,
) -> Launch:
    """Compute ../weight_only_matmul.py's product into out [M, N]; all but bias and out addressable."""
    (rows, columns), features, groups = x.shape, w.shape[0], scale.shape[0]
    x = _addressable_rows(x)
    slabs = 4 if w.element_size() == 2 else 1
    rings, step = rings_of(config), config.block_k
    one_scale = groups == 1
    tiles = config.tiles(features, rows)
    pieces = tiles * config.splits
    # The two groups of consumer warps exchange the partial sums of their halves each by itself.
    partials, counters = workspace(x, torch.float32, config.splits, 2 * tiles, BLOCK_N // 2 * config.block_m)
    groups_of_step = max(1, step // group_size)
    return Launch(
        weight_only_matmul_kernel,
        (min(pieces, target.multiprocessors * programs_per_multiprocessor(config)),),
        tile_descriptor(x, config.block_m, rings.x_columns),
        tile_descriptor(w, BLOCK_N, 128 // w.element_size()),
        None if one_scale else tile_descriptor(scale, groups_of_step, BLOCK_N, swizzled=False),
        None
        if one_scale or zero_point is None
        else tile_descriptor(zero_point, groups_of_step, BLOCK_N, swizzled=False),
        scale if one_scale else None,
        zero_point if one_scale else None,
        bias,
        out,
        partials,
        counters,
        rows,
        features,
        -(-columns // step),
        group_size,
        SLAB=slab_width_in_kernel(slabs, slab_width, groups, group_size),
        SPLITS=config.splits,
        W_STAGES=rings.w_stages,
        X_STAGES=rings.x_stages,
        CONSUMER_REGISTERS=consumer_registers(config),
        GROUP=8,
        num_warps=4,
        maxnreg=config.max_registers,
        launch_pdl=True,
        enable_fp_fusion=True,
    )


def _addressable_rows(x: Operand) -> Operand:
    """x [M, K], or a copy of it where the copy engine cannot reach its rows; K · 2 bytes are a multiple of 16."""
    rows, columns = x.shape
    if rows == 1:
        x = x.with_row_stride(columns)  # a stride that is never taken may be anything
    if is_addressable(x) and x.stride(0) >= columns:
        return x
    return x.computed(lambda x: x.clone(memory_format=torch.contiguous_format))
