"""The INT8 × INT4 kernel (W4A8) against the reference: exact products, scales in the contract's order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kernel_inputs import (
    COLUMNS,
    FEATURES,
    FLOATS,
    ROWS,
    STRIDES,
    Weight,
    as_stored,
    assert_close_to_float32,
    assert_same,
    random_codes,
    random_weight,
    with_strides,
)
from tests.support.pairwise import pairwise
from tests.support.poison import Poison
from tritonq import reference
from tritonq.numerics import config, slabs

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.int4_int8", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig = kernels.TileConfig
UNSPLIT = (TileConfig(64, 64, 0, 1, 4, 2), TileConfig(128, 16, 0, 1, 4, 2))
TILES = (None, *UNSPLIT, TileConfig(64, 16, 0, 2, 4, 2), TileConfig(128, 32, 0, 8, 4, 3))
GROUPS = (128, None, 32, 64, 100, 24, 2000)


def multiply(
    x: Tensor, x_scale: Tensor, w: Weight, bias: Tensor | None, dtype: torch.dtype, tile: Any = None
) -> Tensor:
    layout = w.layout
    numbers = (layout.group_size, layout.padded_group, layout.slab_width)
    return kernels.int4_int8_matmul(x, x_scale, w.packed, w.kernel_scale, bias, *numbers, dtype, config=tile)


def scales_of(rows: int, device: str) -> Tensor:
    return torch.rand(rows, 1, device=device) / 10 + 0.01


@pytest.mark.parametrize(
    "case",
    pairwise(
        group_size=GROUPS,
        rows=ROWS,
        columns=COLUMNS,
        features=FEATURES,
        tile=TILES,
        strides=STRIDES,
        out=FLOATS,
        w_dtype=FLOATS,
        bias=(None, torch.float32, torch.bfloat16),
    ),
)
def test_against_the_reference(case: dict[str, Any], device: str) -> None:
    rows, columns, features, group_size = case["rows"], case["columns"], case["features"], case["group_size"]
    x = with_strides(random_codes(rows, columns, device=device), case["strides"])
    w = random_weight(config.W4A8(group_size=group_size), features, columns, case["w_dtype"], device)
    bias = None if case["bias"] is None else torch.randn(features, device=device).to(case["bias"])
    x_scale = scales_of(rows, device)
    found = multiply(x, x_scale, w, bias, case["out"], case["tile"])
    exact = reference.int4_int8_linear(x, x_scale, w.codes, w.scale, bias, w.layout.group_size, torch.float32)
    if case["tile"] in UNSPLIT or w.layout.groups == 1:
        assert_same(found, as_stored(exact, case["out"]))
    else:
        # Splits add float32 sums over groups in another order than one program does.
        magnitude = (x.float().abs() * x_scale) @ w.dequantized().abs().t()
        assert_close_to_float32(found, exact, magnitude if bias is None else magnitude + bias.float().abs())


@pytest.mark.parametrize("group_size", [1, 7, 30])
def test_groups_smaller_than_a_slab(group_size: int, device: str) -> None:
    x, x_scale = random_codes(3, 31, device=device), scales_of(3, device)
    w = random_weight(config.W4A8(group_size=group_size), 7, 31, torch.float32, device)
    found = multiply(x, x_scale, w, None, torch.float32, UNSPLIT[0])
    assert_same(
        found, reference.int4_int8_linear(x, x_scale, w.codes, w.scale, None, group_size, torch.float32)
    )


@pytest.mark.parametrize("group_size", [64, None])
@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@pytest.mark.parametrize("columns", [64, 700])
def test_splits_repeat_their_bits(
    columns: int, splits: int, group_size: int | None, device: str, poison: Poison
) -> None:
    w = random_weight(config.W4A8(group_size=group_size), 70, columns, torch.float32, device)
    x, x_scale = random_codes(5, columns, device=device), scales_of(5, device)
    arguments = (x, x_scale, w, torch.randn(70, device=device), torch.float32)
    tile = TileConfig(64, 16, 0, splits, 4, 2)
    first = multiply(*arguments, tile)
    for _ in range(2):
        assert_same(multiply(*arguments, tile), first)
    unsplit = multiply(*arguments, UNSPLIT[0])
    if w.layout.groups == 1:
        assert_same(first, unsplit)  # what is summed over splits is int32
    else:
        torch.testing.assert_close(first, unsplit, rtol=1e-5, atol=1e-5 * unsplit.abs().max().item())
    assert (len(poison.zeroed) > 0) == (splits > 1)


@pytest.mark.parametrize("group_size", [32, 100, None])
def test_every_product_of_two_codes_is_exact(group_size: int | None, device: str) -> None:
    """Each row of x holds one code at one place: all 256 × 16 products, 16 · -8 · -128 among them."""
    columns, features = 128, 16
    w = random_weight(config.W4A8(group_size=group_size), features, columns, torch.float32, device)
    w.codes = torch.arange(-8, 8, device=device).to(torch.int8)[:, None].repeat(1, columns)
    w.packed, w.scale = slabs.pack(w.codes, w.layout), torch.ones_like(w.scale)
    x = torch.zeros(256, columns, dtype=torch.int8, device=device)
    codes = torch.arange(-128, 128, device=device)
    x[torch.arange(256), codes % columns] = codes.to(torch.int8)
    found = multiply(
        x, torch.ones(256, 1, device=device), w, None, torch.float32, TileConfig(16, 256, 0, 1, 4, 2)
    )
    assert_same(found, codes.float()[:, None] * torch.arange(-8.0, 8.0, device=device))


@pytest.mark.parametrize("splits", [1, 8])
def test_the_longest_sum_does_not_overflow(splits: int, device: str) -> None:
    """K at its limit, 131,071: products are carried 16 times too large, and just fit."""
    columns = 131_071
    x = torch.full((1, columns), -128, dtype=torch.int8, device=device)
    w = random_weight(config.W4A8(group_size=None), 1, columns, torch.float32, device)
    if device == "cpu":  # the interpreter's time goes by steps
        w.layout = dataclasses.replace(w.layout, slab_width=8192, padded_group=131_072)
    w.codes.fill_(-8)
    w.packed, w.scale = slabs.pack(w.codes, w.layout), torch.ones_like(w.scale)
    tile = TileConfig(16, 16, 0, splits, 4, 2)
    found = multiply(x, torch.ones(1, 1, device=device), w, None, torch.float32, tile)
    assert found.item() == torch.tensor(columns * 1024).float().item()


@pytest.mark.parametrize("group_size", [32, None])
def test_a_row_with_scale_nan_is_nan_and_alone(group_size: int | None, device: str) -> None:
    x = random_codes(5, 96, device=device)
    w = random_weight(config.W4A8(group_size=group_size), 40, 96, torch.float32, device)
    scale = scales_of(5, device)
    clean = multiply(x, scale, w, None, torch.float32)
    scale[2] = torch.nan
    found = multiply(x, scale, w, None, torch.float32)
    assert found[2].isnan().all()
    assert_same(found[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
