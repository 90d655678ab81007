"""The gradient of x through a packed INT4 or INT8 weight: dX [M, K] = dY [M, N] · dequantized W [N, K].

A frozen base never exists in float: a tile of the weight is read packed, turned into dY's dtype in registers, scale and
zero point applied, and multiplied. The scales go with n, which is summed over here: they cannot wait for the partial
products as in the forward pass. So an element of the weight is rounded once to dY's dtype, as it is when a
float weight in that dtype is multiplied.

One block of the layout `int4_words` is four slabs side by side, so that a tile [BLOCK_N, SLAB] of words becomes a tile
[BLOCK_N, 4 · SLAB] of W; layout `int8` is taken in as many slabs as make a tile of the same kind. Each slab lies in one
group. The layouts are drawn in tritonq/numerics/slabs.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..blocks.split_k import sum_of_splits, workspace
from ..config.choose import configured
from ..config.problem import Problem, WeightOnlyGradient
from ..config.tile import TileConfig, tile_of_program
from ..config.weight_only_gradient_rule import choose_config
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher
from ..launch.target import operand_dtype, target_of

#: A float32 with these bits and an integer n < 2^23 in the lowest ones is 2^23 + n: a conversion without a conversion.
FLOAT_2_23_BITS = tl.constexpr(0x4B000000)
FLOAT_2_23 = tl.constexpr(8388608.0)
_INT8_TILE_COLUMNS = 128


@triton.jit
def weight_only_gradient_kernel(
    dy_ptr,  # float [M, N], row stride stride_dy
    w_ptr,  # int16 or int8 words [N, stride_w]
    scale_ptr,  # float [G, N]
    zero_ptr,  # int8 [G, N], or None for 0
    dx_ptr,  # dY's dtype [M, K]
    partials_ptr,  # float32 [tiles, SPLITS, BLOCK_M, SLABS · SLAB], or None
    counters_ptr,  # int32 [tiles], or None
    M,
    N,
    K,
    stride_dy,
    stride_w,
    stored_columns,  # of a row of the weight, padding included
    groups,
    group_size,
    padded_group,  # columns that a group takes in the weight's layout
    SLAB: tl.constexpr,
    SLABS: tl.constexpr,  # per tile; 4 for int4
    IS_INT4: tl.constexpr,
    GROUPS_ARE_PADDED: tl.constexpr,
    OPERAND: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # summed over in one step
    GROUP: tl.constexpr,
):
    """One [BLOCK_M, SLABS · SLAB] tile of dX, or one split of it."""
    BLOCK_K: tl.constexpr = SLABS * SLAB
    tile = tl.program_id(0)
    split = tl.program_id(1)
    tile_k, tile_m = tile_of_program(tile, stored_columns, M, BLOCK_K, BLOCK_M, GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    dy_rows = dy_ptr + (m % M).to(tl.int64)[:, None] * stride_dy  # [BLOCK_M, 1]
    # Columns of nothing but padding lie behind the last group: any scale will do there.
    group = tl.minimum((tile_k * SLABS + tl.arange(0, SLABS)) * SLAB // padded_group, groups - 1)

    steps = tl.cdiv(tl.cdiv(N, BLOCK_N), SPLITS)
    first = split * steps * BLOCK_N
    last = tl.minimum(first + steps * BLOCK_N, N)
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        n_wrapped = n % N
        dy = tl.load(dy_rows + n[None, :], mask=(n < N)[None, :], other=0.0)  # [BLOCK_M, BLOCK_N]
        w_rows = w_ptr + n_wrapped.to(tl.int64)[:, None] * stride_w  # [BLOCK_N, 1]
        if IS_INT4:
            words = tl.load(w_rows + tile_k * SLAB + tl.arange(0, SLAB)[None, :]).to(tl.int32)
            fields = (words[:, None, :] >> (4 * tl.arange(0, SLABS))[None, :, None]) & 0xF
            offset = FLOAT_2_23 + 8.0
        else:
            words = tl.load(w_rows + column[None, :], mask=(column < stride_w)[None, :], other=0)
            fields = tl.reshape((words.to(tl.int32) & 0xFF) ^ 0x80, (BLOCK_N, SLABS, SLAB))
            offset = FLOAT_2_23 + 128.0
        places = group[None, :] * N + n_wrapped[:, None]  # [BLOCK_N, SLABS]
        scale = tl.load(scale_ptr + places).to(tl.float32)
        if zero_ptr is not None:
            offset = offset + tl.load(zero_ptr + places).to(tl.float32)[:, :, None]
        w = ((fields | FLOAT_2_23_BITS).to(tl.float32, bitcast=True) - offset) * scale[:, :, None]
        w = tl.reshape(w.to(OPERAND), (BLOCK_N, BLOCK_K))
        acc = tl.dot(
            dy.to(OPERAND), w, acc, input_precision="ieee"
        )  # [BLOCK_M, BLOCK_N] @ [BLOCK_N, BLOCK_K]

    m_inside = m < M
    if SPLITS > 1:
        acc, is_last = sum_of_splits(acc, partials_ptr, counters_ptr, tile, split, SPLITS)
        m_inside = m < tl.where(is_last, M, 0)
    k = column
    k_inside = column < K
    if GROUPS_ARE_PADDED:
        within = column % padded_group
        k = column // padded_group * group_size + within
        k_inside = (within < group_size) & (k < K)
    dx_ptrs = dx_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(dx_ptrs, acc.to(dx_ptr.dtype.element_ty), mask=m_inside[:, None] & k_inside[None, :])


@launcher
def weight_only_gradient(
    dy: Operand,
    w: Operand,
    scale: Operand,
    zero_point: Operand | None,
    columns: int,
    group_size: int,
    padded_group: int,
    slab_width: int,
    config: TileConfig | None = None,
) -> Plan:
    """dY [M, N] · dequantized w → [M, K] of dY's dtype.

    Args:
        dy: float [M, N].
        w: int16 words [N, ·] of layout `int4_words`, or int8 [N, ·] of layout `int8`.
        scale: float [G, N], contiguous.
        zero_point: int8 [G, N], contiguous, or None for 0.
        columns: K.
        group_size, padded_group, slab_width: of the weight's layout.
        config: tile shape, block_n being what one step sums over; None chooses.
    """
    rows, features = dy.shape
    groups = scale.shape[0]
    if dy.stride(-1) != 1:
        dy = dy.contiguous()
    dx = dy.new_empty(rows, columns, dtype=dy.dtype)
    if rows == 0:
        return Plan(dx)
    is_int4 = w.dtype == torch.int16
    slabs = 4
    if not is_int4:
        slab_width, slabs = _int8_slabs(padded_group, groups)
    stored_columns = w.shape[1] * (4 if is_int4 else 1)
    target = target_of(dy)
    tiles_k = triton.cdiv(stored_columns, slabs * slab_width)
    if config is None:
        config = configured(
            Problem(WeightOnlyGradient(slabs, slab_width, str(dy.dtype)), rows, features, stored_columns),
            target,
            lambda: choose_config(target, rows, features, tiles_k, slabs * slab_width, dy.element_size()),
        )
    tiles = tiles_k * triton.cdiv(rows, config.block_m)
    tile_elements = config.block_m * slabs * slab_width
    partials, counters = workspace(dy, torch.float32, config.splits, tiles, tile_elements)
    launch = Launch(
        weight_only_gradient_kernel,
        (tiles, config.splits),
        dy,
        w,
        scale,
        zero_point,
        dx,
        partials,
        counters,
        rows,
        features,
        columns,
        dy.stride(0),
        w.shape[1],
        stored_columns,
        groups,
        group_size,
        padded_group,
        SLAB=slab_width,
        SLABS=slabs,
        IS_INT4=is_int4,
        GROUPS_ARE_PADDED=groups > 1 and padded_group != group_size,
        OPERAND=operand_dtype(dy),
        SPLITS=config.splits,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        GROUP=8,
        enable_fp_fusion=True,
        **config.launch_options,
    )
    return Plan(dx, launch)


def _int8_slabs(padded_group: int, groups: int) -> tuple[int, int]:
    """(columns of a slab, slabs of a tile) of layout `int8`: a slab is the largest power of two in a group."""
    if groups == 1:
        return min(_INT8_TILE_COLUMNS, max(16, triton.next_power_of_2(padded_group))), 1
    width = min(_INT8_TILE_COLUMNS, padded_group & -padded_group)
    return width, _INT8_TILE_COLUMNS // width
