"""Compiles, checks and times one configuration of one workload. The processes of a search run this."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tritonq.kernels.config import choose
from tritonq.kernels.config.tile import TileConfig
from tritonq.kernels.launch.launch import compile_only, launching
from tritonq.kernels.launch.target import Target, pretended
from tritonq.tuning.search import Tools
from tritonq.tuning.worker import Worker, Workers
from tritonq.tuning.workload import Product, Workload, product
from tritonq.util.compare import disagreement
from tritonq.util.timing import copies_to_rotate, microseconds

_COMPILE_SECONDS, _MEASURE_SECONDS = 180.0, 120.0
_MOST_COMPILERS = 8


@contextlib.contextmanager
def gpu_tools(target: Target) -> Iterator[Tools]:
    """Tools for the current GPU: several processes that compile in parallel, and one that measures."""
    compilers = Workers(compile_config, _COMPILE_SECONDS, min(_MOST_COMPILERS, os.cpu_count() or 1))
    measurer = Worker(measure_config, _MEASURE_SECONDS)

    def compile_all(workload: Workload, configs: Sequence[TileConfig]) -> Iterator[str | None]:
        for answer in compilers.ask_all([(workload, config, target) for config in configs]):
            yield None if answer is None else str(answer)

    def measure(workload: Workload, config: TileConfig) -> float:
        return float(measurer.ask(workload, config))

    try:
        yield Tools(compile_all, measure)
    finally:
        compilers.close()
        measurer.close()


def compile_config(workload: Workload, config: TileConfig, target: Target) -> None:
    """Compile the kernels that a configuration launches, into Triton's cache. The operands have no memory."""
    with pretended(target), launching(compile_only):
        _without_memory(workload).run(config=config)


def measure_config(workload: Workload, config: TileConfig) -> float:
    """Time of one product on the current GPU in µs.

    Raises:
        ValueError: the result is wrong, or differs between runs.
    """
    operands, expected = _on_gpu(workload)
    check(operands, config, expected)
    calls = [functools.partial(operands.run, copy, config) for copy in range(len(operands.weights))]
    return microseconds(calls, torch.device("cuda"))


def check(operands: Product, config: TileConfig | None, expected: Tensor, repeats: int = 2) -> Tensor:
    """The result of a configuration.

    Raises:
        ValueError: the result is wrong, or differs between runs.
    """
    first = operands.run(config=config)
    wrong = disagreement(first, expected, operands.exact)
    if wrong is not None:
        raise ValueError(f"wrong result: {wrong}")
    for _ in range(repeats - 1):
        again = operands.run(config=config)
        if not torch.equal(again, first):
            raise ValueError("results differ between runs")
    return first


@functools.lru_cache(maxsize=1)
def _without_memory(workload: Workload) -> Product:
    return product(workload, "meta")


@functools.lru_cache(maxsize=1)
def _on_gpu(workload: Workload) -> tuple[Product, Tensor]:
    choose.forget()  # the tuned file has new entries, and this product may contain a product that has one
    device = torch.device("cuda")
    packed_bytes = workload.features * workload.columns * workload.config.weight.bits // 8
    operands = product(workload, device, copies_to_rotate(packed_bytes, device))
    return operands, operands.expected()
