"""The fake-quantization kernels against the reference: values and masks bit for bit, gradients but for rounding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kernel_inputs import (
    COLUMNS,
    FLOATS,
    ROWS,
    STRIDES,
    as_stored,
    assert_same,
    random_codes,
    readable,
    with_strides,
)
from tests.support.pairwise import pairwise
from tritonq import reference
from tritonq.reference import fake_quantize as straight_through

kernels: Any = pytest.importorskip("tritonq.kernels.rows.fake_quantize", reason="Triton is not installed")
gradient_kernels: Any = pytest.importorskip("tritonq.kernels.rows.fake_quantize_gradients")
token_kernels: Any = pytest.importorskip("tritonq.kernels.rows.quantize")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

#: Narrower than in other kernel tests: small groups make many programs.
NARROW = (314, 1, 31, 100)
RANGES = ((-8, 7), (-127, 127), (-128, 127))
#: None is one group a row.
GROUPS = (32, None, 128, 100, 13)
ZEROS = ("none", "int8", "learned")
FACTOR = 0.0173

Grid = tuple[Tensor, Tensor | None, int, int, int]


def grid_of(x: Tensor, group_size: int | None, rows_share: bool, zeros: str, limits: tuple[int, int]) -> Grid:
    """Scales that leave some of x outside the range, zero points of the whole range and (learned) beyond it."""
    size = max(1, x.shape[1] if group_size is None else min(group_size, x.shape[1]))
    groups = max(1, -(-x.shape[1] // size))
    shape = (1 if rows_share else x.shape[0], groups)
    low, high = limits
    scale = (torch.rand(shape, device=x.device) + 0.5) * 3 / (high - low)
    zero = None
    if zeros == "int8":
        zero = random_codes(*shape, device=str(x.device), low=low, high=high)
    elif zeros == "learned":
        zero = (torch.rand(shape, device=x.device) - 0.5) * 1.1 * (high - low)
    return scale, zero, size, low, high


def forward(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    return kernels.fake_quantize_with_mask(x, *grid, straight_through.tile_columns(grid[2]))


def check(x: Tensor, dy: Tensor, grid: Grid) -> None:
    """Forward, masked backward and learned backward, of one input."""
    scale, zero, size, low, high = grid
    columns, groups, tile = x.shape[1], scale.shape[1], straight_through.tile_columns(size)
    y, mask = forward(x, grid)
    exact = straight_through.fake_quantize(x.float(), *grid)
    assert_same(y, as_stored(exact, x.dtype))
    inside = straight_through.inside_range(x, *grid)
    assert_same(mask, straight_through.pack_mask(inside, groups, size))
    assert_same(straight_through.unpack_mask(mask, columns, groups, size), inside)
    expected = torch.where(inside, dy, torch.zeros_like(dy))
    assert_same(kernels.masked(dy, mask, groups, size, tile), expected)

    wanted = (True, True, zero is not None and zero.is_floating_point())
    found = gradient_kernels.gradients(dy, x, *grid, tile, FACTOR, wanted)
    dx, dscale, dzero = straight_through.gradients(dy, x, *grid, FACTOR)
    assert_same(found[0], dx)
    magnitudes = straight_through.gradients(dy.abs(), x, *grid, FACTOR)
    # What rounding errors scale with: |dy| times half a step inside, times the whole range outside.
    bound = 1e-6 * (magnitudes[1].abs() + FACTOR * dy.float().abs().sum() / dscale.numel() * (high - low))
    assert found[1].shape == dscale.shape
    assert found[1].dtype == scale.dtype
    assert ((found[1].float() - dscale).abs() <= bound).all()
    if wanted[2]:
        assert zero is not None
        assert found[2].dtype == zero.dtype
        torch.testing.assert_close(found[2], dzero, rtol=1e-5, atol=1e-6)
    else:
        assert found[2].numel() == 0


@pytest.mark.parametrize("rows_share", [False, True])
@pytest.mark.parametrize(
    "case",
    pairwise(
        group_size=GROUPS,
        rows=ROWS,
        columns=NARROW,
        zeros=ZEROS,
        limits=RANGES,
        dtype=FLOATS,
        strides=STRIDES,
        dy_strides=STRIDES,
    ),
)
def test_against_the_reference(case: dict[str, Any], rows_share: bool, device: str) -> None:
    x = readable(torch.randn(case["rows"], case["columns"], device=device).to(case["dtype"]))
    dy = readable(torch.randn(case["rows"], case["columns"], device=device).to(case["dtype"]))
    grid = grid_of(x, case["group_size"], rows_share, case["zeros"], case["limits"])
    check(with_strides(x, case["strides"]), with_strides(dy, case["dy_strides"]), grid)


@pytest.mark.parametrize("rows_share", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(3, 1024), (3, 1025), (2, 5000), (700, 9)])
def test_scales_that_span_many_tiles(rows: int, columns: int, rows_share: bool, device: str) -> None:
    x, dy = torch.randn(rows, columns, device=device), torch.randn(rows, columns, device=device)
    check(x, dy, grid_of(x, None, rows_share, "learned", (-128, 127)))


@pytest.mark.parametrize("group_size", [1, 7, 9])
def test_groups_narrower_than_a_byte_of_the_mask(group_size: int, device: str) -> None:
    x, dy = torch.randn(5, 19, device=device), torch.randn(5, 19, device=device)
    check(x, dy, grid_of(x, group_size, False, "learned", (-8, 7)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_scales_in_the_dtype_of_the_weight(dtype: torch.dtype, device: str) -> None:
    x, dy = torch.randn(20, 100, device=device).to(dtype), torch.randn(20, 100, device=device).to(dtype)
    scale, zero, *_ = grid_of(x, 32, False, "int8", (-8, 7))
    grid: Grid = (scale.to(dtype), zero, 32, -8, 7)
    y, _ = forward(x, grid)
    assert_same(y, as_stored(straight_through.fake_quantize(x.float(), *grid), dtype))
    tile = straight_through.tile_columns(32)
    _, found, _ = gradient_kernels.gradients(dy, x, *grid, tile, FACTOR, (False, True, False))
    _, expected, _ = straight_through.gradients(dy, x, *grid, FACTOR)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("limits", "zero"), [((-127, 127), None), ((-128, 127), 5), ((-8, 7), -3)])
def test_ties_and_edges(limits: tuple[int, int], zero: int | None, device: str) -> None:
    x = torch.arange(-300.0, 300.0, 0.5, device=device).reshape(3, -1)
    scale = torch.ones(1, 1, device=device)
    zeros = None if zero is None else torch.full((1, 1), zero, dtype=torch.int8, device=device)
    grid = (scale, zeros, x.shape[1], *limits)
    check(x, torch.ones_like(x), grid)
    y, _ = forward(x, grid)
    offset = zero or 0
    expected = [max(limits[0] - offset, min(limits[1] - offset, round(v))) for v in x.flatten().tolist()]
    assert y.flatten().tolist() == expected
    assert not y.signbit()[y == 0].any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_not_finite(dtype: torch.dtype, device: str) -> None:
    large = torch.finfo(dtype).max
    x = torch.tensor([[math.inf, -math.inf, large, -large, math.nan, 0.0, -0.0, 1.0]], device=device).to(
        dtype
    )
    grid = (torch.full((1, 1), 0.5, device=device), None, 8, -8, 7)
    y, mask = forward(x, grid)
    assert y.tolist() == [[3.5, -4.0, 3.5, -4.0, 0.0, 0.0, 0.0, 1.0]]
    assert mask.tolist() == [[0b11110000]]
    check(x, torch.ones_like(x), grid)


@pytest.mark.parametrize("scale", [math.nan, 0.0, math.inf, -0.5, 2.0**-126])
def test_scales_that_should_not_be(scale: float, device: str) -> None:
    x = torch.randn(5, 40, device=device)
    grid = (torch.full((1, 1), scale, device=device), None, 40, -8, 7)
    y, mask = forward(x, grid)
    assert_same(y, straight_through.fake_quantize(x, *grid))
    assert_same(mask, straight_through.pack_mask(straight_through.inside_range(x, *grid), 1, 40))


def test_a_zero_point_that_is_nan_makes_nan(device: str) -> None:
    x = torch.randn(5, 40, device=device)
    zero = torch.full((1, 1), math.nan, device=device)
    grid = (torch.ones(1, 1, device=device), zero, 40, -8, 7)
    y, mask = forward(x, grid)
    assert y.isnan().all()
    assert not mask.any()


def test_a_nan_gradient_flows_where_it_belongs(device: str) -> None:
    x, dy = torch.randn(6, 96, device=device), torch.randn(6, 96, device=device)
    scale = grid_of(x, 32, False, "none", (-8, 7))[0]
    x[2, 40], dy[2, 40] = 0.1, math.nan
    x[4, 70], dy[4, 70] = 1e9, math.nan
    tile = straight_through.tile_columns(32)
    grid = (scale, torch.zeros_like(scale), 32, -8, 7)
    dx, dscale, dzero = gradient_kernels.gradients(dy, x, *grid, tile, FACTOR, (True, True, True))
    assert dx.isnan().nonzero().tolist() == [[2, 40]]
    assert dscale.isnan().nonzero().tolist() == [[2, 1], [4, 2]]
    assert dzero.isnan().nonzero().tolist() == [[4, 2]]


def test_a_row_outside_the_range_has_no_gradient(device: str) -> None:
    x, dy = torch.full((4, 33), 100.0, device=device), torch.randn(4, 33, device=device)
    grid = (torch.ones(4, 1, device=device), torch.ones(4, 1, device=device), 33, -8, 7)
    dx, dscale, dzero = gradient_kernels.gradients(
        dy, x, *grid, straight_through.tile_columns(33), 1.0, (True, True, True)
    )
    assert not dx.any()
    torch.testing.assert_close(dscale, 6 * dy.sum(dim=1, keepdim=True))
    torch.testing.assert_close(dzero, -dy.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("rows_share", [False, True])
def test_gradients_repeat_their_bits(rows_share: bool, device: str) -> None:
    x, dy = torch.randn(300, 130, device=device), torch.randn(300, 130, device=device)
    grid = grid_of(x, None, rows_share, "learned", (-128, 127))
    tile = straight_through.tile_columns(130)
    first = gradient_kernels.gradients(dy, x, *grid, tile, FACTOR, (True, True, True))
    for found, expected in zip(
        gradient_kernels.gradients(dy, x, *grid, tile, FACTOR, (True, True, True)), first, strict=True
    ):
        assert_same(found, expected)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_wanted(wanted: tuple[bool, bool, bool], device: str) -> None:
    x, dy = torch.randn(9, 50, device=device), torch.randn(9, 50, device=device)
    grid = grid_of(x, 32, False, "learned", (-8, 7))
    tile = straight_through.tile_columns(32)
    everything = gradient_kernels.gradients(dy, x, *grid, tile, FACTOR, (True, True, True))
    found = gradient_kernels.gradients(dy, x, *grid, tile, FACTOR, wanted)
    for want, one, other in zip(wanted, found, everything, strict=True):
        assert (one.numel() > 0) == want
        if want:
            assert_same(one, other)


@pytest.mark.parametrize("shape", [(0, 40), (3, 0), (0, 0)])
def test_nothing(shape: tuple[int, int], device: str) -> None:
    x = torch.randn(shape, device=device)
    grid = (torch.ones(1, 1, device=device), torch.zeros(1, 1, device=device), max(1, shape[1]), -8, 7)
    y, mask = forward(x, grid)
    assert y.shape == shape
    assert mask.shape == straight_through.mask_shape(shape[0], 1, grid[2])
    tile = straight_through.tile_columns(grid[2])
    assert kernels.masked(x, mask, 1, grid[2], tile).shape == shape
    dx, dscale, dzero = gradient_kernels.gradients(x, x, *grid, tile, FACTOR, (True, True, True))
    assert dx.shape == shape
    assert dscale.tolist() == dzero.tolist() == [[0.0]]


# --- per token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", pairwise(rows=ROWS, columns=COLUMNS, dtype=FLOATS, symmetric=(True, False), strides=STRIDES)
)
def test_per_token(case: dict[str, Any], device: str) -> None:
    x = torch.randn(case["rows"], case["columns"], device=device) * 3 + 1
    x = with_strides(readable(x.to(case["dtype"])), case["strides"])
    found = token_kernels.fake_quantize_per_token(x, case["symmetric"])
    exact = straight_through.fake_quantize_per_token(x.float(), case["symmetric"])
    assert_same(found, as_stored(exact, x.dtype))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [6, 16384 + 100])
def test_per_token_rows_that_are_not_finite_become_nan(columns: int, symmetric: bool, device: str) -> None:
    x = torch.randn(5, columns, device=device)
    x[1, 3], x[3, columns - 1] = math.nan, -math.inf
    found = token_kernels.fake_quantize_per_token(x, symmetric)
    assert found[[1, 3]].isnan().all()
    codes, scale, zero = reference.quantize_per_token(x[::2], symmetric)
    assert_same(found[::2], (codes.float() - zero.float()) * scale)
