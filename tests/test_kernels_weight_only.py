"""The weight-only kernel (W4A16, W8A16) against a float32 product with the dequantized weight."""

from __future__ import annotations

import math
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
    assert_close_to_float32,
    assert_same,
    random_weight,
    with_strides,
)
from tests.support.pairwise import pairwise
from tests.support.poison import Poison
from tritonq import reference
from tritonq.numerics import config

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.weight_only", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig = kernels.TileConfig
TILES = (
    None,
    TileConfig(64, 64, 0, 1, 4, 1),
    TileConfig(128, 16, 0, 2, 4, 2),
    TileConfig(128, 32, 0, 8, 4, 1),
)
#: None is one group a row; 24 and 100 are padded to whole slabs; 2000 is larger than every K.
GROUPS = (128, None, 32, 64, 100, 24, 2000)


def scheme(bits: int, group_size: int | None, symmetric: bool) -> config.QuantConfig:
    make = config.W4A16 if bits == 4 else config.W8A16
    return make(group_size=group_size, symmetric=symmetric)


def multiply(x: Tensor, w: Weight, bias: Tensor | None, tile: Any = None) -> Tensor:
    layout = w.layout
    return kernels.weight_only_matmul(
        x,
        w.packed,
        w.kernel_scale,
        w.kernel_zero,
        bias,
        layout.group_size,
        layout.padded_group,
        layout.slab_width,
        config=tile,
    )


def check(x: Tensor, w: Weight, bias: Tensor | None, tile: Any = None) -> None:
    found = multiply(x, w, bias, tile)
    assert found.dtype == x.dtype
    exact = reference.weight_only_linear(x.float(), w.codes, w.scale, w.zero, bias, w.layout.group_size)
    magnitude = x.float().abs() @ w.dequantized().abs().t()
    assert_close_to_float32(found, exact, magnitude if bias is None else magnitude + bias.float().abs())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "case",
    pairwise(
        group_size=GROUPS,
        rows=ROWS,
        columns=COLUMNS,
        features=FEATURES,
        tile=TILES,
        strides=STRIDES,
        dtype=FLOATS,
        symmetric=(True, False),
        scale_dtype=FLOATS,
        bias=(None, torch.float32, torch.bfloat16),
    ),
)
def test_against_the_dequantized_weight(case: dict[str, Any], bits: int, device: str) -> None:
    rows, columns, features, group_size = case["rows"], case["columns"], case["features"], case["group_size"]
    made = scheme(bits, group_size, case["symmetric"])
    w = random_weight(made, features, columns, case["scale_dtype"], device)
    x = with_strides(torch.randn(rows, columns, device=device).to(case["dtype"]), case["strides"])
    bias = None if case["bias"] is None else torch.randn(features, device=device).to(case["bias"])
    check(x, w, bias, case["tile"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("group_size", "symmetric"), [(128, True), (100, False), (None, False)])
def test_one_column_at_a_time_finds_every_code(
    bits: int, group_size: int | None, symmetric: bool, device: str
) -> None:
    """x = identity: each output is one code, minus its zero point, times its group's scale, and nothing else."""
    columns, features = 314, 40
    w = random_weight(scheme(bits, group_size, symmetric), features, columns, torch.float32, device)
    # The interpreter's time goes by tiles: one for all rows. A GPU could not hold it.
    tile = TileConfig(64, 512, 0, 1, 4, 1) if device == "cpu" else None
    found = multiply(torch.eye(columns, device=device), w, None, tile)
    assert_same(found, w.dequantized().t().contiguous())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [1, 7, 30])
def test_groups_smaller_than_a_slab(group_size: int, bits: int, device: str) -> None:
    w = random_weight(scheme(bits, group_size, False), 7, 31, torch.float32, device)
    check(torch.randn(3, 31, device=device), w, None)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@pytest.mark.parametrize("columns", [64, 700])
def test_splits_repeat_their_bits(columns: int, splits: int, bits: int, device: str, poison: Poison) -> None:
    w = random_weight(scheme(bits, 64, False), 70, columns, torch.float32, device)
    x, bias = torch.randn(5, columns, device=device), torch.randn(70, device=device)
    tile = TileConfig(64, 16, 0, splits, 4, 2)
    first = multiply(x, w, bias, tile)
    for _ in range(2):
        assert_same(multiply(x, w, bias, tile), first)
    check(x, w, bias, tile)
    assert (len(poison.zeroed) > 0) == (splits > 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_pair_of_code_and_zero_point_is_exact(bits: int, device: str) -> None:
    """q - z spans ±15 or ±255, which float16 and bfloat16 hold exactly: one x of 1 per row shows the difference."""
    low, high = (-8, 7) if bits == 4 else (-128, 127)
    step = 1 if bits == 4 else 15
    zeros = torch.arange(low, high + 1, step, device=device).to(torch.int8)
    codes = torch.arange(low, high + 1, step, device=device).to(torch.int8)
    made = scheme(bits, None, False)
    w = random_weight(made, len(zeros), len(codes), torch.float32, device)
    from tritonq.numerics import slabs

    w.codes = codes.expand(len(zeros), -1).contiguous()
    w.zero, w.packed = zeros[:, None], slabs.pack(w.codes, w.layout)
    w.scale.fill_(1)
    expected = codes.float()[:, None] - zeros.float()[None, :]
    for dtype in FLOATS:
        assert_same(multiply(torch.eye(len(codes), dtype=dtype, device=device), w, None).float(), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, None), (8, None), (8, 100)])
def test_nan_and_infinity_go_where_linear_sends_them(
    bits: int, group_size: int | None, dtype: torch.dtype, device: str
) -> None:
    w = random_weight(scheme(bits, group_size, True), 30, 130, torch.float32, device)
    x = torch.randn(6, 130, device=device)
    clean = multiply(x.to(dtype), w, None)
    x[1, 3], x[2, 129], x[4, 40], x[4, 41] = math.nan, math.inf, math.inf, -math.inf
    found = multiply(x.to(dtype), w, None)
    expected = torch.nn.functional.linear(x, w.dequantized())
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf() * found.sign(), expected.isinf() * expected.sign())
    assert expected.isnan().any()
    assert expected.isinf().any()
    assert_same(found[[0, 3, 5]], clean[[0, 3, 5]])


def test_float32_is_never_rounded_to_tf32(device: str) -> None:
    """1 + 2^-20 needs more bits than tf32 has; the sum of K of them shows whether they were kept."""
    w = random_weight(scheme(8, None, True), 5, 64, torch.float32, device)
    w.codes.fill_(1)
    w.packed[:, :64] = 1
    w.scale.fill_(1)
    x = torch.full((3, 64), 1 + 2.0**-17, device=device)
    assert_same(multiply(x, w, None), torch.full((3, 5), 64 + 2.0**-11, device=device))
