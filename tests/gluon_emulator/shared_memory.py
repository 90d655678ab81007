"""Shared memory: poisoned when allocated, viewed through descriptors, and with an eye on who accesses what when.

An allocation remembers its last accesses. A new one that overlaps an old one, with a write among the two, must
know that the old one is over (clocks.py). Reading what nothing has written is refused, and so is reading ordinary
stores through the asynchronous proxy (wgmma, TMA) without `fence_async_shared` in between.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from .clocks import Epoch
from .errors import FenceError, RaceError, source_line
from .layouts import Layout
from .partitions import Partition

#: A large negative integer, and a NaN in every float format.
_POISON = 0xFF


@dataclasses.dataclass
class Footprint:
    """Which bytes of its allocation a view covers: [start, end), or, where they are scattered, those that are set."""

    start: int
    end: int
    scattered: Tensor | None

    def overlaps(self, other: Footprint) -> bool:
        if self.end <= other.start or other.end <= self.start:
            return False
        if self.scattered is None and other.scattered is None:
            return True
        return bool((self._marks(other) & other._marks(self)).any())

    def contains(self, other: Footprint) -> bool:
        return self.scattered is None and self.start <= other.start and other.end <= self.end

    def _marks(self, like: Footprint) -> Tensor:
        if self.scattered is not None:
            return self.scattered
        assert like.scattered is not None
        marks = torch.zeros_like(like.scattered)
        marks[self.start : self.end] = True
        return marks


@dataclasses.dataclass
class Access:
    """One access: when it is over, of what, and how to speak of it."""

    epoch: Epoch
    footprint: Footprint
    is_write: bool
    is_asynchronous: bool
    what: str
    line: str


class Allocation:
    """Bytes, and the accesses that matter for those to come."""

    def __init__(self, count: int, name: str) -> None:
        self.name = name
        self.bytes = torch.full((count,), _POISON, dtype=torch.uint8)
        #: offset → the mbarrier that was initialized there (barriers.py)
        self.barriers: dict[int, object] = {}
        self._accesses: list[Access] = []

    def record(self, access: Access, by: Partition) -> None:
        """Check an access that `by` makes or issues now against those before, and remember it."""
        overlapping = [old for old in self._accesses if old.footprint.overlaps(access.footprint)]
        if not access.is_write and not any(old.is_write for old in overlapping):
            raise RaceError(
                f"{access.what} by {by.name} reads {self.name} at {access.line}, but nothing has written it"
            )
        for old in overlapping:
            self._check(old, access, by)
        self._accesses = [old for old in self._accesses if not _is_superseded(old, access)]
        self._accesses.append(access)

    def _check(self, old: Access, new: Access, by: Partition) -> None:
        if (old.is_write or new.is_write) and not by.clock.covers(old.epoch):
            raise RaceError(
                f"{new.what} by {by.name} {'writes' if new.is_write else 'reads'} {self.name} at {new.line}, and "
                f"nothing orders it behind {old.what}, which {'writes' if old.is_write else 'reads'} it, at {old.line}"
            )
        reads_stores = old.is_write and not old.is_asynchronous and new.is_asynchronous and not new.is_write
        if reads_stores and not by.visible.covers(old.epoch):
            raise FenceError(
                f"{new.what} by {by.name} at {new.line} reads what {old.what} wrote to {self.name} at {old.line}, "
                "without fence_async_shared in between"
            )


def _is_superseded(old: Access, new: Access) -> bool:
    """Whether whoever is ordered behind `new` is ordered behind `old` too."""
    if not new.footprint.contains(old.footprint):
        return False
    if new.is_write:
        return True
    same_kind = old.is_write == new.is_write and old.is_asynchronous == new.is_asynchronous
    return same_kind and old.epoch.component == new.epoch.component


class SharedView:
    """A shared memory descriptor: a typed, strided view of an allocation.

    Attributes:
        whole_shape: what it would be without slicing, which its layout is made for.
        gluon_layout: its layout as the front end knows it, where it has just been inferred.
    """

    def __init__(
        self,
        allocation: Allocation,
        data: Tensor,
        layout: Layout | None,
        whole_shape: tuple[int, ...],
        gluon_layout: Any = None,
    ) -> None:
        self.allocation = allocation
        self.data = data
        self.layout = layout
        self.whole_shape = whole_shape
        self.gluon_layout = gluon_layout
        self._footprint: Footprint | None = None

    @staticmethod
    def allocate(dtype: torch.dtype, shape: tuple[int, ...], layout: Layout | None) -> SharedView:
        """New memory."""
        name = f"shared memory {str(dtype).removeprefix('torch.')}{list(shape)} allocated at {source_line()}"
        allocation = Allocation(math.prod(shape) * dtype.itemsize, name)
        return SharedView(allocation, allocation.bytes.view(dtype).view(shape), layout, shape)

    @property
    def offset(self) -> int:
        """Of its first byte in the allocation."""
        return int(self.data.storage_offset()) * self.data.element_size()

    def sliced(self, data: Tensor) -> SharedView:
        """A part of it, in the same layout."""
        return SharedView(self.allocation, data, self.layout, self.whole_shape)

    def view(self, data: Tensor, layout: Layout | None, gluon_layout: Any = None) -> SharedView:
        """Another view of the same allocation."""
        return SharedView(self.allocation, data, layout, tuple(data.shape), gluon_layout)

    def reinterpreted(self, dtype: torch.dtype, shape: tuple[int, ...], layout: Layout | None) -> SharedView:
        """The bytes from the first one on, as another dtype and shape."""
        count = math.prod(shape) * dtype.itemsize
        if self.offset + count > self.allocation.bytes.numel():
            raise ValueError(f"{list(shape)} of {dtype} does not fit into {self.allocation.name}")
        as_bytes = self.allocation.bytes[self.offset : self.offset + count]
        return self.view(as_bytes.view(dtype).view(shape), layout)

    def poison(self) -> None:
        """What an asynchronous write leaves until it is over."""
        self.data.copy_(
            torch.full((self.data.element_size(),), _POISON, dtype=torch.uint8).view(self.data.dtype)[0]
        )

    def record(self, by: Partition, what: str, *, is_write: bool, epoch: Epoch | None = None) -> None:
        """Check and remember an access; without an epoch it is ordinary, and over at once."""
        access = Access(
            epoch or by.tick(), self.footprint(), is_write, epoch is not None, what, source_line()
        )
        self.allocation.record(access, by)

    def footprint(self) -> Footprint:
        if self._footprint is None:
            self._footprint = _footprint(self.data, self.allocation.bytes.numel())
        return self._footprint


def _footprint(data: Tensor, total: int) -> Footprint:
    width = data.element_size()
    start = int(data.storage_offset()) * width
    span = 1 + sum((size - 1) * int(stride) for size, stride in zip(data.shape, data.stride(), strict=True))
    if span == data.numel():
        return Footprint(start, start + span * width, None)
    marks = torch.zeros(total // width, dtype=torch.bool)
    marks.as_strided(data.shape, data.stride(), data.storage_offset()).fill_(True)
    return Footprint(start, start + span * width, marks.repeat_interleave(width))
