"""From accumulators in registers to the output: layouts, halves, and asynchronous copies to global memory.

Accumulators are [rows of x, rows of the weight], so a thread's neighbouring results are neighbours in a row of the
output. The epilogue's functions take tiles of outᵀ; they get a transposed view, which moves no data.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma

from ..launch.gluon_versions import store_tile


@gluon.constexpr_function
def accumulator_layout(rows, columns, width, num_warps):
    """The layout of int32 [rows, columns] in the registers of num_warps: warp groups are stacked, then side by side.

    Each warp has a part of every `width` columns, so that it can extract them from its registers. The compiler refuses
    the instruction's 256 columns for int8; 128 is the maximum.
    """
    row_warps = min(num_warps, rows // 16)
    column_groups = num_warps // row_warps
    part = columns if column_groups == 1 else width // column_groups
    return gl.NVMMADistributedLayout([3, 0], [row_warps, column_groups], [16, min(128, part), 32])


@gluon.jit
def halves(acc):
    """The left and the right half of acc's columns; no data moves."""
    return acc.reshape((acc.shape[0], 2, acc.shape[1] // 2)).permute((0, 2, 1)).split()


@gluon.jit
def turn(acc, n0, m0):
    """(accᵀ, n, m): the transposed view, and the indices of its rows and columns, from n0 and m0 on."""
    turned = acc.permute((1, 0))
    n = n0 + gl.arange(0, turned.shape[0], gl.SliceLayout(1, turned.type.layout))
    m = m0 + gl.arange(0, turned.shape[1], gl.SliceLayout(0, turned.type.layout))
    return turned, n, m


@gluon.jit
def copy_out(values, n0, m0, out_desc, staging):
    """Start copying values to out at row m0 and column n0, in the output's dtype.

    staging is the shared memory for the copy. It is allocated before the warps specialize, so that nothing else uses it
    while a copy still runs.
    """
    tma.store_wait(0)
    staging.store(values.to(out_desc.dtype))
    fence_async_shared()
    store_tile(out_desc, [m0, n0], staging)


@gluon.jit
def partial_pointers(acc, partials_ptr, tile, SPLITS: gl.constexpr):
    """Pointers to split 0's partial of a tile, laid out as acc."""
    ROWS: gl.constexpr = acc.shape[0]
    COLUMNS: gl.constexpr = acc.shape[1]
    i = gl.arange(0, ROWS, gl.SliceLayout(1, acc.type.layout))
    j = gl.arange(0, COLUMNS, gl.SliceLayout(0, acc.type.layout))
    offsets = i[:, None] * COLUMNS + j[None, :]
    return partials_ptr + tile.to(gl.int64) * (SPLITS * ROWS * COLUMNS) + offsets
