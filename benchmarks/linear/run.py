"""Measuring: contender by contender, M by M. A wrong result gets no time, a failure ends its cell alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.linear.ceilings import Ceilings
from benchmarks.linear.contender import Built, Contender
from benchmarks.linear.rows import FAILED, MEASURED, WRONG, Row, moved_bytes, timed
from benchmarks.linear.shapes import Shape
from tritonq.util import timing

_SEED = 0


class DeviceLostError(RuntimeError):
    """After an illegal access in a kernel all calls fail, and say nothing of those who make them."""


@torch.no_grad()
def measure_shape(
    shape: Shape,
    batch_sizes: Sequence[int],
    contenders: Sequence[Contender],
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
) -> Iterator[list[Row]]:
    """The rows of one contender after the other, one for each M.

    Args:
        shape: of the weight.
        batch_sizes: the M.
        contenders: who takes part.
        device, dtype: of weight and inputs.
        ceilings: of the machine.

    Raises:
        DeviceLostError: a contender has left the GPU in a state that only a new process gets out of.
    """
    linear = random_linear(shape, device, dtype)
    for contender in contenders:
        rows = _measure(contender, linear, shape, batch_sizes, ceilings)
        yield rows
        try:
            _settle(device)
        except RuntimeError as failure:
            raise DeviceLostError(
                f"the GPU does not answer after {contender.by}: {_first_line(failure)}"
            ) from None


def random_linear(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """A layer without bias whose weight is normally distributed with variance 1 / K, the same one every time."""
    torch.manual_seed(_SEED)
    linear = nn.Linear(shape.K, shape.N, bias=False, device=device, dtype=dtype)
    nn.init.normal_(linear.weight, std=shape.K**-0.5)
    return linear


def _measure(
    contender: Contender,
    linear: nn.Linear,
    shape: Shape,
    batch_sizes: Sequence[int],
    ceilings: Ceilings,
) -> list[Row]:
    rows = [empty_row(contender, shape, m) for m in batch_sizes]
    try:
        built = build_copies(contender, linear)
    except Exception as failure:  # a peer may raise anything; it must not end the run
        return [_failed(row, failure) for row in rows]
    return [_cell(row, built, linear, contender.tolerance, ceilings) for row in rows]


def empty_row(contender: Contender, shape: Shape, m: int) -> Row:
    """The cell's name, without a time yet."""
    named = (contender.by, contender.scheme, contender.measures)
    return Row(shape.name, shape.N, shape.K, m, *named, MEASURED)


def build_copies(contender: Contender, linear: nn.Linear) -> list[Built]:
    """As many as have to be taken in turn for no weight to be found in the cache."""
    weight = linear.weight
    # What is moved at M = 0 is the weight.
    row = empty_row(contender, Shape("", *weight.shape), 0)
    copies = timing.copies_to_rotate(moved_bytes(row, weight.itemsize), weight.device)
    return [contender.build(linear) for _ in range(copies)]


def _cell(row: Row, built: Sequence[Built], linear: nn.Linear, tolerance: float, ceilings: Ceilings) -> Row:
    device = linear.weight.device
    try:
        row, calls = checked(row, built, linear, tolerance)
        if row.status == WRONG:
            return row
        time = timing.time_calls(calls, device)
        eager = timing.eager_microseconds(calls[0], device)
    except Exception as failure:
        return _failed(row, failure)
    return timed(row, time, eager, linear.weight.itemsize, ceilings)


def checked(
    row: Row, built: Sequence[Built], linear: nn.Linear, tolerance: float
) -> tuple[Row, list[timing.Call]]:
    """The row with its error, and WRONG where that is too large; and the calls to time, a random input in each."""
    weight, first = linear.weight, built[0]
    x = torch.randn(row.M, row.K, device=weight.device, dtype=weight.dtype)
    prepared = first.prepare(x)
    out = first.finish(first.call(prepared), prepared)
    error = relative_error(out, x, weight if first.weight is None else first.weight())
    row = dataclasses.replace(row, error=error if math.isfinite(error) else None)
    if not error <= tolerance:
        row = dataclasses.replace(
            row, status=WRONG, message=f"error {error:.1e}, allowed are {tolerance:.1e}"
        )
    return row, [functools.partial(layer.call, prepared) for layer in built]


def relative_error(y: Tensor, x: Tensor, weight: Tensor) -> float:
    """‖y - x · wᵀ‖ / ‖x · wᵀ‖, the product in float32; NaN where y holds one."""
    torch.set_float32_matmul_precision("highest")  # a peer may have lowered it
    expected = x.float() @ weight.float().t()
    if y.shape != expected.shape:
        raise ValueError(f"an output must have shape {list(expected.shape)}, found {list(y.shape)}")
    return ((y.float() - expected).norm() / expected.norm()).item()


def _settle(device: torch.device) -> None:
    """Wait for what is under way, and give its memory to the next contender."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _failed(row: Row, failure: Exception) -> Row:
    message = f"{type(failure).__name__}: {_first_line(failure)}"
    return dataclasses.replace(row, status=FAILED, message=message)


def _first_line(failure: Exception) -> str:
    return str(failure).strip().partition("\n")[0]
