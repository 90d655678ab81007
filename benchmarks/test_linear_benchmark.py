"""The cells of benchmarks.linear for suites that use pytest-benchmark.

    python3 -m pytest benchmarks/test_linear_benchmark.py --benchmark-json results.json

`python3 -m pytest` alone does not collect this file. Without pytest-benchmark it is skipped. It measures Llama-3-8B's
o_proj at M = 1, 16 and 256 on a GPU, a small layer on a CPU. On a GPU a round is one replay of a CUDA graph over
rotating weights. `extra_info` has the error, and the time of one call measured as in `python3 -m benchmarks.linear`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.linear import schemes
from benchmarks.linear.contender import FLOAT, Contender
from benchmarks.linear.peers import PEERS
from benchmarks.linear.rows import MEASURED
from benchmarks.linear.run import build_copies, checked, empty_row, random_linear
from benchmarks.linear.shapes import named
from tritonq.util import timing

pytest.importorskip("pytest_benchmark")

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SHAPE = named("8b.o" if GPU else "256x256")
BATCH_SIZES = (1, 16, 256) if GPU else (1, 16)
CONTENDERS = [*(peer for peer in PEERS if peer.by == FLOAT), *schemes.contenders(list(schemes.TOLERANCES))]


@pytest.fixture(scope="module")
def linear() -> nn.Linear:
    return random_linear(SHAPE, DEVICE, torch.bfloat16 if GPU else torch.float32)


@pytest.mark.parametrize("m", BATCH_SIZES)
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda one: f"{one.scheme} {one.measures}")
@torch.no_grad()
def test_linear(benchmark: Any, linear: nn.Linear, contender: Contender, m: int) -> None:
    copies = build_copies(contender, linear)
    row, calls = checked(empty_row(contender, SHAPE, m), copies, linear, contender.tolerance)
    assert row.status == MEASURED, row.message
    time = timing.time_calls(calls, DEVICE)
    run, count = _round(calls)
    benchmark.extra_info.update(dataclasses.asdict(row), calls_in_a_round=count, microseconds=time.median)
    benchmark.pedantic(run, rounds=20, warmup_rounds=3)


def _round(calls: list[timing.Call]) -> tuple[Callable[[], object], int]:
    """(the timed function, the number of calls it makes)."""
    if not GPU:
        return calls[0], 1
    graph, count = timing.captured(calls)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay, count
