"""The fake-quantization operators: the deployed rounding forwards, the written-down gradients backwards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kernel_inputs import FLOATS, STRIDES, assert_same, with_strides
from tests.support.pairwise import pairwise
from tritonq import ops, reference
from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec

SHAPES = ((33, 100), (1, 1), (7, 31), (4, 314), (0, 40))
GRANULARITIES: dict[str, Any] = {
    "tensor": {"granularity": "tensor"},
    "channel": {"granularity": "channel"},
    "group 32": {"granularity": "group", "group_size": 32},
    "group 24": {"granularity": "group", "group_size": 24},
}
FACTOR = 0.037


def spec_of(bits: int, symmetric: bool, granularity: str) -> QuantSpec:
    return QuantSpec(bits, symmetric, **GRANULARITIES[granularity])


def grid_of(x: Tensor, spec: QuantSpec, shrink: float = 1.0) -> tuple[Tensor, Tensor | None, int, int, int]:
    """The arguments after x: the grid that covers x, or one shrunk so that part of x lies outside."""
    size = spec.resolve_group_size(x.shape[1])
    if x.numel() == 0:
        scale, zero = torch.ones(1, -(-x.shape[1] // size), device=x.device), None
    else:
        scale, zero = qparams.weight_qparams(x, spec)
    return scale * shrink, zero, size, spec.qmin, spec.qmax


def learned_grid(x: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor, int, int, int]:
    """A learned scale and zero point in float32, the latter off the integers and sometimes beyond the range."""
    scale, _, size, low, high = grid_of(x.float(), spec, shrink=0.6)
    zero = (torch.rand(scale.shape, device=x.device) - 0.5) * 1.1 * (high - low)
    return scale.detach().requires_grad_(), zero.requires_grad_(), size, low, high


def straight_through_in_float64(
    x: Tensor, scale: Tensor, zero: Tensor, size: int, low: int, high: int
) -> Tensor:
    """The definition as one differentiable formula: what is rounded counts as if it had not been."""
    columns = x.shape[1]
    z = zero + (torch.round(zero).clamp(low, high) - zero).detach()
    s, z = qparams.expand_groups(scale, columns, size), qparams.expand_groups(z, columns, size)
    u = x / s
    rounded = torch.round(x.float() * qparams.inverse(s.float())).double()
    u = u + (rounded - u).detach()
    return (torch.clamp(u + z, low, high) - z) * s


# --- forward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    pairwise(
        shape=SHAPES,
        bits=(8, 4),
        symmetric=(True, False),
        granularity=tuple(GRANULARITIES),
        dtype=FLOATS,
        strides=STRIDES,
        shrink=(1.0, 0.5),
    ),
)
def test_forward_is_quantize_then_dequantize(case: dict[str, Any], device: str) -> None:
    spec = spec_of(case["bits"], case["symmetric"], case["granularity"])
    x = with_strides((torch.randn(case["shape"], device=device) + 0.3).to(case["dtype"]), case["strides"])
    scale, zero, size, low, high = grid_of(x, spec, case["shrink"])
    columns = x.shape[1]
    wide = qparams.expand_groups(scale, columns, size)
    wide_zero = None if zero is None else qparams.expand_groups(zero, columns, size)
    codes = qparams.quantize(x, wide, wide_zero, low, high)
    expected = qparams.dequantize(codes, wide, wide_zero, x.dtype)
    assert_same(ops.fake_quantize(x, scale, zero, size, low, high, FACTOR), expected)
    learning = x.clone().requires_grad_()
    assert_same(ops.fake_quantize(learning, scale, zero, size, low, high, FACTOR).detach(), expected)
    float_zero = None if zero is None else zero.float()
    assert_same(ops.fake_quantize(x, scale, float_zero, size, low, high, FACTOR), expected)


def test_what_it_makes_is_on_the_grid_already(device: str) -> None:
    spec = spec_of(4, False, "group 32")
    x = torch.randn(9, 100, device=device)
    grid = grid_of(x, spec)
    once = ops.fake_quantize(x, *grid)
    assert_same(ops.fake_quantize(once, *grid), once)


def test_ties_go_to_even_and_the_rest_saturates(device: str) -> None:
    x = torch.tensor([[-0.5, 0.5, 1.5, 2.5, 6.5, 7.5, 8.5, 1e30, -8.5, -9.5, math.inf, -math.inf]])
    y = ops.fake_quantize(x.to(device), torch.ones(1, 1, device=device), None, 12, -8, 7)
    assert y.tolist() == [[0, 0, 2, 2, 6, 7, 7, 7, -8, -8, 7, -8]]
    assert not y[y == 0].signbit().any()


def test_learned_zero_points_are_rounded_and_clamped(device: str) -> None:
    x = torch.linspace(-30, 30, 61, device=device)[None]
    one = torch.ones(1, 1, device=device)
    for learned, used in ((2.5, 2), (3.4, 3), (-40.0, -8), (11.0, 7)):
        zero = torch.full((1, 1), learned, device=device)
        expected = ops.fake_quantize(x, one, torch.full_like(zero, used).to(torch.int8), 61, -8, 7)
        assert_same(ops.fake_quantize(x, one, zero, 61, -8, 7), expected)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    pairwise(
        shape=SHAPES[:4],
        bits=(8, 4),
        symmetric=(True, False),
        granularity=tuple(GRANULARITIES),
        dtype=FLOATS,
        strides=STRIDES,
    ),
)
def test_gradients_are_those_of_the_formula_in_float64(case: dict[str, Any], device: str) -> None:
    spec = spec_of(case["bits"], case["symmetric"], case["granularity"])
    x = with_strides(torch.randn(case["shape"], device=device).to(case["dtype"]), case["strides"])
    x = x.detach().requires_grad_()
    scale, zero, size, low, high = learned_grid(x.detach(), spec)
    dy = torch.randn(case["shape"], device=device).to(x.dtype)
    y = ops.fake_quantize(x, scale, zero, size, low, high, FACTOR)
    dx, dscale, dzero = torch.autograd.grad(y, (x, scale, zero), dy)

    twins = [leaf.detach().double().requires_grad_() for leaf in (x, scale, zero)]
    exact = straight_through_in_float64(twins[0], twins[1], twins[2], size, low, high)
    exact_dx, exact_dscale, exact_dzero = torch.autograd.grad(exact, twins, dy.double())
    assert_same(y.detach(), exact.detach().float().to(x.dtype))
    assert_same(dx.double(), exact_dx.reshape(dx.shape))
    elements = dy.numel() / dscale.numel()
    tolerance = 3e-5 * FACTOR * elements * dy.abs().max().item()  # a float32 x/scale near 128 is off by 8e-6
    torch.testing.assert_close(dscale.double(), FACTOR * exact_dscale, rtol=1e-5, atol=tolerance)
    torch.testing.assert_close(dzero.double(), FACTOR * exact_dzero, rtol=1e-5, atol=1e-6)
    assert (dx.dtype, dscale.dtype, dzero.dtype) == (x.dtype, torch.float32, torch.float32)


@pytest.mark.parametrize("granularity", list(GRANULARITIES))
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mask_gives_the_gradient_of_x(granularity: str, dtype: torch.dtype, device: str) -> None:
    """Where nothing but x learns, another operator runs; its dx must be the same."""
    x = torch.randn(13, 100, device=device).to(dtype).requires_grad_()
    scale, zero, *rest = grid_of(x.detach(), spec_of(4, False, granularity), shrink=0.5)
    dy = torch.randn(13, 100, device=device).to(dtype)
    (masked,) = torch.autograd.grad(ops.fake_quantize(x, scale, zero, *rest), x, dy)
    (expected,) = torch.autograd.grad(
        ops.fake_quantize(x, scale.clone().requires_grad_(), zero, *rest), x, dy
    )
    assert_same(masked, expected)
    assert 0 < (masked == 0).sum() < masked.numel()


def test_finite_differences_where_there_are_any(device: str) -> None:
    """Outside the range y is linear in scale and zero point; inside, over a whole step, linear in x."""
    dy = torch.randn(6, 40, device=device)
    outside = torch.where(torch.rand(6, 40, device=device) < 0.5, -1000.0, 1000.0)
    scale = torch.full((6, 1), 0.5, device=device, requires_grad=True)
    zero = torch.full((6, 1), 2.0, device=device, requires_grad=True)

    def total(scale: Tensor, zero: Tensor) -> Tensor:
        return (ops.fake_quantize(outside, scale, zero, 40, -8, 7) * dy).sum(dim=1, keepdim=True)

    dscale, dzero = torch.autograd.grad(total(scale, zero).sum(), (scale, zero))
    with torch.no_grad():
        by_scale = (total(scale + 0.25, zero) - total(scale - 0.25, zero)) / 0.5
        by_zero = (total(scale, zero + 1) - total(scale, zero - 1)) / 2
    torch.testing.assert_close(dscale, by_scale, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(dzero, by_zero, rtol=1e-5, atol=1e-4)

    x = (torch.rand(6, 40, device=device) * 5 - 3).requires_grad_()
    step = torch.full((6, 1), 0.5, device=device)
    (dx,) = torch.autograd.grad((ops.fake_quantize(x, step, None, 40, -8, 7) * dy).sum(), x)
    with torch.no_grad():
        rise = ops.fake_quantize(x + 0.5, step, None, 40, -8, 7) - ops.fake_quantize(x, step, None, 40, -8, 7)
    torch.testing.assert_close(dx, rise / 0.5 * dy)


def test_rows_outside_the_range_pass_nothing(device: str) -> None:
    x = torch.full((4, 33), 100.0, device=device, requires_grad=True)
    scale = torch.ones(4, 1, device=device, requires_grad=True)
    ops.fake_quantize(x, scale, None, 33, -8, 7, 0.5).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
    assert scale.grad is not None
    assert scale.grad.tolist() == [[0.5 * 33 * 7]] * 4


def test_a_scale_learns_the_best_clipping(device: str) -> None:
    """LSQ on the error of a weight: it must end near the best of all scales, found by trying them."""
    x = torch.randn(1, 4096, device=device)
    tried = torch.linspace(0.05, 1.0, 200, device=device)
    errors = torch.stack(
        [(ops.fake_quantize(x, s.reshape(1, 1), None, 4096, -8, 7) - x).square().mean() for s in tried]
    )
    scale = torch.full((1, 1), 0.9, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([scale], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (ops.fake_quantize(x, scale, None, 4096, -8, 7, 1.0) - x).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.1 * errors.min().item()


def test_a_nan_gradient_flows(device: str) -> None:
    x = torch.randn(5, 64, device=device).requires_grad_()
    scale = torch.full((5, 2), 0.5, device=device, requires_grad=True)
    dy = torch.ones(5, 64, device=device)
    dy[3, 40] = math.nan
    dx, dscale = torch.autograd.grad(ops.fake_quantize(x, scale, None, 32, -8, 7), (x, scale), dy)
    assert dx.isnan().nonzero().tolist() == [[3, 40]]
    assert dscale.isnan().nonzero().tolist() == [[3, 1]]
    (dx,) = torch.autograd.grad(ops.fake_quantize(x, scale.detach(), None, 32, -8, 7), x, dy)
    assert dx.isnan().nonzero().tolist() == [[3, 40]]


def test_gradients_repeat_their_bits(device: str) -> None:
    x, dy = torch.randn(129, 300, device=device).requires_grad_(), torch.randn(129, 300, device=device)
    scale, zero, size, low, high = learned_grid(x.detach(), spec_of(8, False, "tensor"))

    def gradients() -> tuple[Tensor, ...]:
        y = ops.fake_quantize(x, scale, zero, size, low, high, FACTOR)
        return torch.autograd.grad(y, (x, scale, zero), dy)

    for one, other in zip(gradients(), gradients(), strict=True):
        assert_same(one, other)


# --- per token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_per_token(shape: tuple[int, int], dtype: torch.dtype, symmetric: bool, device: str) -> None:
    x = (torch.randn(shape, device=device) + 0.5).to(dtype).requires_grad_()
    y = ops.fake_quantize_per_token(x, symmetric)
    codes, scale, zero = reference.quantize_per_token(x.detach(), symmetric)
    assert_same(y.detach(), ((codes.float() - zero.float()) * scale).to(dtype))
    dy = torch.randn(shape, device=device).to(dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert_same(dx, dy)


def test_per_token_rows_that_are_not_finite_become_nan(device: str) -> None:
    x = torch.randn(4, 9, device=device)
    x[1, 2], x[3, 0] = math.nan, math.inf
    y = ops.fake_quantize_per_token(x, True)
    assert y[[1, 3]].isnan().all()
    assert_same(y[[0, 2]], ops.fake_quantize_per_token(x[[0, 2]], True))


@pytest.mark.gpu
@pytest.mark.parametrize("granularity", list(GRANULARITIES))
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gpu_computes_what_the_reference_does(granularity: str, dtype: torch.dtype) -> None:
    x, dy = torch.randn(65, 300).to(dtype), torch.randn(65, 300).to(dtype)
    scale, zero, size, low, high = learned_grid(x, spec_of(4, False, granularity))
    found = []
    for device in ("cpu", "cuda"):
        leaves = [leaf.detach().to(device).requires_grad_() for leaf in (x, scale, zero)]
        y = ops.fake_quantize(leaves[0], leaves[1], leaves[2], size, low, high, FACTOR)
        masked = ops.fake_quantize(leaves[0], leaves[1].detach(), leaves[2].detach(), size, low, high)
        gradients = torch.autograd.grad(y, leaves, dy.to(device))
        (dx,) = torch.autograd.grad(masked, leaves[0], dy.to(device))
        found.append([t.detach().cpu() for t in (y, masked, dx, *gradients)])
    for one, other in list(zip(*found, strict=True))[:4]:
        assert_same(other, one)
    for one, other in list(zip(*found, strict=True))[4:]:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
