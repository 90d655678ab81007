"""What follows an int8 product on its way out, shared by the kernels that have one; see docs/numerics.md.

All tiles are [BLOCK_N, BLOCK_M], of outᵀ. Vectors are loaded before anything is done to a tile: later, they cost
more registers. Kernels that use this file are launched with `enable_fp_fusion=False`.
"""

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


@triton.jit
def finished(
    acc,
    x_scale_ptr,
    x_zero_ptr,
    w_scale_ptr,
    w_zero_ptr,
    w_sum_ptr,
    bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    residual_zero_ptr,
    out_scale_ptr,
    out_zero_ptr,
    n,
    m,
    N,
    M,
    K,
    stride_residual,
    ACTIVATION: tl.constexpr,
    X_QPARAM_STRIDE: tl.constexpr,
    OUT_QMIN: tl.constexpr,
):
    """What is stored of an int32 acc = Σ x·(w - w_zero), and the arguments of `int8_matmul_kernel`: int8 or float32."""
    acc = subtract_x_zero(acc, x_zero_ptr, w_sum_ptr, w_zero_ptr, n, m, N, M, K, X_QPARAM_STRIDE)
    if out_scale_ptr is not None and residual_ptr is None and (ACTIVATION == "none" or ACTIVATION == "relu"):
        values = scale_and_bias_to_grid(
            acc, x_scale_ptr, w_scale_ptr, bias_ptr, out_scale_ptr, n, m, N, M, X_QPARAM_STRIDE
        )
        values = activate(values, ACTIVATION)
        return to_code(values, tl.load(out_zero_ptr).to(tl.float32), OUT_QMIN, 127.0)
    else:
        y = scale_and_bias(acc, x_scale_ptr, w_scale_ptr, bias_ptr, n, m, N, M, X_QPARAM_STRIDE)
        if residual_ptr is not None:
            inside = (n < N)[:, None] & (m < M)[None, :]
            residual_ptrs = residual_ptr + m.to(tl.int64)[None, :] * stride_residual + n[:, None]
            residual = tl.load(residual_ptrs, mask=inside, other=0)
            y = y + dequantized(residual, residual_scale_ptr, residual_zero_ptr)
        y = activate(y, ACTIVATION)
        if out_scale_ptr is not None:
            return to_grid(y, out_scale_ptr, out_zero_ptr, OUT_QMIN)
        else:
            return y


@triton.jit
def gated_finished(
    gate,
    up,
    x_scale_ptr,
    x_zero_ptr,
    gate_scale_ptr,
    gate_zero_ptr,
    gate_sum_ptr,
    gate_bias_ptr,
    up_scale_ptr,
    up_zero_ptr,
    up_sum_ptr,
    up_bias_ptr,
    out_scale_ptr,
    out_zero_ptr,
    n,
    m,
    N,
    M,
    K,
    ACTIVATION: tl.constexpr,
    X_QPARAM_STRIDE: tl.constexpr,
    OUT_QMIN: tl.constexpr,
):
    """`finished` of a gated product: of two accumulators, and the arguments of `int8_gated_matmul_kernel`."""
    gate = subtract_x_zero(gate, x_zero_ptr, gate_sum_ptr, gate_zero_ptr, n, m, N, M, K, X_QPARAM_STRIDE)
    up = subtract_x_zero(up, x_zero_ptr, up_sum_ptr, up_zero_ptr, n, m, N, M, K, X_QPARAM_STRIDE)
    y = activate(
        scale_and_bias(gate, x_scale_ptr, gate_scale_ptr, gate_bias_ptr, n, m, N, M, X_QPARAM_STRIDE),
        ACTIVATION,
    )
    y = y * scale_and_bias(up, x_scale_ptr, up_scale_ptr, up_bias_ptr, n, m, N, M, X_QPARAM_STRIDE)
    if out_scale_ptr is not None:
        return to_grid(y, out_scale_ptr, out_zero_ptr, OUT_QMIN)
    else:
        return y


@triton.jit
def subtract_w_zero(acc, x_sum, w_zero_ptr, n, N):
    """int32 acc - w_zero · Σx, Σx [BLOCK_M] over the columns that acc covers."""
    if w_zero_ptr is not None:
        w_zero = tl.load(w_zero_ptr + n, mask=n < N, other=0).to(tl.int32)
        acc -= w_zero[:, None] * x_sum[None, :]
    return acc


@triton.jit
def subtract_x_zero(acc, x_zero_ptr, w_sum_ptr, w_zero_ptr, n, m, N, M, K, X_QPARAM_STRIDE: tl.constexpr):
    """int32 acc - x_zero · (Σw - K · w_zero)."""
    if x_zero_ptr is not None:
        x_zero = tl.load(x_zero_ptr + m * X_QPARAM_STRIDE, mask=m < M, other=0).to(tl.int32)
        acc = subtract_x_zeros(acc, x_zero, w_sum_ptr, w_zero_ptr, n, N, K)
    return acc


@triton.jit
def subtract_x_zeros(acc, x_zero, w_sum_ptr, w_zero_ptr, n, N, K):
    """The same with x_zero int32 [BLOCK_M] at hand."""
    w_sum = tl.load(w_sum_ptr + n, mask=n < N, other=0)
    if w_zero_ptr is not None:
        w_sum -= K * tl.load(w_zero_ptr + n, mask=n < N, other=0).to(tl.int32)
    return acc - x_zero[None, :] * w_sum[:, None]


@triton.jit
def scale_and_bias(acc, x_scale_ptr, w_scale_ptr, bias_ptr, n, m, N, M, X_QPARAM_STRIDE: tl.constexpr):
    """float32 (acc · x_scale) · w_scale + bias."""
    x_scale = tl.load(x_scale_ptr + m * X_QPARAM_STRIDE, mask=m < M, other=1.0)
    return with_scales_and_bias(acc, x_scale, w_scale_ptr, bias_ptr, n, N)


@triton.jit
def with_scales_and_bias(acc, x_scale, w_scale_ptr, bias_ptr, n, N):
    """The same with x_scale [BLOCK_M] at hand."""
    w_scale = tl.load(w_scale_ptr + n, mask=n < N, other=1.0).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    y = (acc.to(tl.float32) * x_scale[None, :]) * w_scale[:, None]
    if bias_ptr is not None:
        y = y + bias[:, None]
    return y


@triton.jit
def scale_and_bias_to_grid(
    acc, x_scale_ptr, w_scale_ptr, bias_ptr, out_scale_ptr, n, m, N, M, X_QPARAM_STRIDE: tl.constexpr
):
    """float32 acc · m + b', m = (x_scale · w_scale) / out_scale, b' = bias / out_scale."""
    w_scale = tl.load(w_scale_ptr + n, mask=n < N, other=1.0).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    out_scale = tl.load(out_scale_ptr)
    if X_QPARAM_STRIDE == 0:
        multiplier = tl.math.div_rn(tl.load(x_scale_ptr) * w_scale, out_scale)[:, None]
    else:
        x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=1.0)
        multiplier = tl.math.div_rn(x_scale[None, :] * w_scale[:, None], out_scale)
    values = acc.to(tl.float32) * multiplier
    if bias_ptr is not None:
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
