"""Histograms that widen without loss: bins have a power-of-two width and are counted from zero.

    bin of x    j = trunc(x / width),  width = 2^exponent          … [-2w, -w] (-w … w) [w, 2w] …
    window      the `bins` consecutive j from trunc(min(low, 0) / width) on
    exponent    the least for which the window reaches max(high, 0)

Doubling the width moves bin j to trunc(j / 2) and splits no bin: trunc(trunc(v) / 2) = trunc(v / 2). So adding
neighbouring counts turns a narrow window into a wider one, exactly. The window depends only on the smallest and the
largest value. The same data therefore gives the same counts, whatever its batches, order and processes were.

The width is a power of two, so x / width is exact unless it underflows. An underflow truncates to bin 0, which is
right: bins are counted towards zero, and bin 0 is twice as wide.

Every window contains zero, as every quantization grid does. The data's range, zero included, is longer than bins/2 - 1
widths and at most bins + 1 widths. All of this runs on the device; the host does not wait.

low, high: float32 scalars; +inf and -inf if there is no data yet. That window starts at 0 with bins of width 2^-126.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: With fewer bins, the widest float32 range needs a width whose inverse is not a normal number. More bins do not fit a
#: kernel's registers.
FEWEST_BINS, MOST_BINS = 16, 8192
_LEAST_EXPONENT = -126
#: Elements binned at a time, so that their bin numbers stay in a core's cache.
_CHUNK = 65_536


class Window(NamedTuple):
    """The place of the bins, as scalars on the data's device."""

    exponent: Tensor  # int32; the width is 2^exponent
    origin: Tensor  # int32; number j of the first bin

    @property
    def width(self) -> Tensor:
        """float32."""
        return _power_of_two(self.exponent)

    @property
    def inverse_width(self) -> Tensor:
        """float32."""
        return _power_of_two(-self.exponent)

    def numbers(self, bins: int) -> Tensor:
        """int32 [bins]: j of every bin."""
        return self.origin + torch.arange(bins, dtype=torch.int32, device=self.origin.device)

    def edges(self, bins: int) -> Tensor:
        """float64 [bins + 1]: the beginning of each bin, then the end of the last."""
        j = self.numbers(bins + 1).double()
        return torch.where(j > 0, j, j - 1) * self.width.double()


def window(low: Tensor, high: Tensor, bins: int) -> Window:
    """The window of data between low and high; an arbitrary one if they are not finite."""
    low = torch.nan_to_num(low, 0.0, 0.0, 0.0).clamp(max=0.0)
    high = torch.nan_to_num(high, 0.0, 0.0, 0.0).clamp(min=0.0)
    # high - low is in [2^e, 2^(e+1)), halved so that it cannot overflow. A width below 2^(e - log2(bins)) is too
    # narrow; two doublings later the window reaches, even with a barely touched bin at either end.
    half = high / 2 - low / 2
    e = torch.where(half > 0, torch.frexp(half).exponent, _LEAST_EXPONENT)
    least = e - (bins.bit_length() - 1)
    inverse = _power_of_two(-(least + torch.arange(2, device=low.device)).clamp(min=_LEAST_EXPONENT))
    reached = (high * inverse).to(torch.int32) - (low * inverse).to(torch.int32)
    exponent = (least + (reached >= bins).sum(dtype=torch.int32)).clamp(min=_LEAST_EXPONENT)
    return Window(exponent, (low * _power_of_two(-exponent)).to(torch.int32))


def histogram(x: Tensor, counts: Tensor, inverse_width: Tensor, origin: Tensor) -> Tensor:
    """Add the histogram of `x` to counts.

    Args:
        x: float, any shape. Values outside of the window are counted in some bin.
        counts: int64 [bins].
        inverse_width: float32 [], a power of two.
        origin: int32 [].

    Returns:
        int64 [bins].
    """
    bins = counts.numel()
    total = counts.clone()
    for part in x.reshape(-1).split(_CHUNK):
        places = (part.float() * inverse_width).to(torch.int32).sub_(origin).clamp_(0, bins - 1)
        total += torch.bincount(places, minlength=bins)
    return total


def rebinned(counts: Tensor, old: Window, new: Window) -> Tensor:
    """int64 [bins]: the counts of window `old` moved to window `new`, which contains it."""
    bins = counts.numel()
    # Beyond 31 doublings every bin has become bin 0.
    doublings = (new.exponent - old.exponent).clamp(0, 31).long()
    numbers = old.numbers(bins).long().div(torch.ones_like(doublings) << doublings, rounding_mode="trunc")
    return torch.zeros_like(counts).index_add_(0, (numbers - new.origin).clamp(0, bins - 1), counts)


def magnitudes(counts: Tensor, place: Window) -> Tensor:
    """The histogram of |x|: int64 [bins], bin j from j · width to (j + 1) · width."""
    bins = counts.numel()
    numbers = place.numbers(bins).abs().clamp(max=bins - 1)
    return torch.zeros_like(counts).index_add_(0, numbers, counts)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float32 for exponents -126 … 127, built from its bits and so exact on every device."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)
