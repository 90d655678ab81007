"""Loads, stores and atomics on global memory, and programs that wait for each other by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import DeadlockError, source_line
from .global_memory import GlobalMemory
from .partitions import EARLIER_KERNELS, Partition
from .registers import Registers
from .schedule import Schedule

#: Looks at global memory, while it does not change, after which a program waits in vain: beside others, and alone.
_MOST_POLLS, _MOST_POLLS_ALONE = 20_000, 100


class GlobalOperations:
    """The part of the builder that reaches global memory.

    Attributes:
        polls: looks at global memory since it changed.
    """

    schedule: Schedule
    memory: GlobalMemory
    partition: Partition
    polls: int

    def get_cache_policy(self, *arguments: Any) -> None:
        """A hint."""

    get_nvidia_cache_policy = get_cache_policy

    def create_load(self, pointers: Registers, *hints: Any) -> Registers:
        return self.create_masked_load(pointers, None, None, *hints)

    def create_masked_load(
        self, pointers: Registers, mask: Registers | None, other: Registers | None, *hints: Any
    ) -> Registers:
        if True in hints:  # volatile: it may be waiting for another program's store
            self._poll()
        assert pointers.pointee is not None
        self._touch(pointers, mask, is_write=False)
        loaded = self.memory.load(pointers.data, _data(mask), _data(other), pointers.pointee)
        return Registers(loaded, pointers.layout)

    def create_store(self, pointers: Registers, value: Registers, *hints: Any) -> None:
        self.create_masked_store(pointers, value, None)

    def create_masked_store(
        self, pointers: Registers, value: Registers, mask: Registers | None, *hints: Any
    ) -> None:
        self._touch(pointers, mask, is_write=True)
        self.memory.store(pointers.data, value.data, _data(mask))
        self.polls = 0

    def create_atomic_load(self, pointers: Registers, mask: Registers, *order: Any) -> Registers:
        return self.create_masked_load(pointers, mask, None, True)

    def create_atomic_store(
        self, pointers: Registers, value: Registers, mask: Registers, *order: Any
    ) -> None:
        self.schedule.switch()
        self.create_masked_store(pointers, value, mask)
        self.schedule.switch()

    def create_atomic_rmw(
        self, operation: Any, pointers: Registers, value: Registers, mask: Registers, *order: Any
    ) -> Registers:
        name = str(operation).rsplit(".", 1)[-1]
        if name not in _ATOMICS:
            raise NotImplementedError(f"the Gluon emulator does not know the atomic operation {name}")
        return self._update(pointers, value.data, mask, _ATOMICS[name])

    def create_atomic_cas(
        self, pointers: Registers, expected: Registers, value: Registers, *order: Any
    ) -> Registers:
        wanted = expected.data
        return self._update(
            pointers, value.data, None, lambda found, new: torch.where(found == wanted, new, found)
        )

    def _update(
        self,
        pointers: Registers,
        values: Tensor,
        mask: Registers | None,
        combine: Callable[[Tensor, Tensor], Tensor],
    ) -> Registers:
        self._poll()
        self._touch(pointers, mask, is_write=True)
        old, is_changed = self.memory.update(pointers.data, values, _data(mask), combine)
        if is_changed:
            self.polls = 0
        self.schedule.switch()
        return Registers(old, pointers.layout)

    def _poll(self) -> None:
        """A look at what others may change; too many of them in vain are a deadlock."""
        self.schedule.switch()
        self.polls += 1
        if self.polls > (_MOST_POLLS_ALONE if self.schedule.is_alone() else _MOST_POLLS):
            raise DeadlockError(f"{self.partition.name} waits in vain for global memory at {source_line()}")

    def _touch(self, pointers: Registers, mask: Registers | None, is_write: bool) -> None:
        """Before `gdc_wait`, only what no earlier kernel writes may be read."""
        has_waited = self.partition.clock.covers(EARLIER_KERNELS)
        if not has_waited:
            chosen = pointers.data if mask is None else pointers.data[mask.data.expand(pointers.data.shape)]
            for address in chosen.reshape(-1)[:1].tolist():
                self.memory.may_touch(address, is_write, has_waited)


def _data(handle: Registers | None) -> Tensor | None:
    return None if handle is None else handle.data


_ATOMICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ADD": torch.add,
    "FADD": torch.add,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
    "AND": torch.bitwise_and,
    "OR": torch.bitwise_or,
    "XOR": torch.bitwise_xor,
    "XCHG": lambda old, new: new,
}
