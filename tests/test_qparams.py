"""Scales, zero points and codes: the properties the contract promises, and the formulas once more in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.kernel_inputs import FLOATS, assert_same
from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec

SCALE_FLOORS = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126}
WEIGHT_SPECS = [
    QuantSpec(bits, symmetric, granularity)
    for bits in (8, 4)
    for symmetric in (True, False)
    for granularity in ("tensor", "channel")
]
GROUP_SIZES = (1, 2, 3, 7, 32, 1000)


@st.composite
def specs(draw: st.DrawFn) -> QuantSpec:
    group_size = draw(st.sampled_from((None, *GROUP_SIZES)))
    if group_size is None:
        return draw(st.sampled_from(WEIGHT_SPECS))
    return QuantSpec(draw(st.sampled_from([4, 8])), draw(st.booleans()), "group", group_size)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """[1 … 4, 1 … 9] of each dtype: any finite numbers, subnormal and largest ones too, rows often of one magnitude."""
    dtype = draw(st.sampled_from(FLOATS))
    largest = torch.finfo(dtype).max
    exponent = draw(st.integers(-150, 127))
    near = st.floats(-1, 1, width=32).map(lambda value: math.ldexp(value, exponent))
    anything = st.floats(-largest, largest, width=32)
    element = draw(st.sampled_from([near, anything, st.just(0.0), st.one_of(near, st.just(0.0))]))
    columns = draw(st.integers(1, 9))
    rows = draw(st.lists(st.lists(element, min_size=columns, max_size=columns), min_size=1, max_size=4))
    return torch.tensor(rows, dtype=torch.float64).clamp(-largest, largest).to(dtype)


def expanded(per_group: Tensor | None, weight: Tensor, spec: QuantSpec) -> Tensor:
    """float64 [N, K] of scales or zero points, by plain indexing."""
    if per_group is None:
        return torch.zeros(weight.shape, dtype=torch.float64)
    group = torch.arange(weight.shape[1]) // spec.resolve_group_size(weight.shape[1])
    return per_group.double()[:, group].expand(weight.shape)


@given(weights(), specs())
def test_round_trip_error_is_half_a_step_inside_the_range(weight: Tensor, spec: QuantSpec) -> None:
    codes, scale, zero = qparams.quantize_weight(weight, spec)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert spec.qmin <= codes.min()
    assert codes.max() <= spec.qmax
    step, offset = expanded(scale, weight, spec), expanded(zero, weight, spec)
    inside = weight.double().clamp((spec.qmin - offset) * step, (spec.qmax - offset) * step)
    error = (inside - (codes - offset) * step).abs()
    # 1/scale and its product with x round once each: at most 2^-23 of a code of at most 255.
    assert (error <= step * (0.5 + 2.0**-14)).all()


@given(weights(), specs())
def test_the_range_covers_the_values_up_to_rounding(weight: Tensor, spec: QuantSpec) -> None:
    _, scale, zero = qparams.quantize_weight(weight, spec)
    assume(bool((scale >= torch.finfo(scale.dtype).smallest_normal).all()))
    step, offset = expanded(scale, weight, spec), expanded(zero, weight, spec)
    beyond = torch.maximum(weight - (spec.qmax - offset) * step, (spec.qmin - offset) * step - weight)
    # Half a step of the zero point (affine) or of int4's missing +8 (symmetric), and the scale's own rounding.
    allowed = 0.5 + 256 * torch.finfo(scale.dtype).eps
    assert (beyond <= step * allowed).all()


@given(weights(), specs())
def test_zero_is_a_grid_point(weight: Tensor, spec: QuantSpec) -> None:
    weight[:, 0] = 0.0
    codes, scale, zero = qparams.quantize_weight(weight, spec)
    assert (codes[:, 0].double() == expanded(zero, weight, spec)[:, 0]).all()
    full = expanded(scale, weight, spec).to(scale.dtype)
    offset = None if zero is None else expanded(zero, weight, spec).to(torch.int8)
    for dtype in FLOATS:
        restored = qparams.dequantize(codes, full, offset, dtype)
        assert restored.dtype == dtype
        assert (restored[:, 0] == 0).all()
    if zero is not None:
        assert zero.dtype == torch.int8
        assert spec.qmin <= zero.min()
        assert zero.max() <= spec.qmax


@given(weights(), specs())
def test_scales_are_positive_storable_numbers(weight: Tensor, spec: QuantSpec) -> None:
    scale, _ = qparams.weight_qparams(weight, spec)
    rows, columns = weight.shape
    groups = math.ceil(columns / spec.resolve_group_size(columns))
    assert scale.shape == ((1, 1) if spec.granularity == "tensor" else (rows, groups))
    assert scale.dtype == weight.dtype
    assert scale.isfinite().all()
    assert (scale.double() >= SCALE_FLOORS[weight.dtype]).all()


def nearest(value: np.float32, dtype: torch.dtype) -> np.float32:
    """A float32 rounded to `dtype`, half to even, and back."""
    if dtype == torch.float16:
        return np.float32(np.float16(value))
    if dtype == torch.bfloat16:
        bits = int(np.float32(value).view(np.uint32))
        bits += 0x7FFF + (bits >> 16 & 1)
        return np.uint32(bits & 0xFFFF0000).view(np.float32)
    return np.float32(value)


def oracle(values: np.ndarray, spec: QuantSpec, dtype: torch.dtype) -> tuple[np.ndarray, np.float32, int]:
    """Codes, scale and zero point of the float32 values that share a scale, in NumPy, one IEEE operation a line."""
    f = np.float32
    with np.errstate(all="ignore"):
        low, high = min(f(0), values.min()), max(f(0), values.max())
        if spec.symmetric:
            scale = f(max(-low, high) / f((spec.qmax - spec.qmin) / 2))
        else:
            levels = f(spec.qmax - spec.qmin)
            scale = f(f(high / levels) - f(low / levels))
        scale = max(nearest(scale, dtype), f(SCALE_FLOORS[dtype]))
        if low == 0 and high == 0:
            scale = f(1)
        zero = 0
        if not spec.symmetric:
            zero = int(np.clip(f(spec.qmin) - np.rint(f(low / scale)), spec.qmin, spec.qmax))
        inverse = f(f(1) / scale)
        rounded = np.rint((values * inverse).astype(f))
        return np.clip(rounded + zero, spec.qmin, spec.qmax).astype(np.int8), scale, zero


@given(weights(), specs())
@example(torch.tensor([[3.4028234663852886e38, -3.4028234663852886e38]]), QuantSpec(8, False, "channel"))
@example(torch.tensor([[1e-45, -1e-45]]), QuantSpec(8, False, "tensor"))
@example(torch.tensor([[1e-45]]), QuantSpec(4, True, "tensor"))
def test_formulas_against_numpy(weight: Tensor, spec: QuantSpec) -> None:
    codes, scale, zero = qparams.quantize_weight(weight, spec)
    columns, size = weight.shape[1], spec.resolve_group_size(weight.shape[1])
    blocks = [
        (slice(row, row + 1), slice(start, min(start + size, columns)))
        for row in range(weight.shape[0])
        for start in range(0, columns, size)
    ]
    if spec.granularity == "tensor":
        blocks = [(slice(None), slice(None))]
    for rows, block in blocks:
        expected, step, offset = oracle(weight[rows, block].float().numpy(), spec, weight.dtype)
        place = (rows.start or 0, (block.start or 0) // size)
        assert scale[place].float().item() == float(step)
        assert zero is None or zero[place].item() == offset
        assert_same(codes[rows, block], torch.from_numpy(expected))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("spec", WEIGHT_SPECS)
def test_all_zero_rows_have_scale_one(spec: QuantSpec, dtype: torch.dtype) -> None:
    weight = torch.zeros(3, 5, dtype=dtype)
    if spec.granularity == "channel":
        weight[1] = 2.0
    codes, scale, zero = qparams.quantize_weight(weight, spec)
    assert (scale[0] == 1).all()
    assert (scale[-1] == 1).all()
    offset = torch.zeros(1) if zero is None else zero[0]
    assert (codes[0] == offset).all()
    assert (qparams.dequantize(codes, scale, zero, dtype)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_come_from_the_rounded_scale(dtype: torch.dtype) -> None:
    """Find weights where the float32 scale would give other codes than the stored one; the stored one counts."""
    weight = torch.randn(64, 100).to(dtype)
    spec = QuantSpec(8, True, "channel")
    codes, scale, _ = qparams.quantize_weight(weight, spec)
    unrounded = weight.float().abs().amax(dim=1, keepdim=True) / 127
    assert not torch.equal(torch.round(weight.float() * (1 / unrounded)).to(torch.int8), codes)
    assert_same(torch.round(weight.float() * (1 / scale.float())).clamp(-127, 127).to(torch.int8), codes)


def test_int4_symmetric_uses_the_lowest_code() -> None:
    """amax / 7.5: -amax is code -8 (half a step of error), +amax saturates to 7."""
    codes, scale, _ = qparams.quantize_weight(torch.tensor([[7.5, -7.5, 1.0]]), QuantSpec(4, True, "channel"))
    assert (codes.tolist(), scale.item()) == ([[7, -8, 1]], 1.0)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [(0.0, 255.0, 1.0, -128), (-255.0, 0.0, 1.0, 127), (-128.0, 127.0, 1.0, 0), (5.0, 255.0, 1.0, -128)],
)
def test_affine_grids(low: float, high: float, scale: float, zero: int) -> None:
    found = qparams.affine_qparams(torch.tensor(low), torch.tensor(high), -128, 127)
    assert (found[0].item(), found[1].item()) == (scale, zero)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", ["max", "-max", "smallest", "1", "-1"])
def test_one_element(value: str, symmetric: bool, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    number = {
        "max": limits.max,
        "-max": -limits.max,
        "smallest": limits.smallest_normal / 4,
        "1": 1.0,
        "-1": -1.0,
    }
    weight = torch.tensor([[number[value]]], dtype=dtype)
    codes, scale, zero = qparams.quantize_weight(weight, QuantSpec(8, symmetric, "tensor"))
    restored = (codes.double() - (0.0 if zero is None else zero.double())) * scale.double()
    # Half a step, and what rounding the scale to its dtype moves the outermost of 255 codes by.
    ulp = max(limits.eps * scale.item(), limits.smallest_normal * limits.eps)
    assert (restored - weight.double()).abs() <= scale.double() * 0.5001 + 255 * ulp / 2


@pytest.mark.parametrize(("columns", "size"), [(5, 2), (7, 3), (100, 32), (3, 100), (1, 1), (6, 3)])
def test_the_last_group_may_be_shorter(columns: int, size: int) -> None:
    spec = QuantSpec(8, True, "group", size)
    weight = torch.randn(4, columns)
    codes, scale, _ = qparams.quantize_weight(weight, spec)
    assert scale.shape == (4, math.ceil(columns / size))
    for group in range(scale.shape[1]):
        alone = weight[:, group * size : (group + 1) * size]
        alone_codes, alone_scale, _ = qparams.quantize_weight(alone, QuantSpec(8, True, "channel"))
        assert_same(scale[:, group : group + 1], alone_scale)
        assert_same(codes[:, group * size : (group + 1) * size], alone_codes)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_an_observers_qparams_are_used_as_they_are(symmetric: bool, granularity: str) -> None:
    spec = QuantSpec(8, symmetric, granularity, 4 if granularity == "group" else None)
    shape = {"tensor": (1, 1), "channel": (3, 1), "group": (3, 3)}[granularity]
    scale = torch.rand(shape) + 0.1
    zero = None if symmetric else torch.randint(-128, 128, shape, dtype=torch.int8)
    weight = torch.randn(3, 10) * 30
    codes, found_scale, found_zero = qparams.quantize_weight(weight, spec, (scale, zero))
    assert found_scale is scale
    assert found_zero is zero
    offset = expanded(zero, weight, spec)
    inverse = expanded((1 / scale).double(), weight, spec).float()
    expected = (torch.round(weight * inverse) + offset).clamp(spec.qmin, spec.qmax)
    assert_same(codes, expected.to(torch.int8))


@given(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.floats(2.0**-126, 2.0**120, width=32),
    st.one_of(st.none(), st.integers(-128, 127)),
    st.sampled_from([(-127, 127), (-128, 127), (-8, 7)]),
)
@example(math.inf, 1.0, 100, (-128, 127))
@example(-math.inf, 1.0, -100, (-127, 127))
@example(math.nan, 1.0, 3, (-8, 7))
@example(0.5, 1.0, 1, (-128, 127))
@example(2.5, 1.0, None, (-127, 127))
@example(-1.5, 1.0, 1, (-128, 127))
def test_quantize_one_number(x: float, scale: float, zero: int | None, limits: tuple[int, int]) -> None:
    zero = None if zero is None else max(limits[0], min(limits[1], zero))
    offset: Any = None if zero is None else torch.tensor([zero], dtype=torch.int8)
    code = qparams.quantize(torch.tensor([x]), torch.tensor([scale]), offset, *limits).item()
    with np.errstate(all="ignore"):
        value = np.float32(x) * (np.float32(1) / np.float32(scale))
    if math.isnan(value):
        assert code == (zero or 0)
    elif math.isinf(value):
        assert code == (limits[1] if value > 0 else limits[0])
    else:  # Python's round: half to even, on exact integers
        assert code == max(limits[0], min(limits[1], round(float(value)) + (zero or 0)))
