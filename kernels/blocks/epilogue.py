"""What follows an int8 product on its way out, shared by the kernels that have one; see docs/numerics.md.

All tiles are [BLOCK_N, BLOCK_M], of outᵀ. Vectors are loaded before anything is done to a tile: later, they cost
more registers. Kernels that use this file are launched with `enable_fp_fusion=False`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .rounding import to_code

#: Below this the smooth activations are 0 in float32; at -Inf their formulas would give NaN.
_LOWEST = tl.constexpr(-128.0)
_ROOT_HALF = tl.constexpr(0.7071067811865476)
_TWICE_ROOT_TWO_OVER_PI = tl.constexpr(1.5957691216057308)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """float32 none, relu, gelu (through erf), gelu_tanh or silu of y; -Inf gives 0, NaN stays NaN."""
    if ACTIVATION == "relu":
        y = tl.where(y < 0.0, 0.0, y)
    elif ACTIVATION != "none":
        y = tl.where(y < _LOWEST, _LOWEST, y)
        if ACTIVATION == "gelu":
            y = 0.5 * y * (1.0 + tl.math.erf(y * _ROOT_HALF))
        elif ACTIVATION == "gelu_tanh":  # (1 + tanh u) / 2 = sigmoid(2u)
            y = y * sigmoid((y + 0.044715 * (y * y * y)) * _TWICE_ROOT_TWO_OVER_PI)
        else:
            tl.static_assert(ACTIVATION == "silu")
            y = y * sigmoid(y)
    return y


@triton.jit
def sigmoid(u):
    """1 / (1 + e⁻ᵘ): where e⁻ᵘ overflows the quotient is 0, as it should be."""
    return 1.0 / (1.0 + tl.exp(-u))


class Columns(NamedTuple):
    """What belongs to the columns of a tile of outᵀ, which are rows of x: pointers, or values where STRIDE is None."""

    scale: Any  # float32 [M] (STRIDE 1) or [1] (STRIDE 0); or values [1, BLOCK_M]
    zero: Any  # int8 alike, or values int32; None for 0
    STRIDE: Any


class Weight(NamedTuple):
    """Pointers to what belongs to the rows of an int8 weight."""

    scale_ptr: Any  # float [N]
    zero_ptr: Any  # int8 [N], or None for 0
    sum_ptr: Any  # int32 [N], the sum of each row's codes
    bias_ptr: Any  # float [N], or None


class Residual(NamedTuple):
    """What is added to a product."""

    ptr: Any  # float or int8 [M, N], or None
    scale_ptr: Any  # float32 [1] of an int8 residual, or None
    zero_ptr: Any  # int8 [1], or None for 0
    stride: Any  # of a row


class Output(NamedTuple):
    """What becomes of a float32 result."""

    scale_ptr: Any  # float32 [1], or None for float output
    zero_ptr: Any  # int8 [1], or None for float output
    QMIN: Any  # of the codes
    ACTIVATION: Any  # comes first


class Place(NamedTuple):
    """Where a tile of outᵀ lies: its rows n and columns m, and the sizes of the product."""

    n: Any
    m: Any
    N: Any
    M: Any
    K: Any


@triton.jit
def finished(acc, up_acc, x, w, up, residual, out, place):
    """What is stored of int32 acc = Σ x·(w - w_zero): int8 or float32.

    up_acc: the same of a second weight `up`, whose product activation(x · wᵀ) is multiplied by; None without one.
    """
    acc = subtract_x_zero(acc, x, w, place)
    if up is not None:
        up_acc = subtract_x_zero(up_acc, x, up, place)
    IS_LINEAR: tl.constexpr = out.ACTIVATION == "none" or out.ACTIVATION == "relu"
    if out.scale_ptr is not None and residual.ptr is None and up is None and IS_LINEAR:
        values = activate(scale_and_bias_to_grid(acc, x, w, out, place), out.ACTIVATION)
        return to_code(values, tl.load(out.zero_ptr).to(tl.float32), out.QMIN, 127.0)
    else:
        y = scale_and_bias(acc, x, w, place)
        if residual.ptr is not None:
            inside = (place.n < place.N)[:, None] & (place.m < place.M)[None, :]
            residual_ptrs = residual.ptr + place.m.to(tl.int64)[None, :] * residual.stride + place.n[:, None]
            added = tl.load(residual_ptrs, mask=inside, other=0)
            y = y + dequantized(added, residual.scale_ptr, residual.zero_ptr)
        y = activate(y, out.ACTIVATION)
        if up is not None:
            y = y * scale_and_bias(up_acc, x, up, place)
        if out.scale_ptr is not None:
            return to_grid(y, out.scale_ptr, out.zero_ptr, out.QMIN)
        else:
            return y


@triton.jit
def scale_of(x, place):
    """float32 scales of a tile's columns: [1, BLOCK_M], or one scalar."""
    if x.STRIDE is None:
        return x.scale
    elif x.STRIDE == 0:
        return tl.load(x.scale)
    else:
        return tl.load(x.scale + place.m, mask=place.m < place.M, other=1.0)[None, :]


@triton.jit
def zero_of(x, place):
    """int32 zero points alike."""
    if x.STRIDE is None:
        return x.zero
    elif x.STRIDE == 0:
        return tl.load(x.zero).to(tl.int32)
    else:
        return tl.load(x.zero + place.m, mask=place.m < place.M, other=0).to(tl.int32)[None, :]


@triton.jit
def subtract_w_zero(acc, x_sum, w_zero_ptr, n, N):
    """int32 acc - w_zero · Σx, Σx [BLOCK_M] over the columns that acc covers."""
    if w_zero_ptr is not None:
        w_zero = tl.load(w_zero_ptr + n, mask=n < N, other=0).to(tl.int32)
        acc -= w_zero[:, None] * x_sum[None, :]
    return acc


@triton.jit
def subtract_x_zero(acc, x, w, place):
    """int32 acc - x_zero · (Σw - K · w_zero)."""
    if x.zero is not None:
        x_zero = zero_of(x, place)
        w_sum = tl.load(w.sum_ptr + place.n, mask=place.n < place.N, other=0)
        if w.zero_ptr is not None:
            w_sum -= place.K * tl.load(w.zero_ptr + place.n, mask=place.n < place.N, other=0).to(tl.int32)
        acc -= x_zero * w_sum[:, None]
    return acc


@triton.jit
def scale_and_bias(acc, x, w, place):
    """float32 (acc · x_scale) · w_scale + bias."""
    x_scale = scale_of(x, place)
    w_scale = tl.load(w.scale_ptr + place.n, mask=place.n < place.N, other=1.0).to(tl.float32)
    if w.bias_ptr is not None:
        bias = tl.load(w.bias_ptr + place.n, mask=place.n < place.N, other=0.0).to(tl.float32)
    y = (acc.to(tl.float32) * x_scale) * w_scale[:, None]
    if w.bias_ptr is not None:
        y = y + bias[:, None]
    return y


@triton.jit
def scale_and_bias_to_grid(acc, x, w, out, place):
    """float32 acc · m + b', m = (x_scale · w_scale) / out_scale, b' = bias / out_scale."""
    x_scale = scale_of(x, place)
    w_scale = tl.load(w.scale_ptr + place.n, mask=place.n < place.N, other=1.0).to(tl.float32)
    if w.bias_ptr is not None:
        bias = tl.load(w.bias_ptr + place.n, mask=place.n < place.N, other=0.0).to(tl.float32)
    out_scale = tl.load(out.scale_ptr)
    values = acc.to(tl.float32) * tl.math.div_rn(x_scale * w_scale[:, None], out_scale)
    if w.bias_ptr is not None:
        values = values + tl.math.div_rn(bias, out_scale)[:, None]
    return values


@triton.jit
def dequantized(codes, scale_ptr, zero_ptr):
    """float32 (codes - zero) · scale of int8 codes; floats, for which scale_ptr is None, as they are."""
    values = codes.to(tl.float32)
    if scale_ptr is not None:
        if zero_ptr is not None:
            values = values - tl.load(zero_ptr).to(tl.float32)
        values = values * tl.load(scale_ptr)
    return values


@triton.jit
def to_grid(y, scale_ptr, zero_ptr, QMIN: tl.constexpr):
    """int8 codes of float32 values on a grid: clamp(rint(y · (1/scale)) + zero)."""
    inverse = tl.math.div_rn(1.0, tl.load(scale_ptr))
    return to_code(y * inverse, tl.load(zero_ptr).to(tl.float32), QMIN, 127.0)
