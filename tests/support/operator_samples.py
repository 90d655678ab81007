"""Arguments for every operator, for the tests that hold for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.kernel_inputs import Weight, random_codes, random_weight
from tritonq import ops
from tritonq.numerics import config

ROWS, COLUMNS, FEATURES = 5, 100, 24


def samples(device: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """name → (operator, arguments), each operator at least twice: with and without its optional arguments."""

    def weight(made: config.QuantConfig) -> Weight:
        return random_weight(made, FEATURES, COLUMNS, torch.float32, device)

    def learned(tensor: Tensor) -> Tensor:
        return tensor.requires_grad_()

    x, codes = torch.randn(ROWS, COLUMNS, device=device), random_codes(ROWS, COLUMNS, device=device)
    bias = torch.randn(FEATURES, device=device)
    token, one = torch.rand(ROWS, 1, device=device), torch.rand(1, device=device) + 0.1
    token_zero, zero = random_codes(ROWS, 1, device=device), random_codes(1, device=device)
    w8, w8_affine, w4 = (
        weight(config.W8A8()),
        weight(config.W8A8(symmetric=False)),
        weight(config.W4A8(group_size=32)),
    )
    g4, g8 = weight(config.W4A16(group_size=32, symmetric=False)), weight(config.W8A16(group_size=32))
    sums = w8.codes.sum(dim=1, dtype=torch.int32)
    sums_affine = w8_affine.codes.sum(dim=1, dtype=torch.int32)
    plain = (w8.packed, w8.kernel_scale, None, sums)
    affine = (w8_affine.packed, w8_affine.kernel_scale, w8_affine.kernel_zero, sums_affine)
    grid = (3 * one, zero, False)
    weight_norm = torch.randn(COLUMNS, device=device)
    wide = torch.randn(ROWS, 2 * COLUMNS, device=device)
    gates, ups = wide[:, :COLUMNS], wide[:, COLUMNS:]
    residual = torch.randn(ROWS, FEATURES, device=device)
    residual_codes = random_codes(ROWS, FEATURES, device=device)
    counts, power = torch.arange(100, device=device), torch.tensor(8.0, device=device)
    return {
        "per token symmetric": (ops.quantize_per_token, (x, True)),
        "per token affine": (ops.quantize_per_token, (x.half(), False)),
        "per tensor": (ops.quantize_per_tensor, (x.reshape(ROWS, 4, -1), one, zero, False)),
        "per tensor strided": (ops.quantize_per_tensor, (x.bfloat16().t(), one, zero, True)),
        "extremes": (ops.extremes, (x, ROWS)),
        "extremes strided": (ops.extremes, (x.half().t(), 1)),
        "histogram": (ops.histogram, (x, counts, power, zero[0].int())),
        "histogram strided": (ops.histogram, (x.double().t(), counts, power, zero[0].int())),
        "int8": (ops.int8_linear, (codes, token, None, *plain, None, torch.float32)),
        "int8 dynamic": (
            ops.int8_linear_dynamic,
            (x.half(), True, w8.packed, w8.kernel_scale, None, sums, None),
        ),
        "int8 dynamic affine": (
            ops.int8_linear_dynamic,
            (wide[:, ::2], False, *affine, learned(bias.clone())),
        ),
        "int8 affine": (
            ops.int8_linear,
            (codes, token, token_zero, *affine, learned(bias.clone()), torch.bfloat16),
        ),
        "requantize": (
            ops.int8_linear_requantize,
            (codes, one, None, *plain, None, 3 * one, zero, True),
        ),
        "requantize affine": (
            ops.int8_linear_requantize,
            (codes, one, zero, *affine, bias, 3 * one, zero, False),
        ),
        "int8 relu residual": (
            ops.int8_linear,
            (codes, token, None, *plain, None, torch.float32, "relu", residual.bfloat16()),
        ),
        "int8 learned residual": (
            ops.int8_linear,
            (codes, token, None, *plain, None, torch.float32, "none", learned(residual.clone())),
        ),
        "int8 silu": (
            ops.int8_linear,
            (codes, token, None, *plain, bias, torch.float32, "silu"),
        ),
        "requantize relu": (
            ops.int8_linear_requantize,
            (codes, one, zero, *affine, bias, *grid, "relu"),
        ),
        "requantize gelu residual": (
            ops.int8_linear_requantize,
            (codes, one, zero, *affine, bias, *grid, "gelu", residual_codes, one, zero),
        ),
        "gated requantize": (
            ops.int8_gated_linear_requantize,
            (codes, one, None, *plain, None, *plain, bias, *grid, "gelu_tanh"),
        ),
        "rms norm per token": (ops.rms_norm_quantize_per_token, (x.half(), weight_norm, 1e-6, True)),
        "rms norm per tensor": (ops.rms_norm_quantize_per_tensor, (x, None, 1e-6, one, zero, False)),
        "layer norm per token": (
            ops.layer_norm_quantize_per_token,
            (x, weight_norm, weight_norm, 1e-5, False),
        ),
        "layer norm per tensor": (
            ops.layer_norm_quantize_per_tensor,
            (x.t(), None, None, 1e-5, one, zero, True),
        ),
        "add rms norm per token": (
            ops.add_rms_norm_quantize_per_token,
            (gates, x, weight_norm, 1e-6, False),
        ),
        "add rms norm per tensor": (
            ops.add_rms_norm_quantize_per_tensor,
            (x.bfloat16(), ups, weight_norm.bfloat16(), 1e-6, one, zero, True),
        ),
        "gated per token": (ops.gated_quantize_per_token, (gates, ups, "silu", True)),
        "gated per token without a factor": (ops.gated_quantize_per_token, (gates, None, "gelu", False)),
        "int4 int8": (
            ops.int4_int8_linear,
            (codes, token, w4.packed, w4.kernel_scale, None, 32, torch.float16),
        ),
        "int4 int8 dynamic": (
            ops.int4_int8_linear_dynamic,
            (x.bfloat16(), w4.packed, w4.kernel_scale, learned(bias.clone()), 32),
        ),
        "int4 int8 dynamic strided": (
            ops.int4_int8_linear_dynamic,
            (wide[:, ::2], w4.packed, w4.kernel_scale, None, 32),
        ),
        "int4 int8 bias": (
            ops.int4_int8_linear,
            (codes, token, w4.packed, w4.kernel_scale, learned(bias.clone()), 32, torch.float32),
        ),
        "scale of codes": (ops.scale_of_codes, (one, x)),
        "weight only": (
            ops.weight_only_linear,
            (learned(x.clone()), g4.packed, g4.kernel_scale, g4.kernel_zero, learned(bias.clone()), 32),
        ),
        "weight only int8": (ops.weight_only_linear, (x.half(), g8.packed, g8.kernel_scale, None, None, 32)),
        "weight only input gradient": (
            ops.weight_only_input_gradient,
            (
                torch.randn(ROWS, FEATURES, device=device),
                g4.packed,
                g4.kernel_scale,
                g4.kernel_zero,
                COLUMNS,
                32,
            ),
        ),
        "weight only input gradient int8": (
            ops.weight_only_input_gradient,
            (
                learned(torch.randn(ROWS, FEATURES, device=device)),
                g8.packed,
                g8.kernel_scale,
                None,
                COLUMNS,
                32,
            ),
        ),
    }
