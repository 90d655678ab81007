"""The kernel that multiplies by two weights at once, against the reference and against two single products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kernel_inputs import (
    FLOATS,
    STRIDES,
    Weight,
    as_stored,
    assert_codes_close,
    assert_same,
    random_codes,
    random_grid,
    random_weight,
    with_strides,
)
from tests.support.pairwise import pairwise
from tests.support.poison import Poison
from tritonq import reference
from tritonq.numerics import config

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.int8", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig = kernels.TileConfig
TILES = (None, TileConfig(64, 32, 128, 4, 4, 2), TileConfig(128, 16, 256, 1, 4, 2))


def two_weights(features: int, columns: int, symmetric: bool, device: str) -> tuple[Weight, Weight]:
    made = config.W8A8(symmetric=symmetric)
    return (
        random_weight(made, features, columns, torch.float32, device),
        random_weight(made, features, columns, torch.float32, device),
    )


def multiply(
    x: Tensor, scale: Tensor, zero: Tensor | None, weights: tuple[Weight, Weight], biases: Any, *rest: Any
) -> Tensor:
    gate, up = (w.int8(bias) for w, bias in zip(weights, biases, strict=True))
    dtype, activation, *grid, tile = rest
    out = kernels.Grid(*grid) if grid else None
    rows = kernels.Int8Activation(x, scale, zero)
    return kernels.int8_matmul(rows, gate, dtype, activation, None, out, up, tile)


def expected_of(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    weights: tuple[Weight, Weight],
    biases: Any,
    activation: str,
) -> Tensor:
    """float32 [M, N]."""
    gate, up = ((w.codes, w.scale, w.zero, bias) for w, bias in zip(weights, biases, strict=True))
    gates, ups = (reference.int8_linear(x, scale, zero, *one, torch.float32) for one in (gate, up))
    return reference.gated(gates, ups, activation)


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=(33, 1, 3, 0),
        columns=(314, 31, 576),
        features=(130, 7, 64),
        activation=("silu", "gelu", "gelu_tanh", "relu", "none"),
        strides=STRIDES,
        tile=TILES,
        out=(*FLOATS, "int8 symmetric", "int8 affine"),
        per_token=(True, False),
        x_affine=(False, True),
        gate_affine=(True, False),
        up_affine=(False, True),
        gate_bias=(None, torch.float32),
        up_bias=(torch.float16, None),
    ),
)
def test_against_the_reference(case: dict[str, Any], device: str) -> None:
    rows, columns, features = case["rows"], case["columns"], case["features"]
    gate, up = (
        random_weight(config.W8A8(symmetric=not affine), features, columns, torch.float32, device)
        for affine in (case["gate_affine"], case["up_affine"])
    )
    biases = [
        None if dtype is None else torch.randn(features, device=device).to(dtype)
        for dtype in (case["gate_bias"], case["up_bias"])
    ]
    shape = (rows, 1) if case["per_token"] else (1,)
    x_scale = (torch.rand(shape, device=device) + 0.1) / (10 * columns**0.5)
    x_zero = random_codes(*shape, device=device) if case["x_affine"] else None
    x = with_strides(random_codes(rows, columns, device=device), case["strides"])
    operands = (x, x_scale, x_zero, (gate, up), biases)
    exact = expected_of(*operands, case["activation"])
    is_exact = case["activation"] in ("none", "relu")
    if isinstance(case["out"], torch.dtype):
        found = multiply(*operands, case["out"], case["activation"], case["tile"])
        if is_exact:
            assert_same(found, as_stored(exact, case["out"]))
        else:
            step = 4e-6 if case["out"] == torch.float32 else torch.finfo(case["out"]).eps
            # Where the gate cancels to almost nothing, what is left of it is relative to what cancelled.
            nothing = 1e-6 * max([1.0, *exact.abs().flatten().tolist()])
            expected = as_stored(exact, case["out"]).float()
            torch.testing.assert_close(found.float(), expected, rtol=step, atol=nothing)
        return
    grid = random_grid(device, 0.05, "affine" in case["out"])
    found = multiply(*operands, torch.int8, case["activation"], *grid, case["tile"])
    expected = reference.quantize_per_tensor(exact, *grid)
    (assert_same if is_exact else assert_codes_close)(found, expected)


@pytest.mark.parametrize("splits", [2, 8])
def test_splits_agree_to_the_bit_and_put_counters_back(splits: int, device: str, poison: Poison) -> None:
    x = random_codes(5, 300, device=device)
    weights = two_weights(70, 300, False, device)
    arguments = (x, torch.rand(5, 1, device=device), random_codes(5, 1, device=device), weights, (None, None))
    unsplit = multiply(*arguments, torch.float32, "silu", TileConfig(64, 16, 64, 1, 4, 2))
    for _ in range(2):
        found = multiply(*arguments, torch.float32, "silu", TileConfig(64, 16, 64, splits, 4, 2))
        assert_same(found, unsplit)
    assert len(poison.zeroed) > 0


def test_products_are_those_of_the_single_kernel(device: str) -> None:
    """Where up is 1 everywhere, the gated product is the gate's."""
    x, gate = random_codes(20, 96, device=device), random_weight(config.W8A8(), 50, 96, torch.float32, device)
    up = random_weight(config.W8A8(), 50, 96, torch.float32, device)
    up.codes.fill_(0)
    up.packed.fill_(0)
    scale, bias, ones = (
        torch.rand(20, 1, device=device),
        torch.randn(50, device=device),
        torch.ones(50, device=device),
    )
    found = multiply(x, scale, None, (gate, up), (bias, ones), torch.float32, "none", None)
    expected = kernels.int8_matmul(kernels.Int8Activation(x, scale), gate.int8(bias), torch.float32)
    assert_same(found, expected)


def test_columns_of_padding_are_never_read(device: str) -> None:
    x = random_codes(3, 31, device=device)
    weights = two_weights(7, 31, True, device)
    arguments = (x, torch.rand(3, 1, device=device), None, weights, (None, None), torch.float32, "silu", None)
    clean = multiply(*arguments)
    for w in weights:
        w.packed[:, 31:] = 99
    assert_same(multiply(*arguments), clean)
