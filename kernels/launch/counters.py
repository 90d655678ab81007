"""Zeroed counters for the programs of a launch, without an extra launch to zero them.

Each GPU has one buffer, zeroed once. Each stream has a part of it: its launches follow each other, and each leaves
zeros. Each launch captured in a CUDA graph gets a part that no other launch ever gets, because graphs can replay on any
stream at the same time.
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
    # The very first launch is captured, or the buffer is full: the graph, or the launch, gets separate zeros.
    return torch.zeros(count, dtype=torch.int32, device=device)


class _Counters:
    """The buffer of one GPU, and the owners of its parts."""

    def __init__(self, device: torch.device) -> None:
        self.memory = _zeros_outside_pools(device)
        self._taken = 0
        self._of_stream: dict[int, Tensor] = {}

    def take(self, count: int) -> Tensor | None:
        """An unused part; None if too little is left."""
        if self._taken + count > self.memory.numel():
            return None
        part = self.memory[self._taken : self._taken + count]
        self._taken += count
        return part

    def of_stream(self, stream: int, count: int) -> Tensor | None:
        """The part of a stream; a new, larger one if it is too small."""
        part = self._of_stream.get(stream)
        if part is None or part.numel() < count:
            part = self.take(max(count, _PER_STREAM))
            if part is not None:
                self._of_stream[stream] = part
        return part


def _zeros_outside_pools(device: torch.device) -> Tensor:
    """Zeros that are never freed, allocated in a separate thread.

    While torch.compile warms up a CUDA graph, memory allocated in this thread belongs to the graph's pool, which must
    get all of it back.
    """

    def allocate() -> Tensor:
        with torch.cuda.device(device):
            memory = torch.zeros(_PER_GPU, dtype=torch.int32, device=device)
            torch.cuda.current_stream(device).synchronize()
        return memory

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(allocate).result()
