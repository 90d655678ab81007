"""Reductions over the processes of torch.distributed: extremes, totals, gathered values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Processes:
    """A process group. All of its processes must call each method.

    Args:
        group: a process group; None for all processes.
        title: the caller's name, for messages.

    Raises:
        ValueError: torch.distributed is not initialized.
    """

    def __init__(self, group: Any, title: str) -> None:
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"{title}: all_reduce needs torch.distributed initialized, found no process group"
            )
        self._dist, self._group, self.title = dist, group, title
        # NCCL reads only GPU memory, but the statistics of a process without data are on the CPU.
        self._on_gpu = dist.get_backend(group) == "nccl"

    def least(self, x: Tensor) -> Tensor:
        """Smallest of each element. NaN counts as -inf, because a minimum may lose it."""
        return self._reduced(torch.where(x.isnan(), -torch.inf, x), self._dist.ReduceOp.MIN)

    def largest(self, x: Tensor) -> Tensor:
        """Largest of each element; NaN counts as +inf."""
        return self._reduced(torch.where(x.isnan(), torch.inf, x), self._dist.ReduceOp.MAX)

    def total(self, x: Tensor) -> Tensor:
        """Sum of each element."""
        return self._reduced(x.clone(), self._dist.ReduceOp.SUM)

    def gathered(self, x: Tensor) -> list[Tensor]:
        """x [channels, n] of every process, in rank order; n may differ."""
        size = self._movable(torch.tensor([x.shape[1]]))
        sizes = [torch.empty_like(size) for _ in range(self._dist.get_world_size(self._group))]
        self._dist.all_gather(sizes, size, group=self._group)
        columns = [int(each) for each in sizes]
        padded = self._movable(torch.nn.functional.pad(x, (0, max(columns) - x.shape[1])).contiguous())
        parts = [torch.empty_like(padded) for _ in columns]
        self._dist.all_gather(parts, padded, group=self._group)
        return [part[:, :n].to(x.device) for part, n in zip(parts, columns, strict=True)]

    def agreed_channels(self, channels: int) -> int:
        """The number of channels of all processes that saw data; 0 if none did.

        Raises:
            ValueError: in every process, if two of them observe different numbers of channels.
        """
        most = int(self.largest(torch.tensor(float(channels))))
        fewest = int(self.least(torch.tensor(float(channels or most))))
        if fewest != most:
            raise ValueError(
                f"{self.title}: processes must observe equally many channels, found {fewest} and {most}"
            )
        return most

    def _reduced(self, x: Tensor, operation: Any) -> Tensor:
        moved = self._movable(x)
        self._dist.all_reduce(moved, operation, group=self._group)
        return moved.to(x.device)

    def _movable(self, x: Tensor) -> Tensor:
        return x.cuda() if self._on_gpu and not x.is_cuda else x
