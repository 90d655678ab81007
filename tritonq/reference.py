"""What every kernel computes, in plain torch: the CPU backend, and the oracle of every kernel test.

M rows of activations, N output features, K input features, G groups of K; codes are signed and held in int8.

    quantize_per_token     x [M, K] → codes, one scale and zero point per row, computed from the row
    quantize_per_tensor    x → codes with a given scale and zero point
    int8_linear            int8 · int8ᵀ, exact in int32 → float
    int8_linear_requantize the same → int8 on the consumer's grid
    weight_only_linear     float · dequantized weightᵀ
    weight_only_input_gradient  float · dequantized weight, for training through a frozen weight
    int4_int8_linear       int8 · int4ᵀ with scales per group → float
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tritonq import qparams

#: Products of two int8 codes summed over this many columns stay ≤ 2^24: exact in float32.
_EXACT_COLUMNS = 1024


def quantize_per_token(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize each row on a grid of its own. A row that holds NaN or Inf gets scale NaN and codes 0.

    Args:
        x: float [M, K].
        symmetric: codes in [-127, 127] and zero point 0; else affine, codes in [-128, 127].

    Returns:
        codes int8 [M, K], scale float32 [M, 1], zero point int8 [M, 1].
    """
    values = x.float()
    finite = torch.isfinite(values).all(dim=1, keepdim=True)
    # Rows that are not finite are computed as zeros, so that nothing undefined is ever cast to an integer.
    values = torch.where(finite, values, torch.zeros_like(values))
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    if symmetric:
        qmin = -127
        scale = qparams.symmetric_scale(torch.maximum(-low, high), qmin, 127)
        zero_point = torch.zeros_like(scale, dtype=torch.int8)
    else:
        qmin = -128
        scale, zero_point = qparams.affine_qparams(low, high, qmin, 127)
        zero_point = torch.where(finite, zero_point, torch.zeros_like(zero_point))
    codes = qparams.quantize(values, scale, zero_point, qmin, 127)
    return codes, torch.where(finite, scale, torch.full_like(scale, torch.nan)), zero_point


def quantize_per_tensor(x: Tensor, scale: Tensor, zero_point: Tensor, symmetric: bool) -> Tensor:
    """Quantize with a given grid: ±Inf saturates, NaN takes the zero point's code.

    Args:
        x: float, any shape.
        scale: float32 [1].
        zero_point: int8 [1].
        symmetric: codes in [-127, 127], else [-128, 127].

    Returns:
        int8 codes of x's shape.
    """
    codes = qparams.quantize(x, scale, zero_point, -127 if symmetric else -128, 127)
    return codes.reshape(x.shape)  # a scalar has broadcast to the scale's [1]


def int_matmul(x: Tensor, w: Tensor) -> Tensor:
    """Exact product of int8 codes: [M, K] · [N, K]ᵀ → int32 [M, N]."""
    if x.device.type == "cpu" and x.numel() and w.numel() and _int_mm_is_exact_and_fast():
        return torch._int_mm(x, w.t())
    # [M, K'] @ [K', N] for K' columns at a time
    chunks = zip(x.split(_EXACT_COLUMNS, dim=1), w.split(_EXACT_COLUMNS, dim=1), strict=True)
    products = ((x_chunk.float() @ w_chunk.float().t()).to(torch.int32) for x_chunk, w_chunk in chunks)
    return functools.reduce(torch.Tensor.add_, products)


def int8_accumulate(x: Tensor, x_zero: Tensor | None, w: Tensor, w_zero: Tensor | None) -> Tensor:
    """Σ_k (x - x_zero)(w - w_zero) in int32.

    Args:
        x: int8 [M, K].
        x_zero: int8 [M, 1] or [1], or None for 0.
        w: int8 [N, K].
        w_zero: int8 [N, 1] or None for 0.

    Returns:
        int32 [M, N].
    """
    total = int_matmul(x, w)
    zw = None if w_zero is None else w_zero.reshape(1, -1).to(torch.int32)  # [1, N or 1]
    if zw is not None:
        total -= x.sum(dim=1, keepdim=True, dtype=torch.int32) * zw
    if x_zero is not None:
        zx = x_zero.reshape(-1, 1).to(torch.int32)  # [M or 1, 1]
        total -= zx * w.sum(dim=1, dtype=torch.int32)
        if zw is not None:
            total += x.shape[1] * zx * zw
    return total


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(float(acc) · x_scale) · w_scale + bias.

    Args:
        x, x_zero, w, w_zero: as `int8_accumulate`.
        x_scale: float32 [M, 1] or [1].
        w_scale: float [N, 1] or [1, 1].
        bias: float [N] or None.
        dtype: of the result.

    Returns:
        [M, N].
    """
    accumulator = int8_accumulate(x, x_zero, w, w_zero).float()
    result = (accumulator * x_scale.reshape(-1, 1)) * w_scale.float().reshape(1, -1)
    return _add_bias(result, bias).to(dtype)


def int8_linear_requantize(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor | None,
    bias: Tensor | None,
    out_scale: Tensor,
    out_zero: Tensor,
    symmetric: bool,
) -> Tensor:
    """The same product handed on as int8, on the grid of the layer that reads it.

    v = fl(fl(float(acc) · m) + b') with m = (x_scale · w_scale) / out_scale and b' = bias / out_scale.

    Args:
        x, x_scale, x_zero, w, w_scale, w_zero, bias: as `int8_linear`.
        out_scale: float32 [1].
        out_zero: int8 [1].
        symmetric: output codes in [-127, 127], else [-128, 127].

    Returns:
        int8 [M, N]: clamp(rint(v) + out_zero).
    """
    multiplier = (x_scale.reshape(-1, 1) * w_scale.float().reshape(1, -1)) / out_scale  # [M or 1, N or 1]
    values = int8_accumulate(x, x_zero, w, w_zero).float() * multiplier
    if bias is not None:
        values = values + bias.float() / out_scale
    one = torch.ones_like(out_scale)
    return qparams.quantize(values, one, out_zero, -127 if symmetric else -128, 127)


def weight_only_linear(
    x: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None, bias: Tensor | None, group_size: int
) -> Tensor:
    """x · ((w - w_zero) · w_scale)ᵀ + bias, computed in float32, rounded once to x's dtype.

    Args:
        x: float [M, K].
        w: int8 codes [N, K].
        w_scale: float [N or 1, G].
        w_zero: int8 [N or 1, G] or None.
        bias: float [N] or None.
        group_size: columns per group.

    Returns:
        [M, N] of x's dtype.
    """
    columns = w.shape[1]
    zero = None if w_zero is None else qparams.expand_groups(w_zero, columns, group_size)
    weight = qparams.dequantize(w, qparams.expand_groups(w_scale, columns, group_size), zero, torch.float32)
    return _add_bias(x.float() @ weight.t(), bias).to(x.dtype)


def weight_only_input_gradient(
    gradient: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None, group_size: int
) -> Tensor:
    """gradient · (w - w_zero) · w_scale, the weight rounded to the gradient's dtype.

    Args:
        gradient: float [M, N].
        w, w_scale, w_zero, group_size: as `weight_only_linear`.

    Returns:
        [M, K] of gradient's dtype.
    """
    columns = w.shape[1]
    zero = None if w_zero is None else qparams.expand_groups(w_zero, columns, group_size)
    scale = qparams.expand_groups(w_scale, columns, group_size)
    return gradient @ qparams.dequantize(w, scale, zero, gradient.dtype)


def int4_int8_linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Σ_g (float(acc_g) · w_scale_g) · x_scale + bias, acc_g exact in int32, groups in ascending order.

    With one group the order is that of `int8_linear`: (float(acc) · x_scale) · w_scale + bias.

    Args:
        x: int8 [M, K], symmetric codes.
        x_scale: float32 [M, 1].
        w: int8 [N, K], symmetric int4 codes.
        w_scale: float [N or 1, G].
        bias: float [N] or None.
        group_size: columns per group.
        dtype: of the result.

    Returns:
        [M, N].
    """
    scales = w_scale.float().t()  # [G, N or 1]
    if len(scales) == 1:
        return _add_bias((int_matmul(x, w).float() * x_scale) * scales, bias).to(dtype)
    total = torch.zeros(x.shape[0], w.shape[0], device=x.device)
    for group, scale in enumerate(scales):
        columns = slice(group * group_size, (group + 1) * group_size)
        total += int_matmul(x[:, columns], w[:, columns]).float() * scale
    return _add_bias(total * x_scale, bias).to(dtype)


def _add_bias(result: Tensor, bias: Tensor | None) -> Tensor:
    return result if bias is None else result + bias.float()


@functools.cache
def _int_mm_is_exact_and_fast() -> bool:
    """Whether torch's int8 product may be used here: it is slow, or saturates to 16 bits, on CPUs without VNNI."""
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    extreme = torch.tensor([-128, 127], dtype=torch.int8)
    x = extreme.repeat(32, 64)  # every product of extreme codes, in long runs of one sign
    w = torch.cat([x[:16], x[:16].flip(1)])
    return torch.equal(torch._int_mm(x, w.t()).long(), x.long() @ w.long().t())
