"""The kernels that observe against the reference: the same extremes and the same counts, every one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.support.kernel_inputs import FLOATS, assert_same, readable
from tests.support.pairwise import pairwise
from tritonq.reference import histogram as reference

kernels: Any = pytest.importorskip("tritonq.kernels.rows.observe", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

PER_PROGRAM = kernels._BLOCK * kernels._BLOCKS_PER_PROGRAM


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=(1, 3, 40),
        columns=(1, 7, 576, kernels._BLOCK, kernels._BLOCK + 1, PER_PROGRAM + 5),
        dtype=FLOATS,
    ),
)
def test_extremes(case: dict[str, Any], device: str) -> None:
    rows, columns = case["rows"], case["columns"]
    x = torch.randn(rows, columns, device=device) * torch.logspace(-3, 3, rows, device=device)[:, None] + 1
    x[-1, -1], x[0, 0] = -5000.0, 6000.0
    x = readable(x.to(case["dtype"]))
    for found, expected in zip(kernels.extremes(x, rows), torch.aminmax(x, dim=1), strict=True):
        assert_same(found, expected.float())


@pytest.mark.parametrize("place", [0, 5000, PER_PROGRAM + 3, -1])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_extremes_remember_what_is_not_finite(bad: float, place: int, device: str) -> None:
    x = torch.randn(2, PER_PROGRAM + 100, device=device)
    clean = kernels.extremes(x, 2)
    x[1, place] = bad
    low, high = kernels.extremes(x, 2)
    assert_same(low[:1], clean[0][:1])
    assert_same(high[:1], clean[1][:1])
    if math.isnan(bad):
        assert low[1].isnan()
        assert high[1].isnan()
    else:
        assert bad in (float(low[1]), float(high[1]))


@pytest.mark.parametrize(
    "case",
    pairwise(
        shape=((), (1,), (0, 4), (5, 7, 31), (4096,), (PER_PROGRAM + 9,)),
        bins=(16, 100, 2048, 2049, 8192),
        dtype=FLOATS,
        scale=(1.0, 2.0**-120, 2.0**100),
        shift=(0.0, 3.0, -3.0),
    ),
)
def test_histogram(case: dict[str, Any], device: str) -> None:
    x = torch.randn(case["shape"], device=device) + case["shift"]
    if case["dtype"] != torch.float16:
        x = x * case["scale"]
    x = readable(x.to(case["dtype"]))
    low, high = torch.aminmax(x) if x.numel() else (torch.zeros((), device=device),) * 2
    place = reference.window(low.float(), high.float(), case["bins"])
    counts = torch.randint(0, 2**40, (case["bins"],), device=device)
    before = counts.clone()
    found = kernels.histogram(x, counts, place.inverse_width, place.origin)
    assert_same(found, reference.histogram(x, counts, place.inverse_width, place.origin))
    assert torch.equal(counts, before)
    assert int(found.sum() - before.sum()) == x.numel()


def test_histogram_of_edges(device: str) -> None:
    # Values on the edges of bins, beside them, zeros of both signs, and what x / width loses to underflow.
    edges = torch.arange(-40.0, 41.0) * 2.0**-3
    beside = torch.cat([torch.nextafter(edges, torch.full_like(edges, end)) for end in (-math.inf, math.inf)])
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30])
    x = torch.cat([edges, beside, tiny]).to(device)
    place = reference.window(x.min(), x.max(), 100)
    assert float(place.width) == 2.0**-3
    zeros = torch.zeros(100, dtype=torch.int64, device=device)
    found = kernels.histogram(x, zeros, place.inverse_width, place.origin)
    places = (x.double() / 2.0**-3).trunc().long() - place.origin
    assert_same(found, torch.bincount(places, minlength=100))


def test_histogram_counts_everything_somewhere(device: str) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.5], device=device)
    one, origin = torch.ones((), device=device), torch.zeros((), dtype=torch.int32, device=device)
    found = kernels.histogram(x, torch.zeros(64, dtype=torch.int64, device=device), one, origin)
    assert int(found.sum()) == 6


def test_histogram_is_the_same_every_time(device: str) -> None:
    x = torch.randn(3 * PER_PROGRAM + 1, device=device)
    place = reference.window(x.min(), x.max(), 2048)
    zeros = torch.zeros(2048, dtype=torch.int64, device=device)
    first = kernels.histogram(x, zeros, place.inverse_width, place.origin)
    for _ in range(3):
        assert_same(kernels.histogram(x, zeros, place.inverse_width, place.origin), first)
