"""Observers of the smallest and largest value of all data.

`min_val` and `max_val` are float32 buffers. Per tensor they are scalars, at first +inf and -inf; per channel they are
[channels], at first empty. They are updated in place, because data-parallel training holds references to buffers, and
without waiting for the device. Minimum and maximum keep NaN and Inf, so `calculate_qparams` can report bad data later.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq import ops
from tritonq.observers.base import ObserverBase, answers_at_once
from tritonq.observers.processes import Processes


class MinMaxObserver(ObserverBase):
    """The smallest and largest value of all data, one range for the tensor. Arguments: see ObserverBase."""

    min_val: Tensor
    max_val: Tensor

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.register_buffer("min_val", torch.empty(0))
        self.register_buffer("max_val", torch.empty(0))
        self.reset_min_max_vals()

    def reset_min_max_vals(self) -> None:
        """Forget everything observed."""
        self.min_val = torch.full((), float("inf"), device=self.min_val.device)
        self.max_val = torch.full((), float("-inf"), device=self.max_val.device)

    def has_data(self) -> bool:
        return not bool((self.min_val == float("inf")) & (self.max_val == float("-inf")))

    def data_range(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        return self.min_val, self.max_val

    def observe(self, x: Tensor) -> None:
        self.fold(*self.checked_extremes(x))

    def checked_extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The extremes of one batch, checked to be finite on a CPU; moves the statistics to their device."""
        low, high = self.extremes(x)
        if answers_at_once(low):
            self.check_finite(low, high)
        # The data decides the device, because a stub has no parameter that could.
        self.min_val, self.max_val = self.min_val.to(low.device), self.max_val.to(low.device)
        return low, high

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 smallest and largest value of one batch."""
        low, high = ops.extremes(x, 1)
        return low[0], high[0]

    def fold(self, low: Tensor, high: Tensor) -> None:
        """Fold one batch's extremes into min_val and max_val."""
        self.min_val.copy_(torch.minimum(self.min_val, low))
        self.max_val.copy_(torch.maximum(self.max_val, high))

    def take_over(self, other: Any) -> None:
        self.fold(other.min_val.to(self.min_val.device), other.max_val.to(self.max_val.device))

    def share(self, processes: Processes) -> None:
        self.min_val.copy_(processes.least(self.min_val))
        self.max_val.copy_(processes.largest(self.max_val))


class PerChannelMinMaxObserver(MinMaxObserver):
    """The smallest and largest value of each channel.

    Args:
        ch_axis: the dimension that holds the channels.
        others: see ObserverBase; qscheme must be per_channel_affine (the default) or per_channel_symmetric.

    Raises:
        ValueError: a batch has no dimension ch_axis, or another number of channels than the ones before.
    """

    per_channel = True

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        **words: Any,
    ) -> None:
        super().__init__(dtype, qscheme, **words)
        if type(ch_axis) is not int:
            raise TypeError(f"{type(self).__name__}: ch_axis must be an int, found {ch_axis!r}")
        self.ch_axis = ch_axis

    def reset_min_max_vals(self) -> None:
        """Forget everything observed."""
        self.min_val = torch.empty(0, device=self.min_val.device)
        self.max_val = torch.empty(0, device=self.max_val.device)

    def has_data(self) -> bool:
        return self.min_val.numel() > 0

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not -x.dim() <= self.ch_axis < x.dim():
            raise ValueError(
                f"{self.title} needs a dimension ch_axis={self.ch_axis}, found shape {tuple(x.shape)}"
            )
        channels = x.shape[self.ch_axis]
        self._check_channels(channels)
        return ops.extremes(x.movedim(self.ch_axis, 0), channels)

    def fold(self, low: Tensor, high: Tensor) -> None:
        if self.has_data():
            super().fold(low, high)
        else:
            self.min_val, self.max_val = low, high

    def take_over(self, other: Any) -> None:
        if other.has_data():
            self._check_channels(other.min_val.numel())
            low, high = other.min_val.to(self.min_val.device), other.max_val.to(self.max_val.device)
            self.fold(low.clone(), high.clone())

    def share(self, processes: Processes) -> None:
        channels = processes.agreed_channels(self.min_val.numel())
        if channels and not self.has_data():
            self.min_val = torch.full((channels,), torch.inf, device=self.min_val.device)
            self.max_val = torch.full((channels,), -torch.inf, device=self.max_val.device)
        if channels:
            super().share(processes)

    def _check_channels(self, channels: int) -> None:
        if self.has_data() and channels != self.min_val.numel():
            raise ValueError(f"{self.title} observes {self.min_val.numel()} channels, found {channels}")

    def extra_repr(self) -> str:
        return f"ch_axis={self.ch_axis}, {super().extra_repr()}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Only data tells the number of channels: take the shape of the loaded tensor.
        for name in ("min_val", "max_val"):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dim() == 1:
                setattr(self, name, torch.empty(value.shape, device=self.min_val.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
