"""Zeroed counters for launches that meet at them, without a launch to zero them.

One buffer per GPU, zeroed once. Every stream has a part of it, where launches follow each other and each leaves zeros
behind. Every launch that is captured into a CUDA graph gets a part that nobody else ever gets, because graphs replay on
any stream, side by side.
"""

from __future__ import annotations

import concurrent.futures
import threading

import torch
from torch import Tensor

from .target import current_stream

#: Counters per GPU (4 MiB), and at least so many per stream.
_PER_GPU = 1 << 20
_PER_STREAM = 1 << 12

_buffers: dict[int, _Counters] = {}
_lock = threading.Lock()


def zeroed_counters(device: torch.device, count: int) -> Tensor:
    """int32 [≥ count] zeros, for one launch on the current stream of `device` that leaves them zero."""
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    capturing = torch.cuda.is_current_stream_capturing()
    with _lock:
        counters = _buffers.get(device.index)
        if counters is None and not capturing:
            counters = _buffers[device.index] = _Counters(device)
        if counters is not None:
            stream = None if capturing else current_stream(device.index)
            part = counters.take(count) if stream is None else counters.of_stream(stream, count)
            if part is not None:
                return part
    # The first launch of all is captured, or the buffer is used up: zeros that the graph, or the launch, owns.
    return torch.zeros(count, dtype=torch.int32, device=device)


class _Counters:
    """The buffer of one GPU and who has which part of it."""

    def __init__(self, device: torch.device) -> None:
        self.memory = _zeros_outside_pools(device)
        self._taken = 0
        self._of_stream: dict[int, Tensor] = {}

    def take(self, count: int) -> Tensor | None:
        """A part that nobody has; None where too little is left."""
        if self._taken + count > self.memory.numel():
            return None
        part = self.memory[self._taken : self._taken + count]
        self._taken += count
        return part

    def of_stream(self, stream: int, count: int) -> Tensor | None:
        """The part of a stream, a larger one if it is too small."""
        part = self._of_stream.get(stream)
        if part is None or part.numel() < count:
            part = self.take(max(count, _PER_STREAM))
            if part is not None:
                self._of_stream[stream] = part
        return part


def _zeros_outside_pools(device: torch.device) -> Tensor:
    """Memory for good, allocated by a thread of its own.

    What a thread allocates while torch.compile warms up a CUDA graph belongs to the graph's memory pool, which wants
    all of it back.
    """

    def allocate() -> Tensor:
        with torch.cuda.device(device):
            memory = torch.zeros(_PER_GPU, dtype=torch.int32, device=device)
            torch.cuda.current_stream(device).synchronize()
        return memory

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(allocate).result()
