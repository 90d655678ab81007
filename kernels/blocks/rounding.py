"""Rounding to codes inside a kernel, bit-equal to the reference.

Triton's float → int cast truncates and wraps, its `/` is approximate, and a·b + c becomes one fused instruction. So:
clamp first, round half to even by adding and subtracting 1.5 · 2^23, divide with `div_rn`, and launch every kernel that
uses this file with `enable_fp_fusion=False`.
"""

import triton
import triton.language as tl

#: Adding this to |v| ≤ 2^22 leaves no bits for a fraction; subtracting it again gives rint(v).
ROUND_MAGIC = tl.constexpr(12582912.0)
#: Only in NaN and ±Inf are all exponent bits of a float32 ones.
FLOAT_INFINITY_BITS = tl.constexpr(0x7F800000)
#: The smallest normal float32, 2^-126: scales are never smaller.
SCALE_FLOOR = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def round_to_even(value):
    """rint of a float32 with |value| ≤ 2^22."""
    return (value + ROUND_MAGIC) - ROUND_MAGIC


@triton.jit
def to_code(value, zero, qmin, qmax):
    """int8 clamp(rint(value) + zero): value float32, zero, qmin and qmax float32 holding integers; NaN gives zero."""
    value = tl.where(value == value, value, 0.0)
    value = tl.minimum(tl.maximum(value, qmin - zero), qmax - zero)
    return (round_to_even(value) + zero).to(tl.int32).to(tl.int8)
