"""Fake quantization for training: rounds to the grid of the deployed integers and back, and lets the gradient through.

    v    = fl(x · (1/scale))                 as `qparams.quantize` has it; NaN counts as 0
    code = clamp(rint(v) + zero)
    y    = (code - zero) · scale             in float32, rounded once to x's dtype

The codes equal those of `qparams.quantize`. The gradients treat rint as the identity. "Inside" means that the
unclamped code rint(v) + zero lies in [qmin, qmax]:

                 inside                        outside
    dy/dx        1                             0
    dy/dscale    (code - zero) - v             clamped code - zero
    dy/dzero     0                             -scale

dy/dscale is Esser et al., "Learned Step Size Quantization", 2020, eq. 3; dy/dzero is Bhalgat et al., "LSQ+", 2020,
eq. 6, with codes shifted by the zero point instead of values by an offset.
Both are summed over the elements that share a scale and multiplied by a gradient factor, 1/√(elements · qmax) in the
first paper. The factor keeps a scale from learning faster than its weights.

A learned zero point is a float. It is rounded and clamped to [qmin, qmax]; its gradient ignores both steps.

This is the CPU backend, and the oracle of the kernels in `kernels/rows/fake_quantize.py`. R rows, C columns, one
scale per `group_size` columns: scale and zero point are [R or 1, G], G = ceil(C / group_size).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq import reference
from tritonq.numerics import qparams

#: A tile of a kernel covers this many columns at most.
MOST_TILE_COLUMNS = 1024
_BITS = 8
#: Bytes of an int64, the lowest first: ones at bits 7, 14, …, 56; ones at bits 0, 8, …; bit i of byte i.
_GATHER_BITS = 0x0102040810204080
_REPEAT_BYTE = 0x0101010101010101
_DIAGONAL_BITS = 0x8040201008040201 - (1 << 64)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, qmin: int, qmax: int
) -> Tensor:
    """Quantize and dequantize.

    Args:
        x: float [R, C].
        scale: float [R or 1, G], > 0.
        zero_point: of scale's shape, integers in any dtype or learned floats; None for 0.
        group_size: columns per scale.
        qmin, qmax: the code range, within [-128, 127].

    Returns:
        [R, C] of x's dtype.
    """
    return _rounded(x, scale, zero_point, group_size, qmin, qmax)[0]


def fake_quantize_with_mask(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """`fake_quantize` and `inside_range` in one go; arguments as there."""
    return _rounded(x, scale, zero_point, group_size, qmin, qmax)


def inside_range(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, qmin: int, qmax: int
) -> Tensor:
    """bool [R, C]: where the unclamped code lies in [qmin, qmax]; arguments as `fake_quantize`."""
    return _rounded(x, scale, zero_point, group_size, qmin, qmax)[1]


def gradients(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int,
    qmin: int,
    qmax: int,
    gradient_factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three gradients of the table above.

    Args:
        dy: [R, C], the gradient of y.
        gradient_factor: multiplies the gradients of scale and zero point.
        the others: as `fake_quantize`.

    Returns:
        dx [R, C] of x's dtype; dscale and dzero float32, of scale's shape.
    """
    columns = x.shape[1]
    column_scale, zero = _per_column(scale, zero_point, columns, group_size, qmin, qmax)
    v = _scaled(x, column_scale)
    rounded = torch.round(v)
    inside = _is_inside(rounded, zero, qmin, qmax)
    dx = torch.where(inside, dy, torch.zeros_like(dy)).to(x.dtype)
    clamped = qparams.quantize(x, column_scale, zero, qmin, qmax).float()
    if zero is not None:
        clamped = clamped - zero
    gradient = dy.float()
    by_scale = gradient * torch.where(inside, rounded - v, clamped)
    dscale = _sum_per_scale(by_scale, scale.shape, group_size) * gradient_factor
    clipped = torch.where(inside, torch.zeros_like(gradient), gradient)
    dzero = _sum_per_scale(clipped, scale.shape, group_size) * (-gradient_factor * scale.float())
    return dx, dscale, dzero


def fake_quantize_per_token(x: Tensor, symmetric: bool) -> Tensor:
    """Each row of x [R, C] on the grid of `reference.quantize_per_token`; a row that is not finite becomes NaN."""
    return qparams.dequantize(*reference.quantize_per_token(x, symmetric), x.dtype)


def tile_columns(group_size: int) -> int:
    """Columns of a kernel's tile: a power of two ≥ 8; one tile never spans two groups."""
    return max(_BITS, min(MOST_TILE_COLUMNS, 1 << (group_size - 1).bit_length()))


def tiles_per_group(group_size: int) -> int:
    """Tiles side by side that cover a group."""
    return -(-group_size // tile_columns(group_size))


def mask_shape(rows: int, groups: int, group_size: int) -> tuple[int, int]:
    """Shape of a packed mask: uint8 [R, bytes], one bit per column of each tile, padding included."""
    return rows, groups * tiles_per_group(group_size) * tile_columns(group_size) // _BITS


def pack_mask(mask: Tensor, groups: int, group_size: int) -> Tensor:
    """bool [R, C] → uint8 [R, bytes]: bit i of a byte is column 8 · byte + i of the padded row; padding is 0."""
    rows, columns = mask.shape
    padded_group = tiles_per_group(group_size) * tile_columns(group_size)
    padded = torch.nn.functional.pad(mask, (0, groups * group_size - columns))
    padded = torch.nn.functional.pad(padded.reshape(rows, groups, group_size), (0, padded_group - group_size))
    # Eight bytes of 0 or 1 are one int64. The product moves the 1 of byte i to bit 56 + i; no two terms collide.
    eights = padded.contiguous().view(torch.int64) * _GATHER_BITS
    return (eights >> 56).to(torch.uint8).reshape(mask_shape(rows, groups, group_size))


def unpack_mask(packed: Tensor, columns: int, groups: int, group_size: int) -> Tensor:
    """The inverse of `pack_mask`: bool [R, C]."""
    rows = packed.shape[0]
    padded_group = tiles_per_group(group_size) * tile_columns(group_size)
    # Repeat every byte eight times; copy i keeps bit i.
    spread = packed.to(torch.int64) * _REPEAT_BYTE & _DIAGONAL_BITS
    bits = spread.contiguous().view(torch.uint8).reshape(rows, groups, padded_group)
    return bits[:, :, :group_size].reshape(rows, groups * group_size)[:, :columns] != 0


def _per_column(
    scale: Tensor, zero_point: Tensor | None, columns: int, group_size: int, qmin: int, qmax: int
) -> tuple[Tensor, Tensor | None]:
    """Scale, and the zero point as rounded and clamped float32, broadcastable against [R, C]."""
    zero = None
    if zero_point is not None:
        rounded = torch.round(zero_point.float()).clamp(qmin, qmax)
        zero = qparams.expand_groups(rounded, columns, group_size)
    return qparams.expand_groups(scale, columns, group_size), zero


def _rounded(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """(`fake_quantize`, `inside_range`); the codes are those of `qparams.quantize`, kept as floats."""
    column_scale, zero = _per_column(scale, zero_point, x.shape[1], group_size, qmin, qmax)
    rounded = _scaled(x, column_scale).round_()
    if zero is None:
        clamped = rounded.clamp(qmin, qmax)
    else:
        clamped = torch.clamp(rounded, qmin - zero, qmax - zero)
    inside = clamped == rounded
    # Adding 0 turns -0 into 0, the only zero that integers have.
    return clamped.add_(0.0).mul_(column_scale.float()).to(x.dtype), inside


def _scaled(x: Tensor, column_scale: Tensor) -> Tensor:
    return (x.float() * qparams.inverse(column_scale)).nan_to_num_(0.0, torch.inf, -torch.inf)


def _is_inside(rounded: Tensor, zero: Tensor | None, qmin: int, qmax: int) -> Tensor:
    code = rounded if zero is None else rounded + zero
    return (code >= qmin) & (code <= qmax)


def _sum_per_scale(terms: Tensor, shape: torch.Size, group_size: int) -> Tensor:
    """Sum [R, C] to the scale's shape [R or 1, G]."""
    rows, columns = terms.shape
    groups = shape[1]
    if groups == 1:
        sums = terms.sum(dim=1, keepdim=True)
    else:
        padded = torch.nn.functional.pad(terms, (0, groups * group_size - columns))
        sums = padded.reshape(rows, groups, group_size).sum(dim=2)
    return sums if shape[0] == rows else sums.sum(dim=0, keepdim=True)
