"""Observers that average the extremes of batches: value ← value + averaging_constant · (batch's - value).

The first batch sets the value. As in torch, the average depends on how the data is cut into batches and on their order.
Merging, with another observer or over processes, takes the mean of the observers that saw data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq.observers.base import number_between
from tritonq.observers.minmax import MinMaxObserver, PerChannelMinMaxObserver
from tritonq.observers.processes import Processes


class _MovingAverage(MinMaxObserver):
    """The averaging of both classes below."""

    def __init__(self, averaging_constant: float = 0.01, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.averaging_constant = number_between(self, "averaging_constant", averaging_constant, 0, 1)

    def fold(self, low: Tensor, high: Tensor) -> None:
        self._approach(low, high, self.averaging_constant)

    def take_over(self, other: Any) -> None:
        if other.has_data():
            device = self.min_val.device
            self._approach(other.min_val.to(device).clone(), other.max_val.to(device).clone(), 0.5)

    def share(self, processes: Processes) -> None:
        channels = processes.agreed_channels(self.min_val.numel())
        device = self.min_val.device
        seen = int(self.has_data())
        count = processes.total(torch.tensor(float(seen), device=device))
        if not channels or not bool(count > 0):
            return
        nothing = torch.zeros(channels, device=device)
        low = processes.total(self.min_val.reshape(-1) if seen else nothing)
        high = processes.total(self.max_val.reshape(-1) if seen else nothing)
        shape = (channels,) if self.per_channel else ()
        self.min_val, self.max_val = (low / count).reshape(shape), (high / count).reshape(shape)

    def _approach(self, low: Tensor, high: Tensor, weight: float) -> None:
        if self.min_val.shape != low.shape:  # per channel, before the first batch
            self.min_val, self.max_val = low, high
            return
        # Decided on the device: an `if` on the first batch would wait for it.
        first = (self.min_val == float("inf")) & (self.max_val == float("-inf"))
        for value, newest in ((self.min_val, low), (self.max_val, high)):
            value.copy_(torch.where(first, newest, value + weight * (newest - value)))

    def extra_repr(self) -> str:
        return f"averaging_constant={self.averaging_constant}, {super().extra_repr()}"


class MovingAverageMinMaxObserver(_MovingAverage):
    """Each batch's extremes, averaged.

    Args:
        averaging_constant: the weight of the newest batch, in (0, 1].
        others: see ObserverBase.
    """


class MovingAveragePerChannelMinMaxObserver(_MovingAverage, PerChannelMinMaxObserver):
    """Each channel's extremes, averaged over batches.

    Args:
        averaging_constant: the weight of the newest batch, in (0, 1].
        others: see PerChannelMinMaxObserver.
    """
