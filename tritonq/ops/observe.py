"""Operators that observe: the extremes of rows, and counts in a histogram's bins."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.ops.backends import uses_kernels
from tritonq.ops.declare import no_gradient, operator
from tritonq.reference import histogram as reference


def _extremes_fake(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    low = torch.empty(rows, dtype=torch.float32, device=x.device)
    return low, torch.empty_like(low)


@operator("extremes(Tensor x, SymInt rows) -> (Tensor, Tensor)", _extremes_fake, no_gradient("extremes"))
def extremes(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """float, at least one element, read as [rows, …] → smallest and largest value of each row, float32 [rows].

    A row that holds NaN has NaN for both.
    """
    if uses_kernels(x):
        from tritonq.kernels.rows import observe as kernels

        return kernels.extremes(x, rows)
    values = x.reshape(rows, -1)
    # Two passes: on a CPU torch.aminmax of rows is many times slower than both together.
    return values.amin(dim=1).float(), values.amax(dim=1).float()


@operator(
    "histogram(Tensor x, Tensor counts, Tensor inverse_width, Tensor origin) -> Tensor",
    lambda x, counts, inverse_width, origin: torch.empty_like(counts),
    no_gradient("histogram"),
)
def histogram(x: Tensor, counts: Tensor, inverse_width: Tensor, origin: Tensor) -> Tensor:
    """float, any shape, and counts int64 [bins] → counts plus those of x; see `tritonq.reference.histogram`."""
    if uses_kernels(x):
        from tritonq.kernels.rows import observe as kernels

        return kernels.histogram(x, counts, inverse_width, origin)
    return reference.histogram(x, counts, inverse_width, origin)
