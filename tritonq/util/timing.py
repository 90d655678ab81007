"""Measures the time of one call.

On a GPU, the calls are captured into a CUDA graph, so the host's launch overhead is not counted. They rotate through
enough copies of the weights that none is still in the L2 cache. The graph is first replayed until the chip's clocks
have risen from idle. Device events then time each replay, behind a kernel that sleeps until the host has finished
launching. The result is the median of the replays, with the quartiles. On a CPU, wall time is measured.

The host's time for a call is measured separately: calls are issued without waiting, and few enough that the launch
queue never fills. A full queue would make the host wait for the GPU.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]

#: The copies of the weights take at least this many bytes and this many times the L2 cache.
ROTATION_BYTES, ROTATION_OF_CACHE = 512 * 2**20, 4
#: More copies change no result, and long graphs take long to launch.
MOST_COPIES = 64
_REPEATS = 21
#: A graph holds at least this many calls, which share the time that the graph takes to start.
_CALLS_IN_GRAPH = 20
#: About a millisecond; the host needs less to launch a graph.
_SLEEP_CYCLES = 2_000_000
#: Calls before the measurement: the first one compiles and may try configurations.
_FIRST_CALLS = 3
_WARM_UP_SECONDS = 0.05
_EAGER_CALLS, _EAGER_ROUNDS, _EAGER_SECONDS = 100, 10, 0.5
_CPU_BUDGET_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Timing:
    """One call's time in µs: the median of all repeats, and the quartiles."""

    median: float
    low: float
    high: float


def copies_to_rotate(weight_bytes: int, device: torch.device) -> int:
    """How many copies of a weight to rotate through so that none stays in the cache; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    wanted = max(ROTATION_BYTES, ROTATION_OF_CACHE * cache)
    return max(2, min(MOST_COPIES, math.ceil(wanted / weight_bytes)))


def time_calls(calls: Sequence[Call], device: torch.device) -> Timing:
    """Time of one call. `calls` do the same work on different weights and run in turn."""
    times = _graph_times(calls) if device.type == "cuda" else _wall_times(calls)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(1e6 * median, 1e6 * low, 1e6 * high)


def microseconds(calls: Sequence[Call], device: torch.device) -> float:
    """The median alone."""
    return time_calls(calls, device).median


def eager_microseconds(call: Call, device: torch.device) -> float | None:
    """The host's µs per call when calls are issued one after the other without waiting; None unless on a GPU."""
    if device.type != "cuda":
        return None
    for _ in range(_EAGER_CALLS):
        call()
    times: list[float] = []
    while len(times) < 3 or (len(times) < _EAGER_ROUNDS and sum(times) * _EAGER_CALLS < _EAGER_SECONDS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(_EAGER_CALLS):
            call()
        times.append((time.perf_counter() - start) / _EAGER_CALLS)
    torch.cuda.synchronize(device)
    return 1e6 * statistics.median(times)


def captured(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A CUDA graph of the calls in turn, and how many calls it holds."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_FIRST_CALLS):
            calls[0]()
        for call in calls[1:]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    rounds = max(1, _CALLS_IN_GRAPH // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph, rounds * len(calls)


def _graph_times(calls: Sequence[Call]) -> list[float]:
    graph, count = captured(calls)
    start_of_warm_up = time.perf_counter()
    while time.perf_counter() - start_of_warm_up < _WARM_UP_SECONDS:
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(_REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(_SLEEP_CYCLES)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end) / count)
    return times


def _wall_times(calls: Sequence[Call]) -> list[float]:
    calls[0]()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < _CPU_BUDGET_SECONDS and len(times) < _REPEATS):
        start = time.perf_counter()
        calls[len(times) % len(calls)]()
        times.append(time.perf_counter() - start)
    return times
