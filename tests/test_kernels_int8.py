"""The INT8 × INT8 kernel against the reference and against 64-bit integers: bit-equal, whatever the output."""

from __future__ import annotations

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
    addressable,
    as_stored,
    assert_same,
    random_codes,
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
#: None: the launcher's own choice. Blocks that divide neither N nor M wrap around.
TILES = (
    None,
    TileConfig(64, 64, 256, 1, 4, 2),
    TileConfig(128, 32, 128, 4, 4, 2),
    TileConfig(64, 16, 256, 8, 4, 3),
    TileConfig(64, 32, 128, 1, 4, 2, "descriptors"),
    TileConfig(256, 32, 128, 1, 8, 2, "descriptors"),
)


def multiply(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    w: Weight,
    bias: Tensor | None,
    dtype: torch.dtype,
    out_scale: Tensor | None = None,
    out_zero: Tensor | None = None,
    symmetric: bool = False,
    config: Any = None,
) -> Tensor:
    if config is not None and config.path == "descriptors":
        x = addressable(x)
    operands = kernels.Int8Activation(x, x_scale, x_zero), w.int8(bias)
    grid = None if out_scale is None else kernels.Grid(out_scale, out_zero, symmetric)
    return kernels.int8_matmul(*operands, dtype, grid=grid, config=config)


def grid(granularity: str, affine: bool, rows: int, device: str) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of x: per token [M, 1] or per tensor [1]."""
    shape = (rows, 1) if granularity == "token" else (1,)
    return torch.rand(shape, device=device) / 10 + 0.01, random_codes(
        *shape, device=device
    ) if affine else None


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=ROWS,
        columns=COLUMNS,
        features=FEATURES,
        strides=STRIDES,
        tile=TILES,
        out=(*FLOATS, "int8 symmetric", "int8 affine"),
        x=("token", "tensor"),
        x_affine=(False, True),
        w_affine=(False, True),
        w_dtype=FLOATS,
        bias=(torch.float32, None, torch.float16, torch.bfloat16),
    ),
)
def test_against_the_reference(case: dict[str, Any], device: str) -> None:
    rows, columns, features, out = case["rows"], case["columns"], case["features"], case["out"]
    x = with_strides(random_codes(rows, columns, device=device), case["strides"])
    x_scale, x_zero = grid(case["x"], case["x_affine"], rows, device)
    w = random_weight(config.W8A8(symmetric=not case["w_affine"]), features, columns, case["w_dtype"], device)
    bias = None if case["bias"] is None else torch.randn(features, device=device).to(case["bias"])
    if isinstance(out, torch.dtype):
        found = multiply(x, x_scale, x_zero, w, bias, out, config=case["tile"])
        exact = reference.int8_linear(x, x_scale, x_zero, w.codes, w.scale, w.zero, bias, torch.float32)
        assert_same(found, as_stored(exact, out))
        return
    # The output's grid covers some of the results and lets the others saturate.
    out_scale = (torch.rand(1, device=device) + 0.5) * max(1.0, columns**0.5 / 4)
    out_zero = torch.zeros(1, dtype=torch.int8, device=device)
    if "affine" in out:
        out_zero = random_codes(1, device=device, low=-50, high=50)
    grid_of_out = (out_scale, out_zero, "symmetric" in out)
    found = multiply(x, x_scale, x_zero, w, bias, torch.int8, *grid_of_out, config=case["tile"])
    expected = reference.int8_linear_requantize(
        x, x_scale, x_zero, w.codes, w.scale, w.zero, bias, *grid_of_out
    )
    assert_same(found, expected)


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@pytest.mark.parametrize("columns", [64, 700, 1024])
def test_splits_agree_to_the_bit_and_put_counters_back(
    columns: int, splits: int, device: str, poison: Poison
) -> None:
    x, w = (
        random_codes(5, columns, device=device),
        random_weight(config.W8A8(symmetric=False), 100, columns, torch.float32, device),
    )
    x_scale, x_zero = grid("token", True, 5, device)
    arguments = (x, x_scale, x_zero, w, torch.randn(100, device=device), torch.float32)
    unsplit = multiply(*arguments, config=TileConfig(64, 16, 128, 1, 4, 2))
    tile = TileConfig(64, 16, 128, splits, 4, 2)  # with 64 columns all splits but the first find no work
    for _ in range(3):
        assert_same(multiply(*arguments, config=tile), unsplit)
    assert (len(poison.zeroed) > 0) == (splits > 1)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("x_code", "x_zero", "w_code", "w_zero"),
    [
        (-128, 0, -128, 0),
        (-128, 127, -128, 127),
        (127, -128, 127, -128),
        (-128, 127, 127, -128),
        (127, 0, -128, 0),
    ],
)
def test_extreme_codes_against_64_bit_integers(
    x_code: int, x_zero: int, w_code: int, w_zero: int, tile: Any, device: str
) -> None:
    columns = 4001
    x = torch.full((3, columns), x_code, dtype=torch.int8, device=device)
    w = random_weight(config.W8A8(symmetric=False), 2, columns, torch.float32, device)
    w.codes.fill_(w_code)
    w.packed[:, :columns] = w_code
    w.zero = torch.full((2, 1), w_zero, dtype=torch.int8, device=device)
    w.scale.fill_(1)
    one, zero = torch.ones(1, device=device), torch.full((1,), x_zero, dtype=torch.int8, device=device)
    found = multiply(x, one, zero, w, None, torch.float32, config=tile)
    total = columns * (x_code - x_zero) * (w_code - w_zero)
    assert_same(found, torch.full((3, 2), total, dtype=torch.int64, device=device).float())


@pytest.mark.parametrize(("columns", "symmetric"), [(131_071, True), (33_025, False)])
def test_the_longest_sum_does_not_overflow(columns: int, symmetric: bool, device: str) -> None:
    """K at its limit, ⌊(2^31 - 1) / R²⌋, with all codes at their extremes."""
    tile = TileConfig(64, 16, 4096, 2, 4, 2)
    if device == "cuda":
        tile = TileConfig(64, 16, 256, 2, 4, 2)
    x = torch.full((1, columns), -128, dtype=torch.int8, device=device)
    w = random_weight(config.W8A8(symmetric=symmetric), 1, columns, torch.float32, device)
    w.codes.fill_(-128)
    w.packed[:, :columns] = -128
    w.scale.fill_(1)
    zero = None
    if not symmetric:
        zero = torch.full((1,), 127, dtype=torch.int8, device=device)
        w.zero = zero[:, None]
    found = multiply(x, torch.ones(1, device=device), zero, w, None, torch.float32, config=tile)
    largest = 128 * 128 if symmetric else 255 * 255
    assert 2**31 - 1 - largest < columns * largest <= 2**31 - 1
    assert found.item() == torch.tensor(columns * largest).float().item()


def test_columns_of_padding_are_never_read(device: str) -> None:
    """A file's padding is anything: what stands behind K must not count, in the product nor in the sums."""
    x, w = random_codes(3, 31, device=device), random_weight(config.W8A8(), 7, 31, torch.float32, device)
    x_scale, x_zero = grid("token", True, 3, device)
    arguments = (x, x_scale, x_zero, w, None, torch.float32)
    clean = multiply(*arguments)
    w.packed[:, 31:] = 99
    assert_same(multiply(*arguments), clean)


@pytest.mark.parametrize("zero_point", [0, 1, -3])
def test_requantized_ties_go_to_even_before_the_zero_point(zero_point: int, device: str) -> None:
    x = torch.ones(1, 1, dtype=torch.int8, device=device)
    w = random_weight(config.W8A8(), 255, 1, torch.float32, device)
    w.codes = torch.arange(-127, 128, device=device).to(torch.int8)[:, None]
    w.packed[:, :1] = w.codes
    w.scale.fill_(1)
    one, half = torch.ones(1, device=device), torch.full((1,), 0.5, device=device)
    out_zero = torch.full((1,), zero_point, dtype=torch.int8, device=device)
    found = multiply(x, half, None, w, None, torch.int8, one, out_zero)
    expected = [round(code / 2) + zero_point for code in range(-127, 128)]  # Python rounds half to even
    assert found.flatten().tolist() == expected


@pytest.mark.parametrize("out_dtype", [torch.int8, torch.float32])
def test_no_fused_multiply_add(out_dtype: torch.dtype, device: str) -> None:
    """acc · m rounds, then the bias is added: built so that one fused instruction would give another result."""
    columns, features = 1000, 192
    x = torch.ones(1, columns, dtype=torch.int8, device=device)
    w = random_weight(config.W8A8(), features, columns, torch.float32, device)
    w.codes = random_codes(features, columns, device=device, low=1)
    w.packed[:, :columns] = w.codes
    w.scale.fill_(1)
    multiplier = torch.full((1,), 0.0517, device=device)
    product = w.codes.sum(dim=1).float() * multiplier
    target = torch.arange(features, device=device) % 100 - 49.5
    bias = target - product  # exact: both are multiples of an ulp of the product
    assert torch.equal(product.double() + bias.double(), target.double())
    assert (product.double() != w.codes.double().sum(dim=1) * multiplier.double()).sum() > features // 2
    if out_dtype == torch.float32:
        assert_same(multiply(x, multiplier, None, w, bias, torch.float32)[0], target)
    else:
        one, zero = torch.ones(1, device=device), torch.zeros(1, dtype=torch.int8, device=device)
        codes = multiply(x, multiplier, None, w, bias, torch.int8, one, zero)[0]
        assert_same(codes, torch.round(target).to(torch.int8))


def test_requantize_saturates(device: str) -> None:
    x = torch.full((2, 600), 127, dtype=torch.int8, device=device)
    x[1] = -127
    w = random_weight(config.W8A8(), 3, 600, torch.float32, device)
    w.codes.fill_(127)
    w.packed[:, :600] = 127
    big, one = torch.full((1,), 1e30, device=device), torch.ones(1, device=device)
    zero = torch.full((1,), 100, dtype=torch.int8, device=device)
    for symmetric, lowest in ((True, -127), (False, -128)):
        found = multiply(x, big, None, w, None, torch.int8, one, zero, symmetric)
        assert found.tolist() == [[127] * 3, [lowest] * 3]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_with_scale_nan_is_nan_and_alone(dtype: torch.dtype, device: str) -> None:
    x, w = random_codes(5, 96, device=device), random_weight(config.W8A8(), 40, 96, torch.float32, device)
    scale, _ = grid("token", False, 5, device)
    clean = multiply(x, scale, None, w, None, dtype)
    scale[2] = torch.nan
    found = multiply(x, scale, None, w, None, dtype)
    assert found[2].isnan().all()
    assert_same(found[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
