"""The quantization kernels against the reference: the same codes, scales and zero points, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.support.kernel_inputs import COLUMNS, FLOATS, ROWS, STRIDES, assert_same, readable, with_strides
from tests.support.pairwise import pairwise
from tritonq import reference

kernels: Any = pytest.importorskip("tritonq.kernels.rows.quantize", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

NOT_FINITE = (math.nan, -math.nan, math.inf, -math.inf)
LONGEST_SINGLE_READ = 16384


def check_per_token(x: torch.Tensor, symmetric: bool) -> None:
    for found, expected in zip(
        kernels.quantize_per_token(x, symmetric), reference.quantize_per_token(x, symmetric), strict=True
    ):
        assert_same(found, expected)


@pytest.mark.parametrize(
    "case", pairwise(rows=ROWS, columns=COLUMNS, dtype=FLOATS, symmetric=(True, False), strides=STRIDES)
)
def test_per_token(case: dict[str, Any], device: str) -> None:
    x = torch.randn(case["rows"], case["columns"], device=device) * 3 + 1
    x *= torch.logspace(-4, 4, case["rows"], device=device)[:, None]
    check_per_token(with_strides(x.to(case["dtype"]), case["strides"]), case["symmetric"])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "columns", [LONGEST_SINGLE_READ, LONGEST_SINGLE_READ + 1, 2 * LONGEST_SINGLE_READ + 9]
)
def test_per_token_of_rows_longer_than_a_block(columns: int, symmetric: bool, device: str) -> None:
    x = torch.randn(3, columns, device=device)
    x[0, -1] = -40.0  # the extreme lies in the last block only
    x[1, 0] = 40.0
    check_per_token(x, symmetric)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_per_token_of_extreme_values(symmetric: bool, dtype: torch.dtype, device: str) -> None:
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    rows = [
        [0.0, 0.0, 0.0, 0.0],
        [-0.0, 0.0, -0.0, 0.0],
        [largest, -largest, 1.0, 0.0],
        [largest, largest, largest, largest],
        [-largest, 0.0, -1.0, -largest],
        [smallest, -smallest, smallest / 2, 0.0],
        [smallest / 4, 0.0, 0.0, 0.0],
        [-smallest / 4, -smallest / 4, -smallest / 8, -0.0],
        [1.0, 2.0, 3.0, 4.0],
        [-1.0, -2.0, -3.0, -4.0],
        [1.0, 1e-3, 1e-30, -1e-30],
    ]
    check_per_token(readable(torch.tensor(rows, device=device).to(dtype)), symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
def test_per_token_rounds_ties_to_even(symmetric: bool, device: str) -> None:
    # Extremes that make the scale exactly 1 (symmetric 127, affine -128 … 127), or exactly 2, and values halfway.
    halves = torch.arange(-126.5, 127.0, device=device)
    ends = torch.tensor([127.0, -127.0] if symmetric else [-128.0, 127.0], device=device)
    x = torch.stack([torch.cat([ends, halves]), torch.cat([2 * ends, 2 * halves])])
    codes, scale, _ = kernels.quantize_per_token(x, symmetric)
    assert scale.flatten().tolist() == [1.0, 2.0]
    assert (codes[:, 2:] % 2 == 0).all(), "a tie went to an odd code"
    check_per_token(x, symmetric)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [5, 700, LONGEST_SINGLE_READ + 100])
def test_rows_that_are_not_finite_touch_no_other(columns: int, symmetric: bool, device: str) -> None:
    clean = torch.randn(2 * len(NOT_FINITE) + 1, columns, device=device)
    before = kernels.quantize_per_token(clean, symmetric)
    x = clean.clone()
    for place, value in enumerate(NOT_FINITE):
        x[2 * place + 1, (0, columns // 2, columns - 1, columns - 2)[place]] = value
    codes, scale, zero = kernels.quantize_per_token(x, symmetric)
    for found, expected in zip((codes, scale, zero), before, strict=True):
        assert_same(found[::2], expected[::2])
    assert scale[1::2].isnan().all()
    assert not codes[1::2].any()
    assert not zero[1::2].any()
    check_per_token(x, symmetric)


def test_every_bit_pattern_of_nan_and_infinity_is_seen(device: str) -> None:
    patterns = [
        0x7F800000,
        0x7F800001,
        0x7FC00000,
        0x7FFFFFFF,
        0xFF800000,
        0xFF800001,
        0xFFC00000,
        0xFFFFFFFF,
    ]
    signed = torch.tensor([p - (1 << 32) if p >= 1 << 31 else p for p in patterns], dtype=torch.int32)
    x = torch.ones(len(patterns), 9)
    x[:, 4] = signed.view(torch.float32)
    _, scale, _ = kernels.quantize_per_token(x.to(device), True)
    assert scale.isnan().all()


@pytest.mark.parametrize(
    "case",
    pairwise(
        shape=((33, 1000), (), (1,), (5, 7, 31), (4096,), (4097,), (0, 5), (3, 0)),
        dtype=FLOATS,
        symmetric=(True, False),
        scale=(0.031, 1.0, 3.7e-5, 2.0**-126, 1e30),
        zero=(0, 7, -128, 127),
        strides=("contiguous", "transposed", "stepped"),
    ),
)
def test_per_tensor(case: dict[str, Any], device: str) -> None:
    x = torch.randn(case["shape"], device=device).mul(40 * case["scale"]).clamp(-6e4, 6e4).to(case["dtype"])
    x = readable(x)
    if case["strides"] == "transposed" and x.dim() > 1:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif case["strides"] == "stepped":
        x = torch.stack([x, torch.full_like(x, math.nan)], dim=-1)[..., 0]
    scale = torch.full((1,), case["scale"], device=device)
    zero = torch.full((1,), case["zero"], dtype=torch.int8, device=device)
    found = kernels.quantize_per_tensor(x, scale, zero, case["symmetric"])
    expected = reference.quantize_per_tensor(x, scale, zero, case["symmetric"])
    assert_same(found, expected.contiguous())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("symmetric", "lowest"), [(True, -127), (False, -128)])
def test_per_tensor_saturates_and_gives_nan_the_zero_point(
    symmetric: bool, lowest: int, dtype: torch.dtype, device: str
) -> None:
    large = torch.finfo(dtype).max
    x = torch.tensor([math.inf, -math.inf, large, -large, math.nan, -math.nan, 0.0, -0.0], device=device).to(
        dtype
    )
    zero = torch.full((1,), -5, dtype=torch.int8, device=device)
    codes = kernels.quantize_per_tensor(x, torch.full((1,), 0.5, device=device), zero, symmetric)
    assert codes.tolist() == [127, lowest, 127, lowest, -5, -5, -5, -5]


@pytest.mark.parametrize("zero_point", [0, 1, -3])
def test_per_tensor_rounds_before_adding_the_zero_point(zero_point: int, device: str) -> None:
    x = torch.arange(-120.5, 121.0, device=device)
    zero = torch.full((1,), zero_point, dtype=torch.int8, device=device)
    codes = kernels.quantize_per_tensor(x, torch.ones(1, device=device), zero, False)
    # rint(v) + z, not rint(v + z): with an odd zero point the two send ties to different codes.
    expected = [int(2 * math.floor(value / 2 + 0.5)) + zero_point for value in x.tolist()]
    assert codes.tolist() == [max(-128, min(127, code)) for code in expected]


def test_per_tensor_multiplies_by_the_inverse(device: str) -> None:
    # fl(x · fl(1/s)) and fl(x / s) round to different codes here; the contract is the first.
    scale = torch.full((1,), 0.3, device=device)
    x = (torch.arange(-127, 127, device=device) + 0.5).mul(scale.double()).float()
    zero = torch.zeros(1, dtype=torch.int8, device=device)
    assert not torch.equal(torch.round(x / scale), torch.round(x * (1 / scale)))
    found = kernels.quantize_per_tensor(x, scale, zero, True)
    assert_same(found, torch.round(x * (1 / scale)).clamp(-127, 127).to(torch.int8))
