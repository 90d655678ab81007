"""Observers that cut the range: how much error they leave, and where, against torch, brute force and theory."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec
from tritonq.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MSEObserver,
    ObserverBase,
    PercentileObserver,
    PerChannelMSEObserver,
    PerChannelPercentileObserver,
    as_observer_factory,
    observed_weight_qparams,
)
from tritonq.observers.clip_search import expected_error
from tritonq.observers.entropy import divergences

SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
CUTTING = (HistogramObserver, MSEObserver, PercentileObserver, EntropyObserver)


def qscheme(symmetric: bool, per_channel: bool = False) -> torch.qscheme:
    kind = "channel" if per_channel else "tensor"
    scheme: torch.qscheme = getattr(torch, f"per_{kind}_{'symmetric' if symmetric else 'affine'}")
    return scheme


def seen(cls: Any, x: Tensor, symmetric: bool, **words: Any) -> Any:
    observer = cls(dtype=torch.qint8, qscheme=qscheme(symmetric), **words)
    for batch in x.tensor_split(4):
        observer(batch)
    return observer


def squared_error(observer: ObserverBase, x: Tensor) -> float:
    scale, zero = observer.calculate_qparams()
    codes = qparams.quantize(x, scale, zero, observer.qmin, observer.qmax)
    return float((qparams.dequantize(codes, scale, zero, torch.float32).double() - x).square().mean())


def student(seed: int, count: int = 100_000) -> Tensor:
    """Student-t with 3 degrees of freedom: the tails of real activations."""
    generator = torch.Generator().manual_seed(seed)
    normal, *squares = torch.randn(4, count, generator=generator)
    return normal / (torch.stack(squares).square().sum(0) / 3).sqrt()


# --- least squared error -------------------------------------------------------------------------------------------


@SYMMETRIC
@pytest.mark.parametrize("seed", range(5))
def test_error_on_heavy_tails(seed: int, symmetric: bool) -> None:
    """MSE ≤ Histogram ≤ MinMax; the bins leave the first two some parts in a thousand of doubt."""
    x = student(seed)
    least, histogram, everything = (
        squared_error(seen(cls, x, symmetric), x) for cls in (MSEObserver, HistogramObserver, MinMaxObserver)
    )
    assert least <= histogram * 1.005
    assert histogram <= everything * 0.9
    if symmetric:  # and no other cut is better: a sweep of the error itself
        amax = float(x.abs().max())
        sweep = [MinMaxObserver(torch.qint8, qscheme(True)) for _ in range(60)]
        for part, observer in enumerate(sweep):
            observer(torch.tensor([-amax * 0.93**part, amax * 0.93**part]))
        assert least <= min(squared_error(observer, x) for observer in sweep) * 1.005


@SYMMETRIC
@pytest.mark.parametrize("bits", [4, 8])
def test_expected_error_is_the_error_of_values_spread_evenly(symmetric: bool, bits: int) -> None:
    counts, edges = torch.tensor([3, 0, 5, 1]), torch.tensor([-1.0, -0.3, 0.0, 0.7, 2.0], dtype=torch.float64)
    spec = QuantSpec(bits, symmetric, "tensor")
    ranges = torch.tensor([[-1.0, 2.0], [-0.4, 0.5], [0.0, 1.1], [-0.01, 0.02]])
    scale, zero = qparams.affine_qparams(ranges[:, 0], ranges[:, 1], spec.qmin, spec.qmax)
    if symmetric:
        zero = torch.zeros_like(zero)
    found = expected_error(counts, edges, scale, zero, spec.qmin, spec.qmax)
    spread = torch.cat(
        [
            torch.linspace(float(low), float(high), 40_001, dtype=torch.float64)[:-1] + (high - low) / 80_000
            for low, high in edges.unfold(0, 2, 1)
        ]
    ).reshape(4, -1)
    for each, s, z in zip(found, scale, zero, strict=True):
        codes = ((spread / s.double()).round() + z).clamp(spec.qmin, spec.qmax)
        errors = ((codes - z) * s.double() - spread).square().mean(dim=1)
        assert float(each) == pytest.approx(float((errors * counts).sum() / 9), rel=1e-5)


DATA = {
    "student": student(7),
    "normal": torch.randn(100_000, generator=torch.Generator().manual_seed(1)),
    "relu": torch.randn(100_000, generator=torch.Generator().manual_seed(2)).relu(),
    "gelu": torch.nn.functional.gelu(3 * torch.randn(100_000, generator=torch.Generator().manual_seed(3))),
}


@SYMMETRIC
@pytest.mark.parametrize("data", DATA)
def test_torch_histogram_observer(data: str, symmetric: bool) -> None:
    """torch estimates the error and stops where it first rises: near the optimum, at up to 1.5 times the error."""
    theirs = pytest.importorskip("torch.ao.quantization").HistogramObserver
    x, words = DATA[data], {"dtype": torch.qint8, "qscheme": qscheme(symmetric)}
    if symmetric:
        words.update(quant_min=-127, quant_max=127)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = theirs(**words)
        for batch in x.tensor_split(4):
            oracle(batch)
        scale, zero = oracle.calculate_qparams()
        ours = as_observer_factory(theirs.with_args(**words))()
    assert type(ours) is HistogramObserver
    for batch in x.tensor_split(4):
        ours(batch)
    codes = qparams.quantize(x, scale, zero.to(torch.int8), ours.qmin, ours.qmax)
    theirs_error = (qparams.dequantize(codes, scale, zero, torch.float32).double() - x).square().mean()
    assert 0.65 * float(theirs_error) <= squared_error(ours, x) <= float(theirs_error)
    found, found_zero = ours.calculate_qparams()
    tails = data == "student"
    assert float(found) == pytest.approx(float(scale), rel=0.3 if tails else 0.1)
    assert abs(int(found_zero) - int(zero)) <= (20 if tails else 6)


# --- percentiles ---------------------------------------------------------------------------------------------------


@SYMMETRIC
@pytest.mark.parametrize("percentile", [90, 99.9, 99.99, 100])
@pytest.mark.parametrize("data", DATA)
def test_percentiles(data: str, percentile: float, symmetric: bool) -> None:
    x = DATA[data]
    observer = seen(PercentileObserver, x, symmetric, percentile=percentile)
    low, high = observer.data_range()
    width = float(observer.window().width)
    if symmetric:
        expected = torch.quantile(x.abs(), percentile / 100)
        assert abs(high - expected) <= width
        assert low == -high
    else:
        tail = (1 - percentile / 100) / 2
        assert abs(low - torch.quantile(x, tail)) <= width
        assert abs(high - torch.quantile(x, 1 - tail)) <= width
    assert low >= -x.abs().max()
    assert high <= x.abs().max()


@SYMMETRIC
@pytest.mark.parametrize("percentile", [75, 99.99, 100])
def test_percentiles_of_channels(percentile: float, symmetric: bool) -> None:
    x = torch.randn(5, 301)
    observer = PerChannelPercentileObserver(percentile, dtype=torch.qint8, qscheme=qscheme(symmetric, True))
    for batch in x.split(100, dim=1):
        observer(batch)
    low, high = observer.data_range()
    tail = (1 - percentile / 100) / 2
    if symmetric:
        torch.testing.assert_close(high, torch.quantile(x.abs(), percentile / 100, dim=1))
    else:
        torch.testing.assert_close(low, torch.quantile(x, tail, dim=1))
        torch.testing.assert_close(high, torch.quantile(x, 1 - tail, dim=1))


# --- entropy -------------------------------------------------------------------------------------------------------


def divergence_as_published(counts: list[int], first: int, last: int, levels: int) -> float:
    """Migacz's procedure, bin by bin, levels that only hold outliers smoothed."""
    p = [float(count) for count in counts[first:last]]
    inside = list(p)
    if not any(inside):
        return math.inf
    p[0] += sum(counts[:first])
    p[-1] += sum(counts[last:])
    n = len(p)
    used = min(n, levels)
    q = [0.0] * n
    for level in range(used):
        begin, end = math.ceil(level * n / used), math.ceil((level + 1) * n / used)
        filled = [place for place in range(begin, end) if p[place] > 0]
        for place in filled:
            q[place] = max(sum(inside[begin:end]), 1e-4) / len(filled)
    p_sum, q_sum = sum(p), sum(inside)
    terms = [
        value / p_sum * math.log(value / p_sum / (other / q_sum))
        for value, other in zip(p, q, strict=True)
        if value > 0
    ]
    return sum(terms)


def test_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 6, (60,), generator=generator) * torch.randint(0, 2, (60,), generator=generator)
    windows = [(a, b) for a in range(0, 30, 3) for b in range(a + 8, 61, 3)] + [(0, 60)]
    first, last = torch.tensor(windows).t()
    found = divergences(counts, first, last, 8)
    expected = [divergence_as_published(counts.tolist(), a, b, 8) for a, b in windows]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_windows_too_small_to_lose_anything_are_not_taken() -> None:
    counts = torch.ones(64, dtype=torch.int64)
    last = torch.arange(1, 65)
    found = divergences(counts, torch.zeros_like(last), last, 16)
    assert found[:15].isinf().all()
    assert found[15:].isfinite().all()
    assert divergences(counts[:4], torch.zeros(1).long(), torch.tensor([4]), 16).isfinite().all()


@SYMMETRIC
def test_entropy_cuts_outliers_and_keeps_the_rest(symmetric: bool) -> None:
    x = torch.cat([DATA["normal"], torch.tensor([60.0, -60.0])])
    low, high = seen(EntropyObserver, x, symmetric).data_range()
    assert 3 < high < 10
    assert -10 < low < -3
    # Exact zeros, as ReLU makes them, do not pull the threshold in.
    assert float(seen(EntropyObserver, DATA["relu"], symmetric).data_range()[1]) > 3


# --- weights -------------------------------------------------------------------------------------------------------


def weight_error(weight: Tensor, spec: QuantSpec, found: tuple[Tensor, Tensor | None]) -> Tensor:
    """Squared error of each scale's values, [scales]."""
    codes, scale, zero = qparams.quantize_weight(weight, spec, found)
    columns, group = weight.shape[1], spec.resolve_group_size(weight.shape[1])
    expanded = None if zero is None else qparams.expand_groups(zero, columns, group)
    values = qparams.dequantize(codes, qparams.expand_groups(scale, columns, group), expanded, torch.float32)
    errors = (values - weight.float()).square()
    if spec.granularity == "tensor":
        return errors.sum().reshape(1)
    padded = torch.nn.functional.pad(errors, (0, -columns % group))
    return padded.reshape(-1, group).sum(1)


@SYMMETRIC
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("granularity", "group_size"), [("tensor", None), ("channel", None), ("group", 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mse_of_weights_is_never_worse(
    symmetric: bool, bits: int, granularity: str, group_size: int | None, dtype: torch.dtype
) -> None:
    weight = student(3, 40 * 100).reshape(40, 100).to(dtype)
    plain = QuantSpec(bits, symmetric, granularity, group_size)
    spec = QuantSpec(bits, symmetric, granularity, group_size, observer="mse")
    found = observed_weight_qparams(weight, spec)
    assert found is not None
    assert found[0].dtype == dtype
    ours, extremes = (
        weight_error(weight, spec, found),
        weight_error(weight, plain, qparams.weight_qparams(weight, plain)),
    )
    assert (ours <= extremes * (1 + 1e-5)).all()
    assert ours.sum() < extremes.sum() * (0.999 if bits == 8 else 0.95)


@SYMMETRIC
def test_mse_of_weights_finds_the_least_error(symmetric: bool) -> None:
    weight = torch.randn(8, 64)
    spec = QuantSpec(4, symmetric, "channel", observer="mse")
    found = observed_weight_qparams(weight, spec)
    assert found is not None
    ours = weight_error(weight, spec, found)
    low, high = qparams.weight_extremes(weight, spec)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best = torch.full_like(ours, math.inf)
    ends = torch.linspace(0.3, 1.1, 60)
    for part, other in [(a, b) for a in ends for b in ([a] if symmetric else ends)]:
        if symmetric:
            grid: Any = (qparams.symmetric_scale(high * part, -8, 7), None)
        else:
            grid = qparams.affine_qparams(low * part, high * other, -8, 7)
        best = torch.minimum(best, weight_error(weight, spec, grid))
    # A search along each end in turn misses some of what all pairs of ends would find.
    assert (ours <= best * 1.25).all()
    assert ours.sum() <= best.sum() * (1.01 if symmetric else 1.06)


def test_weights_per_tensor_are_measured_exactly() -> None:
    weight = student(5, 64 * 64).reshape(64, 64)
    spec = QuantSpec(8, True, "tensor", observer="mse")
    found = observed_weight_qparams(weight, spec)
    row = PerChannelMSEObserver(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    row(weight.reshape(1, -1))
    assert found is not None
    assert torch.equal(found[0].reshape(1), row.calculate_qparams()[0])


# --- odd data ------------------------------------------------------------------------------------------------------

ODD = {
    "zeros": torch.zeros(10),
    "one zero": torch.zeros(()),
    "one": torch.tensor([3.0]),
    "constant": torch.full((100,), -5.0),
    "subnormal": torch.tensor([1e-45, -3e-45, 1e-40]),
    "huge": torch.tensor([3.4028234663852886e38, -3.4028234663852886e38, 1.0, 1e30]),
    "two scales": torch.tensor([1e-30] * 50 + [1e30]),
    "largest in float16": torch.tensor([65504.0, -65504.0, 6e-8], dtype=torch.float16),
    "powers": 2.0 ** torch.arange(-20.0, 21.0),
}


@SYMMETRIC
@pytest.mark.parametrize("cls", CUTTING, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("data", ODD)
def test_odd_data(cls: Any, data: str, symmetric: bool) -> None:
    observer = cls(dtype=torch.qint8, qscheme=qscheme(symmetric))
    observer(ODD[data])
    x = ODD[data].reshape(-1)
    scale, zero = observer.calculate_qparams()
    assert scale.shape == zero.shape == (1,)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    if data in ("zeros", "one zero"):
        assert scale == 1
    if data in ("one", "constant", "zeros", "one zero"):
        values = qparams.dequantize(qparams.quantize(x, scale, zero, -128, 127), scale, zero, torch.float32)
        torch.testing.assert_close(values, x, rtol=3e-3, atol=0)
    if issubclass(cls, HistogramObserver):
        plain = MinMaxObserver(dtype=torch.qint8, qscheme=qscheme(symmetric))
        plain(x)
        assert squared_error(observer, x.float()) <= squared_error(plain, x.float()) * 1.1 + 1e-60
