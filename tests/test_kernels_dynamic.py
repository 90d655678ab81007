"""Products that quantize their float activations themselves: bit-equal to a launch for each, whichever path."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kernel_inputs import (
    FLOATS,
    STRIDES,
    Weight,
    as_stored,
    assert_same,
    random_weight,
    readable,
    with_strides,
)
from tests.support.pairwise import pairwise
from tests.support.poison import Poison
from tritonq import reference
from tritonq.numerics import config

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.dynamic", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig = kernels.TileConfig
#: None: the launcher's own choice. K of 4096 + 16 is longer than what a program looks at together.
TILES = (
    None,
    TileConfig(64, 16, 64, 1, 4, 2, "apart"),
    TileConfig(64, 16, 128, 1, 4, 2, "quantizing"),
    TileConfig(128, 16, 64, 4, 4, 3, "quantizing"),
    TileConfig(16, 8, 256, 8, 4, 3, "quantizing"),
)
ROWS = (1, 3, 16, 17, 0)
COLUMNS = (1000, 16, 31, 576, 4112)
FEATURES = (130, 1, 7, 64)


def int8(x: Tensor, symmetric: bool, w: Weight, bias: Tensor | None, tile: Any) -> tuple[Tensor, Tensor]:
    """(the kernel's result, the reference's in float32)."""
    found = kernels.int8_dynamic_matmul(x, symmetric, w.int8(bias), config=tile)
    codes, scale, zero = reference.quantize_per_token(x, symmetric)
    product = (codes, scale, None if symmetric else zero, w.codes, w.scale, w.zero, bias)
    return found, reference.int8_linear(*product, torch.float32)


def int4(x: Tensor, w: Weight, bias: Tensor | None, tile: Any) -> tuple[Tensor, Tensor]:
    layout = w.layout
    if tile is not None:
        tile = dataclasses.replace(tile, block_k=2 * layout.slab_width)
    slabs = (layout.group_size, layout.padded_group, layout.slab_width)
    found = kernels.int4_int8_dynamic_matmul(x, w.packed, w.kernel_scale, bias, *slabs, config=tile)
    codes, scale, _ = reference.quantize_per_token(x, True)
    product = (codes, scale, w.codes, w.scale, bias, layout.group_size)
    return found, reference.int4_int8_linear(*product, torch.float32)


def activations(rows: int, columns: int, dtype: torch.dtype, strides: str, device: str) -> Tensor:
    """Rows of very different sizes, one of zeros and one of one sign among them."""
    x = (
        torch.randn(rows, columns, device=device)
        * torch.logspace(-3, 3, max(rows, 1), device=device)[:rows, None]
    )
    if rows > 2:
        x[1], x[2] = 0, x[2].abs()
    return with_strides(readable(x.to(dtype)), strides)


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=ROWS,
        columns=COLUMNS,
        features=FEATURES,
        tile=TILES,
        strides=STRIDES,
        dtype=FLOATS,
        symmetric=(True, False),
        w_symmetric=(True, False),
        bias=(None, torch.float32, torch.bfloat16),
    ),
)
def test_int8_against_the_reference(case: dict[str, Any], device: str) -> None:
    x = activations(case["rows"], case["columns"], case["dtype"], case["strides"], device)
    made = config.W8A8(symmetric=case["w_symmetric"])
    w = random_weight(made, case["features"], case["columns"], torch.float32, device)
    bias = None if case["bias"] is None else torch.randn(case["features"], device=device).to(case["bias"])
    found, expected = int8(x, case["symmetric"], w, bias, case["tile"])
    assert_same(found, as_stored(expected, case["dtype"]))


@pytest.mark.parametrize(
    "case",
    pairwise(
        group_size=(128, None, 32, 100),
        rows=ROWS,
        columns=COLUMNS,
        features=FEATURES,
        tile=TILES,
        strides=STRIDES,
        dtype=FLOATS,
        bias=(None, torch.float32),
    ),
)
def test_int4_against_the_reference(case: dict[str, Any], device: str) -> None:
    x = activations(case["rows"], case["columns"], case["dtype"], case["strides"], device)
    made = config.W4A8(group_size=case["group_size"])
    w = random_weight(made, case["features"], case["columns"], torch.float32, device)
    bias = None if case["bias"] is None else torch.randn(case["features"], device=device)
    found, expected = int4(x, w, bias, case["tile"])
    tile = case["tile"]
    if w.layout.groups == 1 or (tile is not None and (tile.splits == 1 and tile.path == "quantizing")):
        assert_same(found, as_stored(expected, case["dtype"]))
    else:  # splits add float32 sums over groups in another order than one program does
        size = (x.float().abs() @ w.dequantized().abs().t() + 1) * 2e-6
        one_ulp = torch.finfo(found.dtype).eps * expected.abs()
        assert ((found.float() - expected).abs() <= one_ulp + size).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_nan_and_alone(
    rows: int, bad: float, symmetric: bool, device: str
) -> None:
    x, tile = torch.randn(rows, 96, device=device), TileConfig(64, 16, 64, 1, 4, 2, "quantizing")
    w8 = random_weight(config.W8A8(symmetric=symmetric), 40, 96, torch.float32, device)
    w4 = random_weight(config.W4A8(group_size=32), 40, 96, torch.float32, device)
    clean = int8(x, symmetric, w8, None, tile)[0], int4(x, w4, None, tile)[0]
    x[-1, 17] = bad
    for found, before in zip(
        (int8(x, symmetric, w8, None, tile)[0], int4(x, w4, None, tile)[0]), clean, strict=True
    ):
        assert found[-1].isnan().all()
        assert_same(found[:-1], before[:-1])


@pytest.mark.parametrize("rows", [1, 5])
def test_splits_repeat_their_bits(rows: int, device: str, poison: Poison) -> None:
    w = random_weight(config.W8A8(symmetric=False), 70, 700, torch.float32, device)
    x = torch.randn(rows, 700, device=device)
    first = int8(x, False, w, None, TileConfig(64, 16, 64, 1, 4, 2, "quantizing"))[0]
    for splits in (2, 8, 8):
        assert_same(int8(x, False, w, None, TileConfig(64, 16, 64, splits, 4, 2, "quantizing"))[0], first)
    assert len(poison.zeroed) == (1 if device == "cuda" else 3)  # a GPU's are asked for once


def test_the_rule() -> None:
    """Few, short, aligned rows are quantized inside."""

    def path(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> str:
        x = torch.empty(rows, columns, dtype=dtype, device="meta")
        return kernels.chosen(x, lambda: TileConfig(64, 16, 256, 1, 4, 4)).path

    assert path(1, 4096) == path(1, 14336) == path(4, 4096) == path(16, 1024) == "quantizing"
    assert path(17, 16) == path(16, 4096) == path(1, 14336, torch.float32) == path(1, 1001) == "apart"
