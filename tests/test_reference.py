"""The reference against 64-bit integers and NumPy: it is what all kernels are measured with."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.kernel_inputs import COLUMNS, FEATURES, FLOATS, ROWS, assert_same, random_codes
from tests.support.pairwise import pairwise
from tritonq import reference
from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec
from tritonq.reference import integers

ROOT = Path(__file__).resolve().parents[1]
FEW_INSTRUCTIONS = "ONEDNN_MAX_CPU_ISA"
SHAPES = pairwise(rows=ROWS, columns=(*COLUMNS, 1024, 1025, 4099), features=FEATURES)


def exact_product(x: Tensor, w: Tensor) -> Tensor:
    """int64 [M, N], through float64, which is exact up to 2^53 (an int64 product of matrices is slow)."""
    return (x.double() @ w.double().t()).long()


@pytest.fixture(params=["as it is", "as if VNNI were there"])
def any_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the processor says of itself, the one-time test of torch's product decides, and must decide rightly."""
    if request.param != "as it is":
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    integers.int_mm_is_exact_and_fast.cache_clear()
    yield
    integers.int_mm_is_exact_and_fast.cache_clear()


@pytest.mark.usefixtures("any_processor")
class TestIntegers:
    """Run again below, in a process whose processor has fewer instructions."""

    @pytest.mark.parametrize("case", SHAPES)
    def test_product_of_random_codes(self, case: dict[str, int], device: str) -> None:
        x = random_codes(case["rows"], case["columns"], device=device)
        w = random_codes(case["features"], case["columns"], device=device)
        found = reference.int_matmul(x, w)
        assert found.dtype == torch.int32
        assert_same(found.long(), exact_product(x, w))

    @pytest.mark.parametrize(("a", "b"), [(-128, -128), (-128, 127), (127, 127), (-127, 127)])
    @pytest.mark.parametrize("columns", [1, 2, 3, 64, 1023, 1024, 1025, 33_025, 131_071])
    def test_long_runs_of_extreme_codes(self, columns: int, a: int, b: int, device: str) -> None:
        x = torch.full((2, columns), a, dtype=torch.int8, device=device)
        w = torch.full((3, columns), b, dtype=torch.int8, device=device)
        w[1, ::2] = a
        assert_same(reference.int_matmul(x, w).long(), exact_product(x, w))

    @pytest.mark.parametrize("rows", [1, 2, 16, 17, 64])
    def test_pairs_that_saturate_16_bits(self, rows: int, device: str) -> None:
        """Neighbouring products whose sum passes 32,767: processors without VNNI add them in 16 bits."""
        x = torch.tensor([127, 127, -128, -128, 127, -128, 0, 127], dtype=torch.int8, device=device).repeat(
            rows, 40
        )
        w = x.flip(0, 1).contiguous()[: max(1, rows // 2)]
        assert_same(reference.int_matmul(x, w).long(), exact_product(x, w))

    @pytest.mark.parametrize("columns", [1, 2, 3, 31, 64])
    @pytest.mark.parametrize("rows", [1, 3, 17])
    @pytest.mark.parametrize("features", [1, 2, 16])
    def test_any_strides(self, rows: int, features: int, columns: int, device: str) -> None:
        """torch's own product leaves its result unwritten for some of these, without an error."""

        def with_any_strides(height: int) -> Iterator[Tensor]:
            yield random_codes(1, columns, device=device).expand(height, -1)
            yield random_codes(height, 1, device=device).expand(-1, columns)
            yield random_codes(columns, height, device=device).t()
            yield random_codes(2 * height, columns + 5, device=device)[::2, :columns]

        for x in with_any_strides(rows):
            for w in with_any_strides(features):
                assert_same(reference.int_matmul(x, w).long(), exact_product(x, w))

    @pytest.mark.parametrize("x_zeros", [None, "tensor", "token"])
    @pytest.mark.parametrize("w_zeros", [False, True])
    @pytest.mark.parametrize("columns", [1, 314, 1000, 33_025])
    def test_corrections_of_zero_points(
        self, columns: int, w_zeros: bool, x_zeros: str | None, device: str
    ) -> None:
        x, w = random_codes(5, columns, device=device), random_codes(7, columns, device=device)
        x[0], w[0] = -128, -128
        x_zero = (
            None
            if x_zeros is None
            else random_codes(*((1,) if x_zeros == "tensor" else (5, 1)), device=device)
        )
        w_zero = random_codes(7, 1, device=device) if w_zeros else None
        if x_zero is not None:
            x_zero[0] = 127
        if w_zero is not None:
            w_zero[0] = 127
        x_exact = x.long() - (0 if x_zero is None else x_zero.long().reshape(-1, 1))
        w_exact = w.long() - (0 if w_zero is None else w_zero.long())
        found = reference.int8_accumulate(x, x_zero, w, w_zero)
        assert found.dtype == torch.int32
        assert_same(found.long(), exact_product(x_exact, w_exact))

    def test_slices_and_transposes(self, device: str) -> None:
        x, w = random_codes(40, 70, device=device), random_codes(90, 80, device=device)
        assert_same(reference.int_matmul(x.t(), w[:, ::2]).long(), exact_product(x.t(), w[:, ::2]))


@pytest.mark.slow
@pytest.mark.skipif(FEW_INSTRUCTIONS in os.environ, reason=f"{FEW_INSTRUCTIONS} is set already")
def test_integers_are_exact_without_vnni() -> None:
    """torch's int8 product saturates to 16 bits on such processors: the integer tests once more on one of them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::TestIntegers"]
    environment = {**os.environ, FEW_INSTRUCTIONS: "AVX2", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


# --- quantizing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_token_is_quantized_as_a_row_of_its_own(symmetric: bool, dtype: torch.dtype, device: str) -> None:
    x = (torch.randn(9, 57, device=device) * torch.logspace(-6, 3, 9, device=device)[:, None] + 0.3).to(dtype)
    x[4] = 0.0
    codes, scale, zero = reference.quantize_per_token(x, symmetric)
    # float32 scales, whatever the dtype of x: as a float32 weight with one scale per row.
    expected = qparams.quantize_weight(x.float(), QuantSpec(8, symmetric, "channel"))
    assert_same(codes, expected[0])
    assert_same(scale, expected[1])
    assert_same(
        zero, torch.zeros(9, 1, dtype=torch.int8, device=device) if expected[2] is None else expected[2]
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_token_that_is_not_finite(symmetric: bool, value: float, device: str) -> None:
    x = torch.randn(3, 8, device=device)
    clean = reference.quantize_per_token(x, symmetric)
    x[1, 5] = value
    codes, scale, zero = reference.quantize_per_token(x, symmetric)
    assert scale[1].isnan()
    assert not codes[1].any()
    assert not zero[1].any()
    for found, expected in zip((codes, scale, zero), clean, strict=True):
        assert_same(found[::2], expected[::2])


@pytest.mark.parametrize(("symmetric", "lowest"), [(True, -127), (False, -128)])
def test_a_given_grid_saturates(symmetric: bool, lowest: int, device: str) -> None:
    x = torch.tensor([math.inf, -math.inf, 1e30, -1e30, math.nan, 0.0, 0.25, 0.75, -0.25], device=device)
    zero = torch.tensor([7], dtype=torch.int8, device=device)
    codes = reference.quantize_per_tensor(x, torch.tensor([0.5], device=device), zero, symmetric)
    assert codes.tolist() == [127, lowest, 127, lowest, 7, 7, 7, 9, 7]


# --- epilogues -------------------------------------------------------------------------------------------------------


def operands(device: str, per_token: bool, affine: bool, bias: bool) -> tuple[Tensor | None, ...]:
    x, w = random_codes(6, 77, device=device), random_codes(9, 77, device=device)
    shape = (6, 1) if per_token else (1,)
    return (
        x,
        torch.rand(shape, device=device) / 9 + 0.01,
        random_codes(*shape, device=device) if affine else None,
        w,
        torch.rand(9, 1, device=device) / 50 + 0.001,
        random_codes(9, 1, device=device) if affine else None,
        torch.randn(9, device=device) * 3 if bias else None,
    )


def as_numpy(tensor: Tensor | None) -> np.ndarray:
    return np.zeros(1) if tensor is None else tensor.cpu().numpy()


def accumulated(x: Tensor, x_zero: Tensor | None, w: Tensor, w_zero: Tensor | None) -> np.ndarray:
    """float32 of the exact sums."""
    left = as_numpy(x).astype(np.int64) - as_numpy(x_zero).astype(np.int64).reshape(-1, 1)
    right = as_numpy(w).astype(np.int64) - as_numpy(w_zero).astype(np.int64).reshape(-1, 1)
    return (left @ right.T).astype(np.float32)


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_float_output(dtype: torch.dtype, bias: bool, affine: bool, per_token: bool, device: str) -> None:
    x, x_scale, x_zero, w, w_scale, w_zero, b = operands(device, per_token, affine, bias)
    assert x is not None
    assert w is not None
    found = reference.int8_linear(x, x_scale, x_zero, w, w_scale, w_zero, b, dtype)  # type: ignore[arg-type]
    values = accumulated(x, x_zero, w, w_zero) * as_numpy(x_scale).reshape(-1, 1)
    values = values * as_numpy(w_scale).reshape(1, -1)
    if bias:
        values = values + as_numpy(b)
    assert values.dtype == np.float32
    assert_same(found, torch.from_numpy(values).to(device).to(dtype))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_token", [True, False])
def test_requantized_output(per_token: bool, bias: bool, affine: bool, symmetric: bool, device: str) -> None:
    x, x_scale, x_zero, w, w_scale, w_zero, b = operands(device, per_token, affine, bias)
    assert x is not None
    assert w is not None
    out_scale = torch.tensor([2.7], device=device)
    out_zero = torch.tensor([0 if symmetric else -17], dtype=torch.int8, device=device)
    inputs = (x, x_scale, x_zero, w, w_scale, w_zero, b, out_scale, out_zero, symmetric)
    found = reference.int8_linear_requantize(*inputs)  # type: ignore[arg-type]
    step = as_numpy(out_scale)
    multiplier = (as_numpy(x_scale).reshape(-1, 1) * as_numpy(w_scale).reshape(1, -1)) / step
    values = accumulated(x, x_zero, w, w_zero) * multiplier
    if bias:
        values = values + as_numpy(b) / step
    assert values.dtype == np.float32
    codes = np.clip(np.rint(values) + out_zero.item(), -127 if symmetric else -128, 127)
    assert len(np.unique(codes)) > 10
    assert_same(found, torch.from_numpy(codes.astype(np.int8)).to(device))


@pytest.mark.parametrize("zero_point", [0, 1, -3])
def test_requantized_ties_and_saturation(zero_point: int, device: str) -> None:
    x = torch.ones(1, 1, dtype=torch.int8, device=device)
    w = torch.arange(-128, 128, device=device).to(torch.int8)[:, None]
    one, zero = torch.ones(1, device=device), torch.tensor([zero_point], dtype=torch.int8, device=device)
    for scale in (0.5, 1.5):
        x_scale = torch.tensor([scale], device=device)
        found = reference.int8_linear_requantize(
            x, x_scale, None, w, torch.ones(256, 1, device=device), None, None, one, zero, False
        )
        expected = [max(-128, min(127, round(code * scale) + zero_point)) for code in range(-128, 128)]
        assert found.flatten().tolist() == expected


# --- weight-only and int4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [1, 7, 24, 100, 314, 1000])
@pytest.mark.parametrize("affine", [True, False])
def test_weight_only_is_a_product_with_the_dequantized_weight(
    affine: bool, group_size: int, device: str
) -> None:
    columns, groups = 314, math.ceil(314 / group_size)
    x, w = torch.randn(5, columns, device=device), random_codes(6, columns, device=device)
    scale = torch.rand(6, groups, device=device)
    zero = random_codes(6, groups, device=device) if affine else None
    found = reference.weight_only_linear(x, w, scale, zero, torch.arange(6.0, device=device), group_size)
    group = torch.arange(columns, device=device) // group_size
    offset = 0 if zero is None else zero.double()[:, group]
    exact = x.double() @ ((w.double() - offset) * scale.double()[:, group]).t() + torch.arange(
        6, device=device
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize("dtype", FLOATS)
def test_weight_only_rounds_once(dtype: torch.dtype, device: str) -> None:
    x, w = torch.randn(5, 64, device=device).to(dtype), random_codes(6, 64, device=device)
    scale = torch.rand(6, 1, device=device).to(dtype)
    bias = torch.randn(6, device=device)
    found = reference.weight_only_linear(x, w, scale, None, bias, 64)
    once = reference.weight_only_linear(x.float(), w, scale.float(), None, bias, 64)
    assert_same(found, once.to(dtype))


@pytest.mark.parametrize("group_size", [1, 7, 24, 100, 314, 1000])
def test_int4_int8_adds_groups_in_order(group_size: int, device: str) -> None:
    columns, groups = 314, math.ceil(314 / group_size)
    x, w = random_codes(5, columns, device=device), random_codes(6, columns, device=device, low=-8, high=7)
    x_scale, w_scale = torch.rand(5, 1, device=device), torch.rand(6, groups, device=device)
    found = reference.int4_int8_linear(x, x_scale, w, w_scale, None, group_size, torch.float32)
    total = np.zeros((5, 6), np.float32)
    for group in range(groups):
        block = slice(group * group_size, (group + 1) * group_size)
        total += accumulated(x[:, block], None, w[:, block], None) * as_numpy(w_scale)[:, group]
    expected = total * as_numpy(x_scale)
    if groups == 1:  # the order of int8_linear
        expected = (accumulated(x, None, w, None) * as_numpy(x_scale)) * as_numpy(w_scale).reshape(1, -1)
    assert_same(found, torch.from_numpy(expected).to(device))


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_at_all(rows: int, device: str) -> None:
    x, w = random_codes(rows, 10, device=device), random_codes(3, 10, device=device)
    scale = torch.ones(rows, 1, device=device)
    found = reference.int8_linear(
        x, scale, None, w, torch.ones(3, 1, device=device), None, None, torch.float16
    )
    assert found.shape == (rows, 3)
    assert found.dtype == torch.float16
    codes, scale, zero = reference.quantize_per_token(torch.randn(rows, 10, device=device), False)
    assert (codes.shape, scale.shape, zero.shape) == ((rows, 10), (rows, 1), (rows, 1))
