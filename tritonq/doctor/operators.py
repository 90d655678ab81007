"""Checks of operators: compares a GPU with a CPU, where the reference computes them.

products.py checks products in more shapes and on every path. Here they are checked with zero points, biases,
activations, residuals and int8 results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tritonq import ops
from tritonq.doctor.checks import Outcome, compared
from tritonq.numerics import config, qparams, slabs

_ROWS, _COLUMNS, _FEATURES, _GROUP = 33, 500, 130, 100


@dataclasses.dataclass(frozen=True)
class OperatorCheck:
    """An operator with one set of arguments, by its name in `samples`."""

    name: str
    path: str = "operator"

    def run(self, device: str, repeats: int) -> Outcome:
        """Compare with the CPU."""
        sample = samples()[self.name]
        moved = tuple(one.to(device) if isinstance(one, Tensor) else one for one in sample.arguments)
        expected = _tuple(sample.operator(*sample.arguments))
        return compared(lambda: _tuple(sample.operator(*moved)), expected, sample.exact, repeats)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Arguments on the CPU; `exact`: every bit of the result must match."""

    operator: Callable[..., Any]
    arguments: tuple[Any, ...]
    exact: bool = True


def operator_checks() -> list[OperatorCheck]:
    """One per sample."""
    return [OperatorCheck(name) for name in samples()]


def samples() -> dict[str, Sample]:
    """Name → sample; the same in every call."""
    generator = torch.Generator().manual_seed(0)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def codes(*shape: int) -> Tensor:
        return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)

    x, one = floats(_ROWS, _COLUMNS), torch.rand(1, generator=generator) / 10 + 0.05
    x8, token, zero = codes(_ROWS, _COLUMNS), torch.rand(_ROWS, 1, generator=generator) + 0.1, codes(1)
    bias, weight_norm = floats(_FEATURES), floats(_COLUMNS)
    residual, residual8 = floats(_ROWS, _FEATURES).bfloat16(), codes(_ROWS, _FEATURES)
    grid = (1000 * one, zero, False)
    plain, affine = _int8(floats(_FEATURES, _COLUMNS), True), _int8(floats(_FEATURES, _COLUMNS), False)
    w4, w4_scale, w4_zero = _packed(
        config.W4A16(group_size=_GROUP, symmetric=False), floats(_FEATURES, _COLUMNS)
    )
    w8, w8_scale, _ = _packed(config.W8A16(), floats(_FEATURES, _COLUMNS))
    a8, a8_scale, _ = _packed(config.W4A8(group_size=_GROUP), floats(_FEATURES, _COLUMNS))
    scales = torch.rand(_ROWS, _COLUMNS // _GROUP, generator=generator) + 0.1
    float32, float16 = torch.float32, torch.float16
    return {
        "quantize per token, symmetric": Sample(ops.quantize_per_token, (x.bfloat16(), True)),
        "quantize per token, affine": Sample(ops.quantize_per_token, (x.half(), False)),
        "quantize per tensor": Sample(ops.quantize_per_tensor, (x, one, zero, False)),
        "extremes": Sample(ops.extremes, (x, _ROWS)),
        "histogram": Sample(
            ops.histogram,
            (x, torch.zeros(100, dtype=torch.int64), torch.tensor(8.0), torch.tensor(-50).int()),
        ),
        "int8, relu, residual": Sample(
            ops.int8_linear, (x8, token, None, *plain, bias, float32, "relu", residual)
        ),
        "int8, affine both sides": Sample(ops.int8_linear, (x8, one, zero, *affine, bias, float16)),
        "int8, silu": Sample(ops.int8_linear, (x8, token, None, *plain, bias, float16, "silu"), exact=False),
        "int8 to int8": Sample(ops.int8_linear_requantize, (x8, one, zero, *affine, bias, *grid)),
        "int8 to int8, gelu, residual": Sample(
            ops.int8_linear_requantize,
            (x8, one, zero, *affine, bias, *grid, "gelu", residual8, one, zero),
            exact=False,
        ),
        "gated int8 to int8": Sample(
            ops.int8_gated_linear_requantize,
            (x8, one / 1000, zero, *affine, bias, *plain, None, *grid, "gelu_tanh"),
            exact=False,
        ),
        "int8 × int4": Sample(
            ops.int4_int8_linear, (x8, token, a8, a8_scale, bias, _GROUP, float16), exact=False
        ),
        "float, quantized per token × int8": Sample(
            ops.int8_linear_dynamic, (x[:5].half(), False, *affine, bias)
        ),
        "float, quantized per token × int4": Sample(
            ops.int4_int8_linear_dynamic, (x[:5].half(), a8, a8_scale, bias, _GROUP), exact=False
        ),
        "float × int4, affine": Sample(
            ops.weight_only_linear, (x.half(), w4, w4_scale, w4_zero, bias, _GROUP), exact=False
        ),
        "float32 × int8": Sample(
            ops.weight_only_linear, (x, w8, w8_scale, None, None, _COLUMNS), exact=False
        ),
        "input's gradient, int4": Sample(
            ops.weight_only_input_gradient,
            (floats(_ROWS, _FEATURES), w4, w4_scale, w4_zero, _COLUMNS, _GROUP),
            exact=False,
        ),
        "RMSNorm per token": Sample(
            ops.rms_norm_quantize_per_token, (x.bfloat16(), weight_norm.bfloat16(), 1e-6, True), exact=False
        ),
        "residual + RMSNorm per tensor": Sample(
            ops.add_rms_norm_quantize_per_tensor, (x, floats(_ROWS, _COLUMNS), None, 1e-6, *grid), exact=False
        ),
        "LayerNorm per token": Sample(
            ops.layer_norm_quantize_per_token, (x, weight_norm, weight_norm, 1e-5, False), exact=False
        ),
        "silu · up per token": Sample(
            ops.gated_quantize_per_token,
            (x.half(), floats(_ROWS, _COLUMNS).half(), "silu", True),
            exact=False,
        ),
        "fake quantize": Sample(
            ops.fake_quantize, (x.half(), scales, floats(*scales.shape).round(), _GROUP, -8, 7)
        ),
        "fake quantize per token": Sample(ops.fake_quantize_per_token, (x, False)),
        "fake quantize, gradients": Sample(_gradients, (x, scales, floats(_ROWS, _COLUMNS)), exact=False),
    }


def _gradients(x: Tensor, scale: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """The gradients of x and of a learned scale."""
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    y = ops.fake_quantize(x, scale, None, _GROUP, -8, 7)
    return torch.autograd.grad(y, (x, scale), dy)


def _int8(weight: Tensor, symmetric: bool) -> tuple[Any, ...]:
    """(packed, scale, zero point, sums) of an int8 × int8 product."""
    made = config.W8A8(symmetric=symmetric)
    packed, scale, zero = _packed(made, weight)
    return packed, scale, zero, packed[:, :_COLUMNS].sum(dim=1, dtype=torch.int32)


def _packed(made: config.QuantConfig, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(packed [N, ·], scale [G, N], zero point [G, N] or None)."""
    group_size = made.weight.resolve_group_size(_COLUMNS)
    layout = slabs.slab_layout(slabs.weight_form(made), _COLUMNS, group_size)
    codes, scale, zero = qparams.quantize_weight(weight, made.weight)
    return (
        slabs.pack(codes, layout),
        scale.t().contiguous(),
        None if zero is None else zero.t().contiguous(),
    )


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
