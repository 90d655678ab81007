"""Observers that count values in bins, and decide where to cut outliers after they have seen all data.

The bins are those of `tritonq.reference.histogram`: the same data gives the same counts, whatever its batches, order
and processes. The state is `min_val` and `max_val`, exact, and `histogram`, int64 [bins]. The width and the place of
the bins follow from the first two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq import ops
from tritonq.observers import clip_search
from tritonq.observers.base import answers_at_once
from tritonq.observers.minmax import MinMaxObserver
from tritonq.observers.processes import Processes
from tritonq.reference import histogram as binning


class CountingObserver(MinMaxObserver):
    """Counts values in bins; a subclass defines `cut`, which chooses the range.

    Args:
        bins: 16 … 8192. The data's range, zero included, fills at least half of them.
        others: see ObserverBase.
    """

    histogram: Tensor

    def __init__(self, bins: int = 2048, *arguments: Any, **words: Any) -> None:
        fewest, most = binning.FEWEST_BINS, binning.MOST_BINS
        if type(bins) is not int or not fewest <= bins <= most:
            raise ValueError(
                f"{type(self).__name__}: bins must be an int in {fewest} … {most}, found {bins!r}"
            )
        super().__init__(*arguments, **words)
        self.bins = bins
        self.register_buffer("histogram", torch.zeros(bins, dtype=torch.int64))

    def cut(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """float32 scalars (low, high): the range to cover; `dtype` stores the scale."""
        raise NotImplementedError

    def reset_min_max_vals(self) -> None:
        """Forget everything observed."""
        super().reset_min_max_vals()
        if "histogram" in self._buffers:
            self.histogram = torch.zeros_like(self.histogram)

    def observe(self, x: Tensor) -> None:
        place = self.widen(*self.checked_extremes(x))
        self._hold(ops.histogram(x, self.histogram, place.inverse_width, place.origin))

    def widen(self, low: Tensor, high: Tensor) -> binning.Window:
        """Widen the range to include low … high, move the counts to the new bins, and return these."""
        before = self.window()
        self.histogram = self.histogram.to(low.device)
        if answers_at_once(low) and bool((low >= self.min_val) & (high <= self.max_val)):
            return before
        self.fold(low, high)
        after = self.window()
        self._hold(binning.rebinned(self.histogram, before, after))
        return after

    def take_over(self, other: Any) -> None:
        if other.bins != self.bins:
            raise ValueError(f"{self.title} counts {self.bins} bins, found {other.bins}")
        device = self.min_val.device
        place = self.widen(other.min_val.to(device), other.max_val.to(device))
        theirs = binning.Window(*(value.to(device) for value in other.window()))
        self._hold(self.histogram + binning.rebinned(other.histogram.to(device), theirs, place))

    def share(self, processes: Processes) -> None:
        before = self.window()
        super().share(processes)
        self._hold(processes.total(binning.rebinned(self.histogram, before, self.window())))

    def window(self) -> binning.Window:
        """The place of the bins."""
        return binning.window(self.min_val, self.max_val, self.bins)

    def edges(self) -> Tensor:
        """float64 [bins + 1]: the beginning of each bin and the end of the last, clamped to the data's range."""
        place = self.window()
        # A bin that the range only touches keeps a little width, so that its density is finite.
        little = place.width.double() / 1024
        low, high = self.min_val.double() - little, self.max_val.double() + little
        return torch.maximum(torch.minimum(place.edges(self.bins), high), low)

    def widest(self) -> tuple[Tensor, Tensor]:
        """float32 scalars (low ≤ 0, high ≥ 0): the whole range, with equal ends where the grid is symmetric."""
        low, high = self.min_val.clamp(max=0.0), self.max_val.clamp(min=0.0)
        if not self.symmetric:
            return low, high
        high = torch.maximum(-low, high)
        return -high, high

    def data_range(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        low, high = self.cut(dtype)
        # Counts of NaN and Inf mean nothing; the extremes remember them.
        finite = torch.isfinite(self.min_val) & torch.isfinite(self.max_val)
        return torch.where(finite, low, torch.nan), torch.where(finite, high, torch.nan)

    def _hold(self, counts: Tensor) -> None:
        self.histogram.copy_(counts)

    def extra_repr(self) -> str:
        return f"bins={self.bins}, {super().extra_repr()}"


class HistogramObserver(CountingObserver):
    """Cuts the range where the expected squared error of clipping and rounding is least.

    torch's HistogramObserver narrows the range quantile by quantile and stops when its estimate of the error first
    rises. This one computes the exact expectation on the final grid, with values spread evenly over each bin, and its
    search (`clip_search`) does not stop at the first rise.

    Args:
        bins: 16 … 8192.
        dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps: see ObserverBase.
    """

    #: How often the search divides its step, at first 10 % of the range, by 4.
    refinements = 1

    def cut(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        counts, edges = self.histogram, self.edges()

        def error(low: Tensor, high: Tensor) -> Tensor:
            scale, zero = self.range_qparams(low, high, dtype)
            return clip_search.expected_error(counts, edges, scale, zero, self.qmin, self.qmax)[None]

        plan = clip_search.rounds(0.9, 2 / self.bins, self.refinements, self.symmetric)
        low, high = self.widest()
        low, high = clip_search.least_error(error, low[None], high[None], plan)
        return low[0], high[0]
