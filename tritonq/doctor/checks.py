"""A check and its outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from tritonq.util.compare import disagreement, largest_difference

#: Repeats of the same launch, to reveal races.
REPEATS = 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    Attributes:
        difference: the largest difference from the reference.
        wrong: what is wrong; None if nothing is.
        ran: False if the run ended before this check.
    """

    difference: float | None
    wrong: str | None
    ran: bool = True


class Check(Protocol):
    """Something to check, in this process or another."""

    @property
    def name(self) -> str:
        """The name of what is checked."""

    @property
    def path(self) -> str:
        """The kernel of its family, or whatever else computes."""

    def run(self, device: str, repeats: int) -> Outcome:
        """Compute `repeats` times on a device, and compare."""


def run_check(check: Check, device: str, repeats: int = REPEATS) -> Outcome:
    """The outcome of a check; an exception makes it wrong."""
    try:
        return check.run(device, repeats)
    except Exception as error:  # a kernel, the compiler or the driver may raise anything
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Outcome(None, f"{type(error).__name__}: {first_line[:200]}")


def compared(
    compute: Callable[[], tuple[Tensor, ...]], expected: tuple[Tensor, ...], exact: bool, repeats: int
) -> Outcome:
    """Compare results with the expected ones, and repeated results with the first."""
    found = compute()
    difference, wrong = 0.0, None
    for one, right in zip(found, expected, strict=True):
        right = right.to(one.device)
        right = right.float() if one.is_floating_point() and not exact else right
        wrong = wrong or disagreement(one, right, exact)
        if one.shape == right.shape:
            difference = max(difference, largest_difference(one, right))
    for _ in range(repeats - 1):
        same = all(map(_equal, compute(), found))
        wrong = wrong or (None if same else "another result every time")
    return Outcome(difference, wrong)


def _equal(a: Tensor, b: Tensor) -> bool:
    """True if every bit is the same; NaNs count as equal."""
    return torch.equal(a, b) or largest_difference(a, b) == 0
