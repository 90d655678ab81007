"""Kernels that compute a row, or elements, and quantize in the same pass, against the reference.

Bit-equal where sums are exact and no elementary function is in between; else a code may be one off, rarely.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kernel_inputs import (
    COLUMNS,
    FLOATS,
    STRIDES,
    as_stored,
    assert_codes_close,
    assert_same,
    random_grid,
    readable,
    with_strides,
)
from tests.support.pairwise import pairwise
from tritonq import reference

kernels: Any = pytest.importorskip("tritonq.kernels.rows.norm_quantize", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

LONGEST_SINGLE_READ = 16384
Row = tuple[Tensor, Tensor, Tensor]


def normalize(
    norm: str,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    symmetric: bool,
    grid: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Row]:
    """(float32 values that the codes should stand for, what the kernel returned)."""
    eps, rest = 1e-5, (symmetric, *(grid or ()))
    if norm == "layer":
        return reference.layer_norm(x, weight, bias, eps), kernels.layer_norm_quantize(
            x, weight, bias, eps, *rest
        )
    if norm == "rms":
        return reference.rms_norm(x, weight, eps), kernels.rms_norm_quantize(x, weight, eps, *rest)
    assert residual is not None
    total, *row = kernels.add_rms_norm_quantize(x, residual, weight, eps, *rest)
    assert_same(total, as_stored(x.float() + residual.float(), x.dtype))
    return reference.rms_norm(total, weight, eps), tuple(row)


def check(values: Tensor, row: Row, symmetric: bool, grid: Any, exact: bool) -> None:
    compare = assert_same if exact else assert_codes_close
    if grid is not None:
        compare(row[0], reference.quantize_per_tensor(values, grid[0], grid[1], symmetric))
        return
    codes, scale, zero = reference.quantize_per_token(values, symmetric)
    compare(row[0], codes)
    # A gelu of a negative value is what a difference leaves: its error is absolute.
    rtol, atol = (0.0, 0.0) if exact else (1e-6, 1e-9)
    torch.testing.assert_close(row[1], scale, rtol=rtol, atol=atol, equal_nan=True)
    assert_same(row[2], zero)


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=(6, 1, 0),
        columns=COLUMNS,
        norm=("rms", "layer", "add rms"),
        mode=("token", "tensor"),
        symmetric=(True, False),
        dtype=FLOATS,
        strides=STRIDES,
        weight=(torch.float32, torch.bfloat16, None),
        bias=(None, torch.float16),
        residual=FLOATS,
    ),
)
def test_norms(case: dict[str, Any], device: str) -> None:
    rows, columns, dtype = case["rows"], case["columns"], case["dtype"]
    x = (torch.randn(rows, columns, device=device) + 0.2) * torch.logspace(-3, 3, rows, device=device)[
        :, None
    ]
    x = with_strides(readable(x.to(dtype)), case["strides"])
    residual = with_strides(
        readable(torch.randn(rows, columns, device=device).to(case["residual"])), case["strides"]
    )
    weight, bias = (
        None if wanted is None else readable(torch.randn(columns, device=device).to(wanted))
        for wanted in (case["weight"], case["bias"])
    )
    scale, zero, symmetric = random_grid(device, 0.01, not case["symmetric"])
    grid = None if case["mode"] == "token" else (scale, zero)
    values, row = normalize(case["norm"], x, residual, weight, bias, symmetric, grid)
    check(values, row, symmetric, grid, exact=False)


@pytest.mark.parametrize("columns", [64, LONGEST_SINGLE_READ + 2, 40_000])
@pytest.mark.parametrize("norm", ["rms", "layer", "add rms"])
@pytest.mark.parametrize("mode", ["token", "tensor"])
def test_norms_are_equal_to_the_bit_where_sums_are_exact(
    mode: str, norm: str, columns: int, device: str
) -> None:
    """Small integers whose mean is one too: every order of summing them, or their squares, gives the same float32."""
    half = torch.randint(-4, 5, (3, columns // 2), device=device).float()
    mean = torch.tensor([[0.0], [3.0], [-2.0]], device=device)
    x = torch.cat([half, -half], dim=1)[:, torch.randperm(columns)] + mean
    residual = torch.randint(-3, 4, x.shape, device=device).half()
    weight, bias = torch.randn(columns, device=device), torch.randn(columns, device=device)
    grid = None if mode == "token" else random_grid(device, 0.01, True)[:2]
    values, row = normalize(norm, x, residual, weight, bias, False, grid)
    check(values, row, False, grid, exact=True)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_random_rows_have_few_codes_one_off(symmetric: bool, norm: str, device: str) -> None:
    x, weight = torch.randn(5, 12_000, device=device) * 3 + 1, torch.randn(12_000, device=device)
    values, (codes, scale, zero) = normalize(norm, x, None, weight, weight, symmetric, None)
    expected = reference.quantize_per_token(values, symmetric)
    assert_codes_close(codes, expected[0])
    torch.testing.assert_close(scale, expected[1], rtol=1e-6, atol=0)
    assert_same(zero, expected[2])


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("columns", [5, LONGEST_SINGLE_READ + 9])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("operation", ["rms", "layer", "add rms", "gated"])
def test_rows_that_are_not_finite_touch_no_other(
    operation: str, symmetric: bool, columns: int, device: str
) -> None:
    def run(x: Tensor) -> Any:
        if operation == "gated":
            return kernels.gated_quantize_per_token(x, torch.ones_like(x), "none", symmetric)
        return normalize(operation, x, torch.ones_like(x), None, None, symmetric, None)[1]

    clean = torch.randn(7, columns, device=device)
    x = clean.clone()
    x[1, -1], x[3, 0], x[5, columns // 2] = math.nan, math.inf, -math.inf
    before, (codes, scale, zero) = run(clean), run(x)
    for found, expected in zip((codes, scale, zero), before, strict=True):
        assert_same(found[::2], expected[::2])
    assert scale[1::2].isnan().all()
    assert not codes[1::2].any()
    assert not zero[1::2].any()


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_given_grid_gives_rows_that_are_not_finite_the_zero_point(norm: str, device: str) -> None:
    x = torch.ones(2, 8, device=device)
    x[0, 3] = math.nan
    grid = (torch.ones(1, device=device), torch.full((1,), 9, dtype=torch.int8, device=device))
    _, (codes, _, _) = normalize(norm, x, None, None, None, True, grid)
    assert (codes[0] == 9).all()
    assert (codes[1] == (10 if norm == "rms" else 9)).all()


def test_rows_of_zeros_and_without_eps(device: str) -> None:
    x = torch.zeros(1, 12, device=device)
    codes, scale, _ = kernels.rms_norm_quantize(x, None, 1e-6, True)
    assert not codes.any()
    assert scale.item() == 1.0
    _, scale, _ = kernels.rms_norm_quantize(x, None, 0.0, True)  # 0 · (1 / 0)
    assert scale.isnan().all()


# --- gated products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=(6, 1, 0),
        columns=(*COLUMNS, 4097, LONGEST_SINGLE_READ + 1),
        activation=reference.ACTIVATIONS,
        symmetric=(True, False),
        dtype=FLOATS,
        strides=STRIDES,
    ),
)
def test_gated_products(case: dict[str, Any], device: str) -> None:
    gate, up = (
        with_strides(
            readable(torch.randn(case["rows"], case["columns"], device=device).to(case["dtype"])),
            case["strides"],
        )
        for _ in range(2)
    )
    activation = case["activation"]
    values, exact = reference.gated(gate, up, activation), activation in ("none", "relu")
    symmetric = case["symmetric"]
    row = kernels.gated_quantize_per_token(gate, up, activation, symmetric)
    check(values, row, symmetric, None, exact)
    row = kernels.gated_quantize_per_token(gate, None, activation, symmetric)
    check(reference.gated(gate, None, activation), row, symmetric, None, exact)
