"""Observers that cut the range where the mean squared quantization error is least.

For activations the error is an expectation over a histogram. For weights it is the real error of the kept values, per
channel or group, with the scale rounded to the model's dtype. INT4 weights gain most: 16 levels are too few to spend
them on the one largest value of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.observers import clip_search
from tritonq.observers.histogram import HistogramObserver
from tritonq.observers.kept_values import KeptValuesObserver


class MSEObserver(HistogramObserver):
    """HistogramObserver with a finer search, down to steps of 0.2 % of the range. Arguments: see there."""

    refinements = 3


class PerChannelMSEObserver(KeptValuesObserver):
    """The range of each channel with the least squared quantization error over all observed values.

    Args:
        ch_axis, dtype, qscheme, …: see PerChannelMinMaxObserver.
    """

    def cut(self, values: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        def error(lows: Tensor, highs: Tensor) -> Tensor:
            return clip_search.squared_error(
                values, lows, highs, lambda a, b: self.range_qparams(a, b, dtype), self.qmin, self.qmax
            )

        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        return clip_search.least_error(error, low, high, clip_search.rounds(0.93, 0.3, 1, self.symmetric))
