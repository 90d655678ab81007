"""The grid of a row, computed from its extremes, for quantization per token.

Whether a row is finite is read from the integer maximum of its float bits. Unlike a floating-point maximum, it cannot
lose a NaN.
"""

import triton
import triton.language as tl

from .rounding import FLOAT_INFINITY_BITS, SCALE_FLOOR, round_to_even


@triton.jit
def extremes(values):
    """(largest bits of a magnitude, low ≤ 0, high ≥ 0) of float32 values [BLOCK]."""
    bits = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    return bits, tl.minimum(tl.min(values, axis=0), 0.0), tl.maximum(tl.max(values, axis=0), 0.0)


@triton.jit
def grid_of_extremes(bits, low, high, SYMMETRIC: tl.constexpr):
    """(finite, scale, zero point, 1/scale) of a row, float32.

    A row that is not finite is treated as a row of zeros, but its scale is NaN.
    """
    finite = bits < FLOAT_INFINITY_BITS
    low = tl.where(finite, low, 0.0)
    high = tl.where(finite, high, 0.0)
    if SYMMETRIC:
        scale = tl.maximum(tl.math.div_rn(tl.maximum(-low, high), 127.0), SCALE_FLOOR)
    else:
        scale = tl.maximum(tl.math.div_rn(high, 255.0) - tl.math.div_rn(low, 255.0), SCALE_FLOOR)
    scale = tl.where((low == 0.0) & (high == 0.0), 1.0, scale)
    zero = 0.0
    if not SYMMETRIC:
        zero = tl.minimum(tl.maximum(-128.0 - round_to_even(tl.math.div_rn(low, scale)), -128.0), 127.0)
        zero = tl.where(finite, zero, 0.0)
    return finite, tl.where(finite, scale, float("nan")), zero, tl.math.div_rn(1.0, scale)
