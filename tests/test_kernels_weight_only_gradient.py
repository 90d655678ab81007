"""The kernel of the input's gradient (W4A16, W8A16) against a float32 product with the dequantized weight."""

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
from tritonq.numerics import config

kernels: Any = pytest.importorskip(
    "tritonq.kernels.matmul.weight_only_gradient", reason="Triton is not installed"
)
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig = kernels.TileConfig
TILES = (
    None,
    TileConfig(32, 16, 0, 1, 4, 2),
    TileConfig(64, 32, 0, 2, 4, 2),
    TileConfig(16, 64, 0, 4, 4, 3),
)
#: None is one group a row; 24 and 100 are padded to whole slabs; 2000 is larger than every K.
GROUPS = (128, None, 32, 64, 100, 24, 2000)


def scheme(bits: int, group_size: int | None, symmetric: bool) -> config.QuantConfig:
    make = config.W4A16 if bits == 4 else config.W8A16
    return make(group_size=group_size, symmetric=symmetric)


def multiply(dy: Tensor, w: Weight, tile: Any = None) -> Tensor:
    layout = w.layout
    return kernels.weight_only_gradient(
        dy,
        w.packed,
        w.kernel_scale,
        w.kernel_zero,
        layout.in_features,
        layout.group_size,
        layout.padded_group,
        layout.slab_width,
        config=tile,
    )


def as_multiplied(w: Weight, dtype: torch.dtype) -> Tensor:
    """float32 [N, K]: the weight as the kernel multiplies it, in dY's dtype; float32 where it is interpreted."""
    from tritonq.kernels.launch.target import INTERPRETED

    weight = w.dequantized()
    return weight if INTERPRETED else weight.to(dtype).float()


def check(dy: Tensor, w: Weight, tile: Any = None) -> None:
    found = multiply(dy, w, tile)
    assert found.dtype == dy.dtype
    weight = as_multiplied(w, dy.dtype)
    assert_close_to_float32(found, dy.float() @ weight, dy.float().abs() @ weight.abs())


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
    ),
)
def test_against_the_dequantized_weight(case: dict[str, Any], bits: int, device: str) -> None:
    rows, columns, features = case["rows"], case["columns"], case["features"]
    made = scheme(bits, case["group_size"], case["symmetric"])
    w = random_weight(made, features, columns, case["scale_dtype"], device)
    dy = with_strides(torch.randn(rows, features, device=device).to(case["dtype"]), case["strides"])
    check(dy, w, case["tile"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("group_size", "symmetric"), [(128, True), (100, False), (None, False)])
def test_one_feature_at_a_time_finds_every_code(
    bits: int, group_size: int | None, symmetric: bool, device: str
) -> None:
    """dY = identity: each output is one code, minus its zero point, times its group's scale, and nothing else."""
    columns, features = 314, 40
    w = random_weight(scheme(bits, group_size, symmetric), features, columns, torch.float32, device)
    found = multiply(torch.eye(features, device=device), w)
    assert_same(found, w.dequantized())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [1, 7, 30])
def test_groups_smaller_than_a_slab(group_size: int, bits: int, device: str) -> None:
    w = random_weight(scheme(bits, group_size, False), 7, 31, torch.float32, device)
    check(torch.randn(3, 7, device=device), w)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@pytest.mark.parametrize("features", [33, 300])
def test_splits_repeat_their_bits(features: int, splits: int, bits: int, device: str, poison: Poison) -> None:
    w = random_weight(scheme(bits, 64, False), features, 200, torch.float32, device)
    dy = torch.randn(5, features, device=device)
    tile = TileConfig(16, 16, 0, splits, 4, 2)
    first = multiply(dy, w, tile)
    for _ in range(2):
        assert_same(multiply(dy, w, tile), first)
    check(dy, w, tile)
    assert (len(poison.zeroed) > 0) == (splits > 1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinity_go_where_a_product_sends_them(bits: int, dtype: torch.dtype, device: str) -> None:
    w = random_weight(scheme(bits, 32, True), 30, 130, torch.float32, device)
    dy = torch.randn(6, 30, device=device)
    clean = multiply(dy.to(dtype), w)
    dy[1, 3], dy[2, 29], dy[4, 10], dy[4, 11] = math.nan, math.inf, math.inf, -math.inf
    found = multiply(dy.to(dtype), w)
    expected = dy @ w.dequantized()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf() * found.sign(), expected.isinf() * expected.sign())
    assert expected.isnan().any()
    assert expected.isinf().any()
    assert_same(found[[0, 3, 5]], clean[[0, 3, 5]])


def test_it_is_the_adjoint_of_the_forward_kernel(device: str) -> None:
    """⟨dY, x Wᵀ⟩ = ⟨dY W, x⟩, in float32 and in every layout."""
    from tritonq.kernels.matmul.weight_only import weight_only_matmul

    for bits, group_size in ((4, 32), (4, 100), (4, None), (8, 32), (8, None)):
        w = random_weight(scheme(bits, group_size, False), 70, 190, torch.float32, device)
        x, dy = torch.randn(9, 190, device=device), torch.randn(9, 70, device=device)
        layout = w.layout
        widths = (layout.group_size, layout.padded_group, layout.slab_width)
        y = weight_only_matmul(x, w.packed, w.kernel_scale, w.kernel_zero, None, *widths)
        one, other = (dy * y).double().sum(), (multiply(dy, w) * x).double().sum()
        scale = ((dy.abs() @ w.dequantized().abs()) * x.abs()).double().sum()
        assert (one - other).abs() <= 1e-6 * scale
