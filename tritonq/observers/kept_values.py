"""The base of per-channel observers that keep every value. They are for weights, which are observed once.

A histogram per channel would be larger than the channel, or less exact. So the values are kept, float32
[channels, values]. Do not use such an observer for activations: it would keep every batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tritonq.observers.minmax import PerChannelMinMaxObserver
from tritonq.observers.processes import Processes

#: Values searched at a time, in whole rows, so that intermediate results stay in a core's cache.
_CHUNK = 65_536


class KeptValuesObserver(PerChannelMinMaxObserver):
    """Keeps all values; a subclass defines `cut`. Arguments: see PerChannelMinMaxObserver."""

    values: Tensor

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.register_buffer("values", torch.empty(0, 0))

    def cut(self, values: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The range to cover in each row; `dtype` stores the scale.

        Args:
            values: float32 [rows, n].
            low, high: float32 [rows], the extremes of each row.

        Returns:
            (low, high) float32 [rows].
        """
        raise NotImplementedError

    def reset_min_max_vals(self) -> None:
        """Forget everything observed."""
        super().reset_min_max_vals()
        if "values" in self._buffers:
            self.values = torch.empty(0, 0, device=self.values.device)

    def observe(self, x: Tensor) -> None:
        super().observe(x)
        self._keep(x.movedim(self.ch_axis, 0).reshape(x.shape[self.ch_axis], -1).float())

    def take_over(self, other: Any) -> None:
        super().take_over(other)
        if other.has_data():
            self._keep(other.values.to(self.min_val.device))

    def share(self, processes: Processes) -> None:
        super().share(processes)
        if self.has_data():
            self.values = torch.cat(processes.gathered(self.values.reshape(self.min_val.numel(), -1)), dim=1)

    def data_range(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        parts = [self.cut(*part, dtype) for part in self._parts()]
        low, high = (torch.cat(ends) for ends in zip(*parts, strict=True))
        finite = torch.isfinite(self.min_val) & torch.isfinite(self.max_val)
        return torch.where(finite, low, torch.nan), torch.where(finite, high, torch.nan)

    def _keep(self, rows: Tensor) -> None:
        known = self.values.to(rows.device).reshape(rows.shape[0], -1)
        self.values = torch.cat([known, rows], dim=1)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(values, smallest, largest) of some rows at a time."""
        rows, columns = self.values.shape
        step = max(1, _CHUNK // columns) if self.values.device.type == "cpu" else rows
        return zip(self.values.split(step), self.min_val.split(step), self.max_val.split(step), strict=True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        value = state_dict.get(prefix + "values")
        if isinstance(value, Tensor) and value.dim() == 2:
            self.values = torch.empty(value.shape, device=self.values.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
