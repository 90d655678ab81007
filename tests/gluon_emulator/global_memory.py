"""Global memory: the tensors that a launch was given, addressed as on the device, and nothing else."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from .errors import DependentLaunchError, OutOfBoundsError, source_line


@dataclasses.dataclass
class Region:
    """The bytes from the first to the last element of an argument.

    Attributes:
        is_early: whether it may be read before `gdc_wait`.
    """

    name: str
    start: int
    bytes: Tensor
    is_early: bool

    @property
    def end(self) -> int:
        return self.start + self.bytes.numel()


class GlobalMemory:
    """Loads, stores and atomics by address.

    Args:
        early: names of arguments, or tensors, that may be read before `gdc_wait` (the weights).
    """

    def __init__(self, early: Collection[str | Tensor] = ()) -> None:
        self._names = {item for item in early if isinstance(item, str)}
        self._storages = {item.untyped_storage().data_ptr() for item in early if isinstance(item, Tensor)}
        self._regions: list[Region] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Let a launch reach a tensor."""
        span = (
            sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        )
        count = span * tensor.element_size() if tensor.numel() else 0
        as_bytes = torch.empty(0, dtype=torch.uint8).set_(
            tensor.untyped_storage(), tensor.storage_offset() * tensor.element_size(), (count,), (1,)
        )
        is_early = name in self._names or tensor.untyped_storage().data_ptr() in self._storages
        bisect.insort(
            self._regions, Region(name, tensor.data_ptr(), as_bytes, is_early), key=lambda r: r.start
        )

    def view(self, address: int, dtype: torch.dtype, shape: list[int], strides: list[int]) -> Tensor:
        """A strided tensor that starts at an address."""
        span = (
            sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        ) * dtype.itemsize
        region = self._region(address, address + span)
        return region.bytes[address - region.start :][:span].view(dtype).as_strided(shape, strides)

    def may_touch(self, address: int, is_write: bool, has_waited: bool) -> None:
        """Refuse what an earlier kernel may still write, or read, before `gdc_wait`."""
        if has_waited:
            return
        region = self._region(address, address + 1)
        if is_write or not region.is_early:
            verb = "written" if is_write else "read"
            raise DependentLaunchError(f"{region.name} is {verb} before gdc_wait at {source_line()}")

    def load(
        self, addresses: Tensor, mask: Tensor | None, other: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Elements at addresses; `other` (or zero) where the mask is not set."""
        result = (
            torch.zeros(addresses.shape, dtype=dtype)
            if other is None
            else other.expand(addresses.shape).clone()
        )
        chosen, elements, index = self._elements(addresses, mask, dtype)
        if index is not None:
            result[chosen] = elements[index]
        return result

    def store(self, addresses: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """Write elements where the mask is set."""
        chosen, elements, index = self._elements(addresses, mask, values.dtype)
        if index is not None:
            elements[index] = values.expand(addresses.shape)[chosen]

    def update(
        self,
        addresses: Tensor,
        values: Tensor,
        mask: Tensor | None,
        combine: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, bool]:
        """Replace elements by combine(element, value), one after the other: (what was there, whether it changed)."""
        result = torch.zeros(addresses.shape, dtype=values.dtype)
        chosen, elements, index = self._elements(addresses, mask, values.dtype)
        is_changed = False
        if index is not None:
            new = values.expand(addresses.shape)[chosen].reshape(-1)
            old = torch.empty_like(new)
            for position, element in enumerate(index.tolist()):
                old[position] = elements[element]
                elements[element] = combine(elements[element].clone(), new[position])
                is_changed |= bool(elements[element] != old[position])
            result[chosen] = old
        return result, is_changed

    def _elements(
        self, addresses: Tensor, mask: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(which are set, the elements of the one region that holds them, their indices there, flat)."""
        chosen = (
            torch.ones(addresses.shape, dtype=torch.bool) if mask is None else mask.expand(addresses.shape)
        )
        wanted = addresses[chosen].reshape(-1)
        if wanted.numel() == 0:
            return chosen, wanted, None
        region = self._region(int(wanted.min()), int(wanted.max()) + dtype.itemsize)
        offsets = wanted - region.start
        if bool((offsets % dtype.itemsize).any()):
            raise OutOfBoundsError(f"misaligned access of {region.name} at {source_line()}")
        whole = region.bytes.numel() // dtype.itemsize * dtype.itemsize
        return chosen, region.bytes[:whole].view(dtype), offsets // dtype.itemsize

    def _region(self, start: int, end: int) -> Region:
        position = bisect.bisect_right(self._regions, start, key=lambda r: r.start)
        for region in reversed(self._regions[:position]):
            if region.start <= start and end <= region.end:
                return region
        near = min(self._regions, key=lambda r: abs(r.start - start), default=None)
        where = (
            "no tensor is near"
            if near is None
            else (
                f"bytes {start - near.start} to {end - near.start} of {near.name}, which has {near.end - near.start}"
            )
        )
        raise OutOfBoundsError(f"global memory out of bounds at {source_line()}: {where}")
