"""Timing one call honestly.

On a GPU: the calls are captured into a CUDA graph, so that no launch overhead of the host is in them, and go round
enough copies of the weights that none is found in the L2 cache. Each replay is timed with device events; the median
counts. On a CPU: wall time, median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

_REPEATS = 15
_SLEEP_CYCLES = 1_000_000
_WARM_UP_CALLS = 20
#: Few enough that the queue of launches (about a thousand) never fills, or the GPU's time would be measured.
_EAGER_CALLS, _EAGER_ROUNDS = 200, 5
_CPU_BUDGET_SECONDS = 1.0


def microseconds(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Median time of one call in µs; `calls` do the same work on different weights, and are taken in turn."""
    return _graph_microseconds(calls) if device.type == "cuda" else _wall_microseconds(calls)


def eager_microseconds(call: Callable[[], object], device: torch.device) -> float | None:
    """CPU time per call in µs when calls are issued one after the other without waiting; None off a GPU."""
    if device.type != "cuda":
        return None
    for _ in range(_WARM_UP_CALLS):
        call()
    times = []
    for _ in range(_EAGER_ROUNDS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(_EAGER_CALLS):
            call()
        times.append((time.perf_counter() - start) / _EAGER_CALLS)
    torch.cuda.synchronize(device)
    return 1e6 * statistics.median(times)


def _graph_microseconds(calls: Sequence[Callable[[], object]]) -> float:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    rounds = max(1, 20 // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    times = []
    for _ in range(_REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(_SLEEP_CYCLES)  # the host is done launching before the clock starts
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / (rounds * len(calls)))
    return statistics.median(times)


def _wall_microseconds(calls: Sequence[Callable[[], object]]) -> float:
    calls[0]()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < _CPU_BUDGET_SECONDS and len(times) < _REPEATS):
        start = time.perf_counter()
        calls[len(times) % len(calls)]()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)
