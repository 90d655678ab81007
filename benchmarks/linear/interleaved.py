"""Measuring on a CPU: all contenders of a cell in turn, round after round, so that a busy neighbour slows all of them.

On one thread the clock is the thread's own processor time, which a neighbour on the same core does not add to; on
several it is the wall clock. Between two calls of a contender all others read their weights: large ones come from
memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from benchmarks.linear.ceilings import Ceilings
from benchmarks.linear.contender import Built, Contender
from benchmarks.linear.rows import WRONG, Row, timed
from benchmarks.linear.run import checked, empty_row, failed, random_linear
from benchmarks.linear.shapes import Shape
from tritonq.util.timing import Call, Timing

_ROUNDS = 9
#: Short calls are repeated until a round takes this many seconds.
_LEAST_SECONDS = 0.002


@torch.no_grad()
def measure_interleaved(
    shape: Shape,
    batch_sizes: Sequence[int],
    contenders: Sequence[Contender],
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
) -> Iterator[list[Row]]:
    """The rows of all contenders, one M after the other; arguments as of `run.measure_shape`."""
    linear = random_linear(shape, device, dtype)
    built: list[tuple[Contender, Built | Exception]] = []
    for contender in contenders:
        try:
            built.append((contender, contender.build(linear)))
        except Exception as failure:  # a peer may raise anything; it must not end the run
            built.append((contender, failure))
    for m in batch_sizes:
        yield _cell(shape, m, built, linear, ceilings)


def _cell(
    shape: Shape,
    m: int,
    built: list[tuple[Contender, Built | Exception]],
    linear: nn.Linear,
    ceilings: Ceilings,
) -> list[Row]:
    rows, calls = [], {}
    for index, (contender, layer) in enumerate(built):
        row = empty_row(contender, shape, m)
        try:
            if isinstance(layer, Exception):
                raise layer
            row, found = checked(row, [layer], linear, contender.tolerance)
            if row.status != WRONG:
                calls[index] = found[0]
        except Exception as failure:
            row = failed(row, failure)
        rows.append(row)
    for index, timing in _timings(calls).items():
        rows[index] = timed(rows[index], timing, None, linear.weight.itemsize, ceilings)
    return rows


def _timings(calls: dict[int, Call]) -> dict[int, Timing]:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats = {
        index: max(1, round(_LEAST_SECONDS / _seconds(clock, call, 3))) for index, call in calls.items()
    }
    seconds: dict[int, list[float]] = {index: [] for index in calls}
    for _ in range(_ROUNDS):
        for index, call in calls.items():
            seconds[index].append(_seconds(clock, call, repeats[index]))
    return {index: _timing(found) for index, found in seconds.items()}


def _seconds(clock: Callable[[], float], call: Call, repeats: int) -> float:
    """Of one call, on average."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def _timing(seconds: list[float]) -> Timing:
    low, median, high = (1e6 * value for value in statistics.quantiles(seconds, n=4, method="inclusive"))
    return Timing(median, low, high)
