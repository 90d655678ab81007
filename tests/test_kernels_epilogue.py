"""The INT8 kernel with a residual and an activation behind its product, against the reference.

Bit-equal where no elementary function is in between.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.kernel_inputs import (
    FLOATS,
    Weight,
    addressable,
    as_stored,
    assert_codes_close,
    assert_same,
    random_codes,
    random_grid,
    random_weight,
    readable,
    with_strides,
)
from tests.support.pairwise import pairwise
from tritonq import reference
from tritonq.numerics import config

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.int8", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig = kernels.TileConfig
TILES = (
    None,
    TileConfig(64, 32, 128, 4, 4, 2),
    TileConfig(128, 16, 256, 1, 4, 2),
    TileConfig(64, 16, 128, 1, 4, 2, "descriptors"),
)
EXACT = ("none", "relu")
RESIDUALS = (None, *FLOATS, "int8", "int8 symmetric")


def multiply(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    w: Weight,
    bias: Tensor | None,
    dtype: torch.dtype,
    grid: tuple[Any, ...] | None,
    activation: str,
    residual: tuple[Tensor | None, ...] = (None,),
    tile: Any = None,
) -> Tensor:
    if tile is not None and tile.path == "descriptors":
        x = addressable(x)
    operands = kernels.Int8Activation(x, scale, zero), w.int8(bias)
    added = None if residual[0] is None else kernels.Residual(*residual)
    out = None if grid is None else kernels.Grid(*grid)
    return kernels.int8_matmul(*operands, dtype, activation, added, out, config=tile)


def random_residual(
    kind: Any, rows: int, features: int, strides: str, device: str
) -> tuple[Tensor | None, ...]:
    """residual [M, N], its scale and its zero point."""
    if kind is None:
        return None, None, None
    if isinstance(kind, torch.dtype):
        values = readable((30 * torch.randn(rows, features, device=device)).to(kind))
        return with_strides(values, strides), None, None
    zero = None if "symmetric" in kind else random_codes(1, device=device)
    codes = with_strides(random_codes(rows, features, device=device), strides)
    return codes, torch.rand(1, device=device) + 0.1, zero


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=(33, 1, 0),
        columns=(314, 31, 128),
        features=(130, 7),
        activation=reference.ACTIVATIONS,
        residual=RESIDUALS,
        strides=("contiguous", "wide rows", "transposed", "expanded"),
        tile=TILES,
        out=(*FLOATS, "int8 symmetric", "int8 affine"),
        per_token=(True, False),
        x_affine=(False, True),
        w_affine=(True, False),
        bias=(torch.bfloat16, None, torch.float32),
    ),
)
def test_against_the_reference(case: dict[str, Any], device: str) -> None:
    rows, columns, features, activation = (
        case[name] for name in ("rows", "columns", "features", "activation")
    )
    w = random_weight(config.W8A8(symmetric=not case["w_affine"]), features, columns, torch.float32, device)
    shape = (rows, 1) if case["per_token"] else (1,)
    x_scale = torch.rand(shape, device=device) / columns**0.5 + 0.01
    x_zero = random_codes(*shape, device=device) if case["x_affine"] else None
    x = random_codes(rows, columns, device=device)
    bias = None if case["bias"] is None else torch.randn(features, device=device).to(case["bias"])
    residual = random_residual(case["residual"], rows, features, case["strides"], device)
    operands = (x, x_scale, x_zero, w.codes, w.scale, w.zero, bias)
    if isinstance(case["out"], torch.dtype):
        exact = reference.int8_linear(*operands, torch.float32, activation, *residual)
        epilogue = (case["out"], None, activation, residual, case["tile"])
        found = multiply(x, x_scale, x_zero, w, bias, *epilogue)
        if activation in EXACT:
            assert_same(found, as_stored(exact, case["out"]))
        else:
            # A value that differs in its last bit may be rounded, or truncated, to the neighbour.
            step = 2e-6 if case["out"] == torch.float32 else torch.finfo(case["out"]).eps
            torch.testing.assert_close(
                found.float(), as_stored(exact, case["out"]).float(), rtol=step, atol=2e-6
            )
        return
    grid = random_grid(device, 1.0, "affine" in case["out"])
    found = multiply(x, x_scale, x_zero, w, bias, torch.int8, grid, activation, residual, case["tile"])
    expected = reference.int8_linear_requantize(*operands, *grid, activation, *residual)
    (assert_same if activation in EXACT else assert_codes_close)(found, expected)


@pytest.mark.parametrize("tile", [None, TileConfig(64, 16, 64, 4, 4, 2)])
@pytest.mark.parametrize("zero", [0, -50, 127])
def test_relu_is_a_clamp_of_the_codes(zero: int, tile: Any, device: str) -> None:
    x, w = random_codes(9, 300, device=device), random_weight(config.W8A8(), 70, 300, torch.float32, device)
    scale, grid = torch.full((1,), 0.05, device=device), torch.ones(1, device=device)
    out_zero = torch.full((1,), zero, dtype=torch.int8, device=device)
    bias = torch.randn(70, device=device) * 30
    plain, clamped = (
        multiply(x, scale, None, w, bias, torch.int8, (grid, out_zero, False), activation, tile=tile)
        for activation in EXACT
    )
    assert_same(clamped, plain.clamp(min=zero))


def identity(values: Tensor, out: Any, activation: str, *grid: Any) -> Tensor:
    """A kernel's activation(values): a product of zeros, to which they are added as a residual."""
    rows, features = values.shape
    x = torch.zeros(rows, 16, dtype=torch.int8, device=values.device)
    w = random_weight(config.W8A8(), features, 16, torch.float32, values.device.type)
    one = torch.ones(1, device=values.device)
    return multiply(x, one, None, w, None, out, grid or None, activation, (values,))


ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
    "silu": functional.silu,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_smooth_activations_against_float64(activation: str, device: str) -> None:
    y = torch.cat([torch.linspace(-20, 20, 4001), torch.logspace(-30, 30, 99), -torch.logspace(-30, 2, 28)])
    y = y.to(device).reshape(8, -1)
    found = identity(y, torch.float32, activation)
    torch.testing.assert_close(found.double(), ACTIVATIONS[activation](y.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations_at_the_ends(activation: str, device: str) -> None:
    largest = torch.finfo(torch.float32).max
    y = torch.tensor([[-math.inf, -largest, -200.0, 0.0, largest, math.inf, math.nan]], device=device)
    assert_same(identity(y, torch.float32, activation), reference.activate(y, activation))
    grid = (torch.ones(1, device=device), torch.full((1,), 5, dtype=torch.int8, device=device), True)
    lowest = -127 if activation == "none" else 5
    assert identity(y, torch.int8, activation, *grid).tolist() == [[lowest, lowest, lowest, 5, 127, 127, 5]]


def test_nan_of_a_row_takes_the_zero_point_and_stays_there(device: str) -> None:
    x, w = random_codes(3, 64, device=device), random_weight(config.W8A8(), 20, 64, torch.float32, device)
    scale = torch.full((3, 1), 0.01, device=device)
    scale[1] = math.nan
    grid = (torch.ones(1, device=device), torch.full((1,), -7, dtype=torch.int8, device=device), False)
    for activation in reference.ACTIVATIONS:
        found = multiply(x, scale, None, w, None, torch.int8, grid, activation)
        assert (found[1] == -7).all()
        assert len(found[::2].unique()) > 3
