"""Observers that cover a percentage of the values and let the rest saturate.

symmetric   amax = the p-th percentile of |x|
affine      low, high = the (100 - p)/2-th and the (100 + p)/2-th percentile of x: p % of all values lie between
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq.observers.base import number_between
from tritonq.observers.histogram import CountingObserver
from tritonq.observers.kept_values import KeptValuesObserver
from tritonq.reference import histogram as binning


class PercentileObserver(CountingObserver):
    """Covers `percentile` percent of all values, found in a histogram and so exact to one bin width.

    Args:
        percentile: in (50, 100].
        bins, dtype, qscheme, …: see HistogramObserver.
    """

    def __init__(self, percentile: float = 99.99, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.percentile = number_between(self, "percentile", percentile, 50, 100)

    def cut(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inside = self.percentile / 100
        if self.symmetric:
            place = self.window()
            counts = binning.magnitudes(self.histogram, place)
            edges = torch.arange(self.bins + 1, device=counts.device) * place.width.double()
            largest = self.widest()[1]
            amax = torch.minimum(value_below_which(inside, counts, edges).float(), largest)
            return -amax, amax
        edges = self.edges()
        low = value_below_which((1 - inside) / 2, self.histogram, edges).float()
        high = value_below_which((1 + inside) / 2, self.histogram, edges).float()
        return torch.maximum(low, self.min_val), torch.minimum(high, self.max_val)

    def extra_repr(self) -> str:
        return f"percentile={self.percentile}, {super().extra_repr()}"


class PerChannelPercentileObserver(KeptValuesObserver):
    """Covers `percentile` percent of each channel's values, exactly, interpolated between the two nearest.

    Args:
        percentile: in (50, 100].
        ch_axis, dtype, qscheme, …: see PerChannelMinMaxObserver.
    """

    def __init__(self, percentile: float = 99.99, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.percentile = number_between(self, "percentile", percentile, 50, 100)

    def cut(self, values: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        inside = self.percentile / 100
        if self.symmetric:
            amax = quantile(values.abs(), inside)
            return -amax, amax
        return quantile(values, (1 - inside) / 2), quantile(values, (1 + inside) / 2)

    def extra_repr(self) -> str:
        return f"percentile={self.percentile}, {super().extra_repr()}"


def value_below_which(fraction: float, counts: Tensor, edges: Tensor) -> Tensor:
    """float64 scalar: the value below which `fraction` of a histogram lies; values are spread evenly over each bin.

    Args:
        fraction: 0 … 1.
        counts: int64 [bins].
        edges: float64 [bins + 1].
    """
    below = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).double()  # [bins + 1]
    wanted = (fraction * below[-1]).reshape(1)
    end = torch.searchsorted(below, wanted).clamp(1, counts.numel())  # the first edge with enough below it
    begin = end - 1
    share = ((wanted - below[begin]) / (below[end] - below[begin]).clamp(min=1)).clamp(0, 1)
    return (edges[begin] + share * (edges[end] - edges[begin]))[0]


def quantile(values: Tensor, fraction: float) -> Tensor:
    """[rows, n] → [rows]: as torch.quantile, for rows of any length."""
    place = fraction * (values.shape[1] - 1)
    below = int(place)
    smaller = values.kthvalue(below + 1, dim=1).values
    if below == place:
        return smaller
    return torch.lerp(smaller, values.kthvalue(below + 2, dim=1).values, place - below)
