"""Tensors as a plan knows them: what they look like and where they come from, not where they lie nor what is in them.

A launcher asks an operand what it would ask a `torch.Tensor`: shape, strides, dtype. Where its memory comes from:

    an integer    the tensor in this place of those that a run is given
    Memory        taken anew for each run, and returned or given back
    Counters      zeroed counters, asked for at each run: a CUDA graph under capture must get its own
    Computed      what torch makes of another operand: a dense copy, a sum
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .counters import zeroed_counters


class Operand:
    """Stands for a tensor in a plan.

    Attributes:
        source: where its memory comes from. Operands of one source share it.
        dtype, shape, device: as of a tensor.
    """

    __slots__ = ("_address", "_strides", "device", "dtype", "shape", "source")

    def __init__(
        self,
        source: int | Memory | Counters | Computed,
        dtype: torch.dtype,
        shape: Sequence[int],
        device: torch.device,
        strides: Sequence[int] | None = None,
        address: int = 0,
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.shape = torch.Size(shape)
        self.device = device
        self._strides = _dense_strides(self.shape) if strides is None else tuple(strides)
        self._address = address

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_meta(self) -> bool:
        return self.device.type == "meta"

    def get_device(self) -> int:
        return -1 if self.device.index is None else self.device.index

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    def element_size(self) -> int:
        return self.dtype.itemsize

    def stride(self, dim: int) -> int:
        return self._strides[dim]

    def data_ptr(self) -> int:
        """The address modulo 16, which is all of it that a plan may depend on."""
        return self._address

    def is_contiguous(self) -> bool:
        dense = zip(self.shape, self._strides, _dense_strides(self.shape), strict=True)
        return self.numel() == 0 or all(size == 1 or stride == wanted for size, stride, wanted in dense)

    def contiguous(self) -> Operand:
        """Itself, or a copy that is dense."""
        return self if self.is_contiguous() else self.computed(Tensor.contiguous)

    def new_empty(self, *shape: int, dtype: torch.dtype) -> Operand:
        """Memory on its device, dense, for a kernel to fill."""
        return Operand(Memory(), dtype, shape, self.device)

    def computed(
        self,
        function: Callable[[Tensor], Tensor],
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Operand:
        """function(tensor), computed by torch: dense, of this shape and dtype, by default its own.

        A plan with such an operand is not replayed: torch launches kernels of which it knows nothing.
        """
        shape = self.shape if shape is None else shape
        return Operand(Computed(function, self), self.dtype if dtype is None else dtype, shape, self.device)

    def with_row_stride(self, stride: int) -> Operand:
        """The same memory [R, C] as rows that lie so far apart."""
        return Operand(
            self.source, self.dtype, self.shape, self.device, (stride, self._strides[1]), self._address
        )


class Memory:
    """Dense memory of each run."""

    def make(self, operand: Operand, tensor_of: Callable[[Operand], Tensor]) -> Tensor:
        """The operand's tensor in a run, in which `tensor_of` knows those of other operands."""
        return torch.empty(*operand.shape, dtype=operand.dtype, device=operand.device)


class Counters:
    """int32 zeros that the launch leaves zero."""

    def make(self, operand: Operand, tensor_of: Callable[[Operand], Tensor]) -> Tensor:
        """As `Memory.make`."""
        return zeroed_counters(operand.device, operand.numel())


@dataclasses.dataclass(frozen=True, eq=False)
class Computed:
    """function(of), by torch."""

    function: Callable[[Tensor], Tensor]
    of: Operand

    def make(self, operand: Operand, tensor_of: Callable[[Operand], Tensor]) -> Tensor:
        """As `Memory.make`."""
        return self.function(tensor_of(self.of))


def operands_of(arguments: Sequence[Any]) -> list[Any]:
    """Operands in the places of tensors, numbered in their order; everything else as it is."""
    operands: list[Any] = []
    given = 0
    for argument in arguments:
        if isinstance(argument, Tensor):
            address = 0 if argument.is_meta else argument.data_ptr() % 16
            look = (argument.dtype, argument.shape, argument.device, argument.stride(), address)
            argument = Operand(given, *look)
            given += 1
        operands.append(argument)
    return operands


def _dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides[: len(shape)]))
