"""Measures contender by contender, M by M. A wrong result gets no time; a failure ends only its cell."""

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
    """A kernel made an illegal access. All later calls fail too, whoever makes them."""


@torch.no_grad()
def measure_shape(
    shape: Shape,
    batch_sizes: Sequence[int],
    contenders: Sequence[Contender],
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
) -> Iterator[list[Row]]:
    """Yield the rows of each contender, one for each M.

    Args:
        shape: of the weight.
        batch_sizes: the values of M.
        contenders: those that take part.
        device, dtype: of weight and inputs.
        ceilings: of the machine.

    Raises:
        DeviceLostError: a contender left the GPU in a state that only a new process can leave.
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
    """A layer without bias whose weight is normally distributed with variance 1 / K; the same in every call."""
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
        return [failed(row, failure) for row in rows]
    return [_cell(row, built, linear, contender.tolerance, ceilings) for row in rows]


def empty_row(contender: Contender, shape: Shape, m: int) -> Row:
    """The cell's name, without a time yet."""
    named = (contender.by, contender.scheme, contender.measures)
    return Row(shape.name, shape.N, shape.K, m, *named, MEASURED)


def build_copies(contender: Contender, linear: nn.Linear) -> list[Built]:
    """Enough copies to rotate through that no weight stays in the cache."""
    weight = linear.weight
    # At M = 0 only the weight is moved.
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
        return failed(row, failure)
    return timed(row, time, eager, linear.weight.itemsize, ceilings)


def checked(
    row: Row, built: Sequence[Built], linear: nn.Linear, tolerance: float
) -> tuple[Row, list[timing.Call]]:
    """(the row with its error, or WRONG if that is too large; the calls to time, each with a random input)."""
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
    """‖y - x · wᵀ‖ / ‖x · wᵀ‖, with the product in float32; NaN if y holds a NaN."""
    torch.set_float32_matmul_precision("highest")  # a peer may have lowered it
    expected = x.float() @ weight.float().t()
    if y.shape != expected.shape:
        raise ValueError(f"an output must have shape {list(expected.shape)}, found {list(y.shape)}")
    return ((y.float() - expected).norm() / expected.norm()).item()


def _settle(device: torch.device) -> None:
    """Wait for running work, and free its memory for the next contender."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def failed(row: Row, failure: Exception) -> Row:
    """The row of a contender that raised."""
    message = f"{type(failure).__name__}: {_first_line(failure)}"
    return dataclasses.replace(row, status=FAILED, message=message)


def _first_line(failure: Exception) -> str:
    return str(failure).strip().partition("\n")[0]
