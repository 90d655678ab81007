"""Collects the inputs of a group's readers in calibration: each channel's extremes, and a sample of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tritonq.optimize.equalize.groups import Group
from tritonq.select.calibrate import calibrate
from tritonq.select.patterns import named_modules

_ROWS_PER_CALL = 64


class GroupInputs:
    """The inputs of one group's readers, in float32 on their device.

    Attributes:
        low, high: [K], smallest and largest value of each channel over all data.
        rows: a sample, [rows, K]: up to 64 rows of each call, evenly spaced. It includes the first row, which has the
            largest values in a language model. Empty unless `keep_rows`.
    """

    def __init__(self, keep_rows: bool) -> None:
        self._keep_rows = keep_rows
        self._extremes: tuple[Tensor, Tensor] | None = None
        self._rows: list[Tensor] = []
        self._latest: Tensor | None = None

    def observe(self, name: str, x: Tensor) -> None:
        """Add a reader's input [..., K].

        Raises:
            ValueError: it holds NaN or Inf.
        """
        if x is self._latest or x.numel() == 0:  # the readers of a norm are called with one tensor
            return
        self._latest = x
        values = x.detach().reshape(-1, x.shape[-1]).float()
        low, high = values.amin(dim=0), values.amax(dim=0)  # many times faster than aminmax on a CPU
        if not (torch.isfinite(low) & torch.isfinite(high)).all():
            raise ValueError(f"{name}: its input on the calibration data must be finite, found NaN or Inf")
        if self._extremes is not None:
            low, high = torch.minimum(low, self._extremes[0]), torch.maximum(high, self._extremes[1])
        self._extremes = low, high
        if self._keep_rows:
            count = min(len(values), _ROWS_PER_CALL)
            self._rows.append(values[torch.linspace(0, len(values) - 1, count).long()].clone())

    def finish(self, group: Group) -> None:
        """Release the last batch.

        Raises:
            ValueError: no data reached the readers.
        """
        self._latest = None
        if self._extremes is None:
            raise ValueError(f"{group}: the calibration data never reaches {group.readers[0]}")

    @property
    def low(self) -> Tensor:
        assert self._extremes is not None
        return self._extremes[0]

    @property
    def high(self) -> Tensor:
        assert self._extremes is not None
        return self._extremes[1]

    @property
    def largest(self) -> Tensor:
        """[K], max |x| of each channel."""
        return torch.maximum(-self.low, self.high)

    @property
    def rows(self) -> Tensor:
        return torch.cat(self._rows) if self._rows else self.low.new_empty(0, len(self.low))


def group_inputs(
    model: nn.Module, groups: Sequence[Group], calibration: Iterable[Any], keep_rows: bool
) -> dict[Group, GroupInputs]:
    """Run the calibration data through a model and collect the inputs of every group's readers.

    Raises:
        TypeError, ValueError: as `calibrate`; an input is not finite; the data does not reach a reader.
    """
    modules = dict(named_modules(model))
    found = {group: GroupInputs(keep_rows) for group in groups}
    with contextlib.ExitStack() as stack:
        for group, inputs in found.items():
            for reader in group.readers:

                def note(
                    module: nn.Module,
                    args: tuple[Any, ...],
                    kwargs: dict[str, Any],
                    inputs: GroupInputs = inputs,
                    name: str = reader,
                ) -> None:
                    inputs.observe(name, args[0] if args else kwargs["input"])

                handle = modules[reader].register_forward_pre_hook(note, with_kwargs=True)
                stack.callback(handle.remove)
        calibrate(model, calibration)
    for group, inputs in found.items():
        inputs.finish(group)
    return found
