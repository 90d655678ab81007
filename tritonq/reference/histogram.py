"""Histograms that grow exactly: bins of a power-of-two width, counted from zero.

    bin of x    j = trunc(x / width),  width = 2^exponent          … [-2w, -w] (-w … w) [w, 2w] …
    window      the `bins` consecutive j from trunc(min(low, 0) / width) on
    exponent    the least for which the window reaches max(high, 0)

Doubling the width sends bin j to trunc(j / 2), without splitting one: trunc(trunc(v) / 2) = trunc(v / 2). So
counts made with a narrow window are turned into those of a wider one by adding neighbours, with nothing
estimated, and because the window follows from the smallest and largest value alone, the histogram of some
data is the same integers in whatever batches, order and processes the data came. Width and its inverse are
powers of two and x / width is exact, but for products that underflow, which truncate to bin 0 as they should;
that is why bins are counted towards zero, and bin 0 is twice as wide.

Every window holds zero, as every quantization grid does. The data's range, zero included, is more than bins/2
- 1 widths long, and at most bins + 1. Everything is computed on the device, without waiting for it.

low, high: float32 scalars, +inf and -inf where there is no data yet; that window has bins of width 2^-126 and
starts at 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: So many bins span any two float32 with a width whose inverse is a normal number; so many fit a kernel's registers.
FEWEST_BINS, MOST_BINS = 16, 8192
_LEAST_EXPONENT = -126
#: Elements binned at a time: their bin numbers stay in a core's cache.
_CHUNK = 65_536


class Window(NamedTuple):
    """Where the bins are: scalars, on the data's device."""

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
        """float64 [bins + 1]: where bins begin, and the last one ends."""
        j = self.numbers(bins + 1).double()
        return torch.where(j > 0, j, j - 1) * self.width.double()


def window(low: Tensor, high: Tensor, bins: int) -> Window:
    """The window of data between low and high; of data that is not finite, some window."""
    low = torch.nan_to_num(low, 0.0, 0.0, 0.0).clamp(max=0.0)
    high = torch.nan_to_num(high, 0.0, 0.0, 0.0).clamp(min=0.0)
    # high - low is in [2^e, 2^(e+1)), halved so that it cannot overflow. Bins are too narrow below 2^(e - log2(bins));
    # two doublings later they reach, with the two at the ends that are only touched.
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
        x: float, any shape. What lies outside of the window is counted in one of the bins.
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
    """The counts [bins] of one window in another one that holds it: int64 [bins]."""
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
    """2^exponent, float32, for exponents from -126 to 127: their bits, exact on every device."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)
