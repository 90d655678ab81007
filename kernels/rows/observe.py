"""Statistics for calibration: the extremes of rows, and the counts of a histogram.

    extremes    one pass; a program reads a part of a row and writes its smallest and largest value
    histogram   one pass; a program counts all values it reads, and adds its counts to the total once, at the end

Counts are integers, so their sum does not depend on the order. The host never waits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..blocks.rounding import FLOAT_INFINITY_BITS
from ..launch.launch import Launch
from ..launch.operands import Operand
from ..launch.plans import Plan, launcher

_BLOCK = 4096
#: Blocks per program: more give fewer partial results, fewer fill the GPU with smaller inputs.
_BLOCKS_PER_PROGRAM = 8
#: Bins that one program counts: at least a warp's threads, at most what registers hold. More bins take more programs.
_FEWEST_BINS, _MOST_BINS = 64, 2048
_HISTOGRAM_WARPS = 8


@triton.jit
def extremes_kernel(
    x_ptr,  # float [rows, K], contiguous
    low_ptr,  # float32 [rows, splits]
    high_ptr,  # float32 [rows, splits]
    K,
    splits,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Smallest and largest of BLOCKS · BLOCK values of row program_id(0) // splits; NaN if one of them is NaN."""
    program = tl.program_id(0)
    x_row = x_ptr + (program // splits).to(tl.int64) * K
    start = (program % splits).to(tl.int64) * (BLOCKS * BLOCK)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    bits = tl.full((BLOCK,), 0, tl.int32)
    for block in range(BLOCKS):
        columns = start + block * BLOCK + tl.arange(0, BLOCK)
        inside = columns < K
        x = tl.load(x_row + columns, mask=inside, other=0.0).to(tl.float32)
        # An integer maximum cannot lose a NaN; a floating-point minimum does.
        bits = tl.maximum(bits, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        low = tl.minimum(low, tl.where(inside, x, float("inf")))
        high = tl.maximum(high, tl.where(inside, x, float("-inf")))
    has_nan = tl.max(bits, axis=0) > FLOAT_INFINITY_BITS
    tl.store(low_ptr + program, tl.where(has_nan, float("nan"), tl.min(low, axis=0)))
    tl.store(high_ptr + program, tl.where(has_nan, float("nan"), tl.max(high, axis=0)))


@triton.jit
def histogram_kernel(
    x_ptr,  # float [elements]
    counts_ptr,  # int64 [bins], added to
    inverse_width_ptr,  # float32 [1], a power of two
    origin_ptr,  # int32 [1]
    elements,
    bins,
    BINS: tl.constexpr,  # a power of two
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Counts of trunc(x / width) - origin over BLOCKS · BLOCK elements; values outside go to the first or last bin.

    Program (i, k) counts the i-th part of the elements in the k-th BINS bins.
    """
    start = tl.program_id(0).to(tl.int64) * (BLOCKS * BLOCK)
    inverse_width = tl.load(inverse_width_ptr)
    origin = tl.load(origin_ptr)
    lowest, highest = origin.to(tl.float32), (origin + bins - 1).to(tl.float32)
    first = tl.program_id(1) * BINS
    counts = tl.zeros((BINS,), tl.int32)
    for block in range(BLOCKS):
        offsets = start + block * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < elements
        place = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) * inverse_width
        # Clamp before the cast, which is undefined beyond int32. The cast truncates towards zero, as it must.
        place = tl.where(place == place, tl.minimum(tl.maximum(place, lowest), highest), lowest)
        bin = place.to(tl.int32) - origin - first
        counts += tl.histogram(bin, BINS, mask=inside & (bin >= 0) & (bin < BINS))
    columns = first + tl.arange(0, BINS)
    tl.atomic_add(
        counts_ptr + columns, counts.to(tl.int64), mask=(columns < bins) & (counts > 0), sem="relaxed"
    )


@launcher
def extremes(x: Operand, rows: int) -> Plan:
    """x float, `rows` rows of at least one element → smallest and largest of each, float32 [rows]."""
    columns = x.numel() // rows
    block = min(triton.next_power_of_2(columns), _BLOCK)
    blocks = min(triton.cdiv(columns, block), _BLOCKS_PER_PROGRAM)
    splits = triton.cdiv(columns, block * blocks)
    low = x.new_empty(rows, splits, dtype=torch.float32)
    high = x.new_empty(rows, splits, dtype=torch.float32)
    launch = Launch(
        extremes_kernel,
        (rows * splits,),
        _readable(x),
        low,
        high,
        columns,
        splits,
        BLOCKS=blocks,
        BLOCK=block,
        num_warps=max(1, min(8, block // 512)),
        enable_fp_fusion=False,
    )
    lowest = low.computed(lambda low: low.amin(dim=1), (rows,))
    highest = high.computed(lambda high: high.amax(dim=1), (rows,))
    return Plan((lowest, highest), launch)


@launcher
def histogram(x: Operand, counts: Operand, inverse_width: Operand, origin: Operand) -> Plan:
    """x float, any shape; counts int64 [bins] → counts plus those of x; see the reference."""
    total = counts.computed(Tensor.clone)
    elements, bins = x.numel(), counts.numel()
    if elements == 0:
        return Plan(total)
    blocks = min(triton.cdiv(elements, _BLOCK), _BLOCKS_PER_PROGRAM)
    bins_at_once = max(_FEWEST_BINS, min(triton.next_power_of_2(bins), _MOST_BINS))
    launch = Launch(
        histogram_kernel,
        (triton.cdiv(elements, _BLOCK * blocks), triton.cdiv(bins, bins_at_once)),
        _readable(x),
        total,
        inverse_width,
        origin,
        elements,
        bins,
        BINS=bins_at_once,
        BLOCKS=blocks,
        BLOCK=_BLOCK,
        num_warps=_HISTOGRAM_WARPS,
        enable_fp_fusion=False,
    )
    return Plan(total, launch)


def _readable(x: Operand) -> Operand:
    """Contiguous, of a dtype that kernels read: float64 is observed in float32."""
    if x.dtype == torch.float64:
        return x.computed(lambda x: x.float().contiguous(), dtype=torch.float32)
    return x.contiguous()
