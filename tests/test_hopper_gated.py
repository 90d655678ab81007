"""The gated product in Gluon against the reference, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.hopper import hopper_launches
from tests.support.kernel_inputs import (
    FLOATS,
    addressable,
    assert_codes_close,
    assert_same,
    random_codes,
    random_grid,
    random_weight,
)
from tests.support.pairwise import pairwise
from tests.test_kernels_gated import expected_of, multiply
from tritonq import reference
from tritonq.numerics import config

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.int8", reason="Triton is not installed")
shapes: Any = pytest.importorskip("tritonq.kernels.config.hopper_shapes")
pytest.importorskip("tritonq.kernels.hopper.int8", reason="Triton has no Gluon")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig, Target = kernels.TileConfig, kernels.Target
H100 = Target("cuda", 90, 132, 227 * 1024)
TILES = (
    TileConfig(64, 64, 128, 1, 4, 2, "hopper"),
    TileConfig(64, 64, 128, 4, 4, 3, "hopper"),
    TileConfig(128, 128, 128, 1, 8, 2, "hopper"),
    TileConfig(128, 64, 128, 2, 8, 2, "hopper"),
)


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=(70, 1, 129),
        columns=(300, 31, 513),
        features=(144, 16),
        activation=("silu", "relu", "gelu"),
        tile=TILES,
        out=(torch.bfloat16, torch.float32, "int8 symmetric", "int8 affine"),
        per_token=(True, False),
        x_affine=(False, True),
        gate_affine=(True, False),
        up_affine=(False, True),
        bias=FLOATS,
        seed=(0, 1, 2),
    ),
)
def test_against_the_reference(case: dict[str, Any], device: str) -> None:
    rows, columns, features, out = (case[name] for name in ("rows", "columns", "features", "out"))
    weights = tuple(
        random_weight(config.W8A8(symmetric=not affine), features, columns, torch.float32, device)
        for affine in (case["gate_affine"], case["up_affine"])
    )
    biases = [torch.randn(features, device=device).to(case["bias"]), None]
    shape = (rows, 1) if case["per_token"] else (1,)
    scale = (torch.rand(shape, device=device) + 0.1) / (10 * columns**0.5)
    zero = random_codes(*shape, device=device) if case["x_affine"] else None
    x = random_codes(rows, columns, device=device)
    exact = expected_of(x, scale, zero, weights, biases, case["activation"])  # type: ignore[arg-type]
    is_exact = case["activation"] == "relu"
    rest: tuple[Any, ...] = (case["activation"], case["tile"])
    if isinstance(out, torch.dtype):
        with hopper_launches(case["seed"]):
            found = multiply(addressable(x), scale, zero, weights, biases, out, *rest)  # type: ignore[arg-type]
        if is_exact:
            assert_same(found, exact.to(out))
        else:
            step = 4e-6 if out == torch.float32 else torch.finfo(out).eps
            nothing = 1e-6 * max(1.0, exact.abs().max().item())  # what is left where the gate cancels
            torch.testing.assert_close(found.float(), exact.to(out).float(), rtol=step, atol=nothing)
        return
    grid = random_grid(device, 0.05, "affine" in out)
    rest = (torch.int8, case["activation"], *grid, case["tile"])
    with hopper_launches(case["seed"]):
        found = multiply(addressable(x), scale, zero, weights, biases, *rest)  # type: ignore[arg-type]
    expected = reference.quantize_per_tensor(exact, *grid)
    (assert_same if is_exact else assert_codes_close)(found, expected)


@pytest.mark.parametrize(
    ("rows", "features", "shape"),
    [(4096, 14336, (128, 1)), (128, 4096, (64, 2))],
)
def test_the_rule(rows: int, features: int, shape: tuple[int, int]) -> None:
    problem = kernels.Problem(kernels.Int8Gated(addressable=True), rows, features, 4096)
    chosen = kernels.int8_rule.choose(problem, H100)
    assert (chosen.path, chosen.block_n, chosen.splits) == ("hopper", *shape)
    assert shapes.why_not_gated(problem, H100, chosen) is None
    unaligned = kernels.Problem(kernels.Int8Gated(addressable=False), rows, features, 4096)
    assert kernels.int8_rule.choose(unaligned, H100).path == "pointers"
