"""A check and its outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from tritonq.util.compare import disagreement, largest_difference

#: The same launch again: a race would show.
REPEATS = 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        difference: the largest from the reference.
        wrong: what is wrong, None where nothing is.
        ran: False where the run ended before.
    """

    difference: float | None
    wrong: str | None
    ran: bool = True


class Check(Protocol):
    """Something to check, in this process or another."""

    @property
    def name(self) -> str:
        """What is checked."""

    @property
    def path(self) -> str:
        """Which kernel of its family, or what else computes."""

    def run(self, device: str, repeats: int) -> Outcome:
        """Compute `repeats` times on a device, and compare."""


def run_check(check: Check, device: str, repeats: int = REPEATS) -> Outcome:
    """The outcome of a check; what it raises is one, too."""
    try:
        return check.run(device, repeats)
    except Exception as error:  # whatever a kernel, the compiler or the driver says
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Outcome(None, f"{type(error).__name__}: {first_line[:200]}")


def compared(
    compute: Callable[[], tuple[Tensor, ...]], expected: tuple[Tensor, ...], exact: bool, repeats: int
) -> Outcome:
    """Results of a computation against what is right, and against themselves."""
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
    """Every bit the same, NaNs alike."""
    return torch.equal(a, b) or largest_difference(a, b) == 0
