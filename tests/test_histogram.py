"""Bins that double: the same counts whatever way the data comes, and the bins where the definition has them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tritonq.observers import HistogramObserver
from tritonq.reference import histogram

LARGEST = torch.finfo(torch.float32).max
#: Of all sizes, subnormal numbers included, and of similar size, so that bins are shared.
FLOATS = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-8, 8, width=32) | st.sampled_from([0.0, -0.0])
BINS = st.sampled_from([16, 17, 31, 100, 2048, 8192])


def observed(batches: list[list[float]], bins: int) -> HistogramObserver:
    observer = HistogramObserver(bins)
    for batch in batches:
        observer(torch.tensor(batch))
    return observer


def numbers_of(values: Tensor, exponent: int) -> Tensor:
    """trunc(x / 2^exponent), exactly: float64 holds every quotient of float32s by powers of two."""
    return (values.double() * 2.0**-exponent).trunc()


@given(st.lists(FLOATS, min_size=1, max_size=30), BINS)
def test_the_window_is_the_narrowest_that_holds_the_data_and_zero(values: list[float], bins: int) -> None:
    x = torch.tensor([*values, 0.0])
    place = histogram.window(x.min(), x.max(), bins)
    exponent = int(place.exponent)
    numbers = numbers_of(x, exponent)
    assert int(place.origin) == int(numbers.min())
    assert numbers.max() - numbers.min() < bins
    assert float(place.width) == 2.0**exponent
    assert float(place.inverse_width) == 2.0**-exponent
    if exponent > -126:
        narrower = numbers_of(x, exponent - 1)
        assert narrower.max() - narrower.min() >= bins


@given(st.lists(FLOATS, min_size=1, max_size=30), BINS)
def test_every_value_lies_in_its_bin(values: list[float], bins: int) -> None:
    x = torch.tensor(values)
    observer = observed([values], bins)
    place, edges = observer.window(), observer.window().edges(bins)
    assert (edges.diff() > 0).all()
    index = (numbers_of(x, int(place.exponent)) - place.origin).long()
    assert torch.equal(observer.histogram, torch.bincount(index, minlength=bins))
    assert (edges[index] <= x.double()).all()
    assert (x.double() <= edges[index + 1]).all()
    sizes = histogram.magnitudes(observer.histogram, place)
    in_range = index + place.origin
    assert torch.equal(sizes, torch.bincount(in_range.abs(), minlength=bins)[:bins])


@given(st.lists(st.lists(FLOATS, min_size=1, max_size=8), min_size=1, max_size=6), BINS, st.randoms())
def test_batches_order_and_processes_do_not_matter(batches: list[list[float]], bins: int, random) -> None:
    whole = observed([[value for batch in batches for value in batch]], bins)
    shuffled = list(batches)
    random.shuffle(shuffled)
    merged = HistogramObserver(bins)
    for batch in shuffled:
        merged.merge(observed([batch], bins))
    for other in (observed(batches, bins), observed(shuffled, bins), merged):
        assert torch.equal(other.min_val, whole.min_val)
        assert torch.equal(other.max_val, whole.max_val)
        assert torch.equal(other.histogram, whole.histogram)
    assert int(whole.histogram.sum()) == sum(map(len, batches))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_counted_as_their_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(5000) * 3).to(dtype)
    one, other = HistogramObserver(), HistogramObserver()
    one(x)
    other(x.float())
    assert torch.equal(one.histogram, other.histogram)


def test_more_elements_than_are_counted_at_once() -> None:
    x = torch.randn(3, 7, 10_001)
    observer = HistogramObserver(100)
    observer(x.transpose(0, 2))
    place = observer.window()
    index = (numbers_of(x.reshape(-1), int(place.exponent)) - place.origin).long()
    assert torch.equal(observer.histogram, torch.bincount(index, minlength=100))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_range_that_is_not_finite_has_some_window(bad: float) -> None:
    one = torch.tensor(1.0)
    for low, high in ((torch.tensor(bad), one), (-one, torch.tensor(bad))):
        place = histogram.window(low, high, 64)
        assert -126 <= int(place.exponent) <= 127
        counts = torch.ones(64, dtype=torch.int64)
        assert int(histogram.rebinned(counts, histogram.window(-one, one, 64), place).sum()) == 64
