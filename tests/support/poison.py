"""Memory that shows what a kernel did not write, and what it wrote beside its output.

The modules of `tritonq.kernels` see `Poison` in place of `torch`. It is torch, but `empty` and `empty_like` return the
middle of a larger allocation that is filled with

    NaN            floats
    0x7fffffff     int32: the largest int, and NaN where a workspace is viewed as float32
    0x55           int8, uint8

so that an element left unwritten differs from what is expected, and a store beyond the edge hits a fence on either
side, which `check` finds changed. What `zeros` returned are split-K counters: `check` wants them back at zero. The
counters that a process keeps of a GPU, and its plans, are set aside, so that every test sees its own.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

FENCE_BYTES = 256
INT_POISON = {torch.int8: 0x55, torch.uint8: 0x55, torch.int16: 0x5555, torch.int32: 0x7FFFFFFF}


class Poison:
    """`torch` with poisoned, fenced `empty` and `empty_like`, and a record of what they returned."""

    def __init__(self) -> None:
        self._fences: list[tuple[Tensor, Tensor]] = []
        self.zeroed: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        fence = FENCE_BYTES // dtype.itemsize
        elements = torch.Size(shape).numel()
        memory = poison_of(elements + 2 * fence, dtype=dtype, device=device)
        if not _holds_nothing(memory):
            self._fences.append((memory[:fence], memory[fence + elements :]))
        return memory[fence : fence + elements].view(shape)

    def empty_like(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        assert x.is_contiguous()
        return self.empty(*x.shape, dtype=dtype or x.dtype, device=x.device)

    def zeros(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        memory = torch.zeros(*shape, dtype=dtype, device=device)
        if not _holds_nothing(memory):
            self.zeroed.append(memory)
        return memory

    def check(self) -> None:
        """Raise if a fence changed or a counter was left standing."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        for fences in self._fences:
            for fence in fences:
                untouched = poison_of(fence.numel(), dtype=fence.dtype, device=fence.device)
                assert torch.equal(fence.view(torch.int8), untouched.view(torch.int8)), (
                    "a kernel wrote outside its output"
                )
        for counters in self.zeroed:
            assert not counters.any(), "split-K counters are not back at zero"


def _holds_nothing(memory: Tensor) -> bool:
    """True for "meta", and for memory of a CUDA graph under capture: it holds nothing until the graph is replayed."""
    return memory.is_meta or (memory.is_cuda and torch.cuda.is_current_stream_capturing())


def poison_of(*shape: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A tensor full of poison."""
    return torch.full(shape, INT_POISON.get(dtype, torch.nan), dtype=dtype, device=device)


def poisoned_kernels(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Put a `Poison` in place of `torch` in all modules of `tritonq.kernels` that are imported."""
    poison = Poison()
    for name, module in list(sys.modules.items()):
        if name.startswith("tritonq.kernels.") and hasattr(module, "torch"):
            monkeypatch.setattr(module, "torch", poison)
    for name, kept in (("counters", "_buffers"), ("plans", "made")):
        keeper = sys.modules.get(f"tritonq.kernels.launch.{name}")
        if keeper is not None:
            monkeypatch.setattr(keeper, kept, {})
    return poison
