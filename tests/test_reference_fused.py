"""The reference of what is fused around a product, against NumPy and torch's own functions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.kernel_inputs import FLOATS, assert_same, random_codes
from tritonq import ops, reference

ACTIVATIONS = {
    "none": lambda y: y,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
    "silu": functional.silu,
}


def test_every_activation_is_tested() -> None:
    assert tuple(ACTIVATIONS) == reference.ACTIVATIONS


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_against_float64(activation: str, device: str) -> None:
    y = torch.cat([torch.linspace(-30, 30, 10_001), torch.logspace(-30, 30, 200)]).to(device)
    found = reference.activate(y, activation)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), ACTIVATIONS[activation](y.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_the_ends(activation: str, device: str) -> None:
    largest = torch.finfo(torch.float32).max
    y = torch.tensor([-math.inf, -largest, -129.0, 0.0, largest, math.inf, math.nan], device=device)
    found = reference.activate(y, activation)
    below = y[:3] if activation == "none" else torch.zeros(3, device=device)
    assert_same(found, torch.cat([below, y[3:]]))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int8 symmetric"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("affine_out", [True, False])
def test_residual_and_activation_behind_a_product(
    affine_out: bool, activation: str, kind: str, device: str
) -> None:
    x, w = random_codes(6, 77, device=device), random_codes(9, 77, device=device)
    x_scale, w_scale = torch.rand(6, 1, device=device) / 9, torch.rand(9, 1, device=device) / 50
    bias = torch.randn(9, device=device)
    scale = zero = None
    if "int8" in kind:
        residual, scale = random_codes(6, 9, device=device), torch.tensor([0.31], device=device)
        zero = None if "symmetric" in kind else torch.tensor([-7], dtype=torch.int8, device=device)
        values = (
            residual.cpu().numpy().astype(np.float32) - np.float32(0 if zero is None else -7)
        ) * np.float32(0.31)
    else:
        residual = (20 * torch.randn(6, 9, device=device)).to(getattr(torch, kind))
        values = residual.float().cpu().numpy()
    product = (x, x_scale, None, w, w_scale, None, bias)
    sums = (x.double() @ w.double().t()).float().cpu().numpy()
    y = (sums * x_scale.cpu().numpy()) * w_scale.t().cpu().numpy() + bias.cpu().numpy() + values
    assert y.dtype == np.float32
    activated = reference.activate(torch.from_numpy(y).to(device), activation)

    found = reference.int8_linear(*product, torch.float16, activation, residual, scale, zero)
    assert_same(found, activated.half())

    out_scale = torch.tensor([0.53], device=device)
    out_zero = torch.tensor([-17 if affine_out else 0], dtype=torch.int8, device=device)
    grid = (out_scale, out_zero, not affine_out)
    codes = reference.int8_linear_requantize(*product, *grid, activation, residual, scale, zero)
    inverse = np.float32(1) / out_scale.cpu().numpy()
    expected = np.rint(activated.cpu().numpy() * inverse) + out_zero.item()
    expected = np.clip(expected, -128 if affine_out else -127, 127)
    assert len(np.unique(expected)) > 15
    assert_same(codes, torch.from_numpy(expected).to(device).to(torch.int8))


@pytest.mark.parametrize("zero", [0, -50, 127])
def test_relu_is_a_clamp_of_the_codes(zero: int, device: str) -> None:
    """Without a residual relu keeps the contract of a product that has none: no code below the zero point."""
    x, w = random_codes(6, 77, device=device), random_codes(9, 77, device=device)
    one = torch.ones(1, device=device)
    out_zero = torch.tensor([zero], dtype=torch.int8, device=device)
    bias = torch.randn(9, device=device) * 100
    inputs = (x, 0.05 * one, None, w, one.expand(9, 1), None, bias, 5 * one, out_zero, False)
    plain, clamped = (
        reference.int8_linear_requantize(*inputs),
        reference.int8_linear_requantize(*inputs, "relu"),
    )
    assert_same(clamped, plain.clamp(min=zero))


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "gelu_tanh", "none"])
def test_a_gated_product_is_not_rounded_before_it_is_multiplied(activation: str, device: str) -> None:
    x, scale = random_codes(4, 33, device=device), torch.rand(4, 1, device=device) / 50
    gate = (random_codes(8, 33, device=device), torch.rand(8, 1, device=device) / 50, None, None)
    up = (
        random_codes(8, 33, device=device),
        torch.rand(8, 1, device=device) / 50,
        random_codes(8, 1, device=device),
        torch.randn(8, device=device),
    )
    gates = reference.int8_linear(x, scale, None, *gate, torch.float32)
    ups = reference.int8_linear(x, scale, None, *up, torch.float32)
    expected = reference.activate(gates, activation) * ups
    assert_same(reference.gated(gates, ups, activation), expected)
    inputs = (x, scale, None, reference.Int8Weight(*gate), reference.Int8Weight(*up))
    grid = (torch.tensor([0.05], device=device), torch.tensor([9], dtype=torch.int8, device=device), False)
    codes = reference.int8_gated_linear_requantize(*inputs, *grid, activation)
    assert_same(codes, reference.quantize_per_tensor(expected, *grid))


# --- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", [1, 7, 1000, 40_000])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_against_float64(affine: bool, columns: int, dtype: torch.dtype, device: str) -> None:
    x = (
        torch.randn(4, columns, device=device) * torch.tensor([[1e-3], [1.0], [30.0], [900.0]], device=device)
    ).to(dtype)
    weight = torch.randn(columns, device=device).to(dtype) if affine else None
    bias = torch.randn(columns, device=device) if affine else None
    wide_weight, wide_bias = (None if tensor is None else tensor.double() for tensor in (weight, bias))
    found, exact = (
        reference.rms_norm(x, weight, 1e-6),
        functional.rms_norm(x.double(), (columns,), wide_weight, 1e-6),
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    found = reference.layer_norm(x, weight, bias, 1e-5)
    exact = functional.layer_norm(x.double(), (columns,), wide_weight, wide_bias, 1e-5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_new_residual_stream_is_rounded_once(dtype: torch.dtype, device: str) -> None:
    x, residual = torch.randn(3, 50, device=device).to(dtype), torch.randn(3, 50, device=device)
    found = reference.residual_sum(x, residual)
    assert_same(found, (x.double() + residual.double()).float().to(dtype))


# --- bad input of the operators --------------------------------------------------------------------------------------


def _product(residual: Tensor | None, scale: Tensor | None, activation: str = "none") -> Tensor:
    x, w = torch.ones(2, 16, dtype=torch.int8), torch.ones(3, 16, dtype=torch.int8)
    sums, one = torch.zeros(3, dtype=torch.int32), torch.ones(1)
    return ops.int8_linear(
        x, one, None, w, one.expand(1, 3), None, sums, None, torch.float32, activation, residual, scale
    )


@pytest.mark.parametrize(
    ("residual", "scale", "message"),
    [
        (torch.ones(3), None, r"residual must have shape \[2, 3\], found \[3\]"),
        (
            torch.ones(2, 3, dtype=torch.int8),
            None,
            r"an int8 residual, found a residual of torch.int8 without",
        ),
        (torch.ones(2, 3), torch.ones(1), r"found a residual of torch.float32 with residual_scale"),
        (None, torch.ones(1), r"found no residual with residual_scale"),
        (torch.ones(2, 3, dtype=torch.int32), torch.ones(1), r"must be float or int8, found torch.int32"),
    ],
)
def test_residuals_that_do_not_fit(residual: Tensor | None, scale: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _product(residual, scale)


def test_names_and_shapes_that_do_not_fit() -> None:
    x, one, zero = torch.ones(2, 8), torch.ones(1), torch.zeros(1, dtype=torch.int8)
    with pytest.raises(
        ValueError, match="activation must be one of none, relu, gelu, gelu_tanh, silu, found 'swish'"
    ):
        _product(None, None, "swish")
    with pytest.raises(ValueError, match=r"weight must have shape \[8\], found \[7\]"):
        ops.rms_norm_quantize_per_token(x, torch.ones(7), 1e-6, True)
    with pytest.raises(ValueError, match=r"residual must have shape \[2, 8\], found \[8\]"):
        ops.add_rms_norm_quantize_per_tensor(x, torch.ones(8), None, 1e-6, one, zero, True)
    with pytest.raises(ValueError, match=r"x must be \[rows, columns\], found shape \[1, 2, 8\]"):
        ops.layer_norm_quantize_per_token(x[None], None, None, 1e-6, True)
    with pytest.raises(ValueError, match=r"up must have shape \[2, 8\], found \[2, 7\]"):
        ops.gated_quantize_per_token(x, x[:, 1:], "silu", True)
    with pytest.raises(ValueError, match=r"gate must be \[rows, columns\], found shape \[1, 2, 8\]"):
        ops.gated_quantize_per_token(x[None], x[None], "silu", True)


def test_a_learned_bias_before_a_fused_activation_is_refused() -> None:
    x, w = torch.ones(2, 16, dtype=torch.int8), torch.ones(3, 16, dtype=torch.int8)
    sums, one = torch.zeros(3, dtype=torch.int32), torch.ones(1)
    bias = torch.zeros(3, requires_grad=True)
    out = ops.int8_linear(x, one, None, w, one.expand(1, 3), None, sums, bias, torch.float32, "relu")
    with pytest.raises(NotImplementedError, match="int8_linear has no gradient"):
        out.sum().backward()


def test_a_float_residual_learns() -> None:
    x, w = torch.ones(2, 16, dtype=torch.int8), torch.ones(3, 16, dtype=torch.int8)
    sums, one = torch.zeros(3, dtype=torch.int32), torch.ones(1)
    residual = torch.zeros(2, 3, requires_grad=True, dtype=torch.bfloat16)
    arriving = torch.randn(2, 3)
    ops.int8_linear(
        x, one, None, w, one.expand(1, 3), None, sums, None, torch.float32, residual=residual
    ).backward(arriving)
    assert residual.grad is not None
    assert_same(residual.grad, arriving.bfloat16())
