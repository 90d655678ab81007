"""mbarriers: arrivals and bytes that complete phases, and what those who wait learn.

A phase is complete when as many have arrived as `init` said and all expected bytes have been written; then the next one
begins. `wait(parity)` goes on if the phase with that parity is complete, which means that the current one has the other
parity: on a new barrier, waiting for parity 1 goes on at once.
"""

from __future__ import annotations

from typing import Any

from .clocks import Clock, Epoch
from .errors import BarrierError, source_line
from .partitions import Partition
from .registers import Registers, integer
from .shared_memory import SharedView


class Barrier:
    """One initialized mbarrier."""

    def __init__(self, name: str, count: int, by: Partition) -> None:
        if count < 1:
            raise BarrierError(f"{name} is initialized for {count} arrivals at {source_line()}")
        self.name = name
        self.count = count
        self.phase = 0
        self.arrivals = 0
        self.bytes = 0
        self.initialized = by.tick()
        self.component = ("bytes", name, self.initialized)
        self._arriving, self._arriving_visible = Clock(), Clock()
        self._known, self._visible = Clock(), Clock()

    def __str__(self) -> str:
        state = f"phase {self.phase}: {self.arrivals} of {self.count} arrivals, {self.bytes} bytes to come"
        return f"{self.name} ({state})"

    def arrive(self, by: Partition, count: int, expected_bytes: int = 0) -> None:
        """Arrivals that publish what `by` knows, and bytes to come."""
        self.check_known(by)
        if self.arrivals + count > self.count:
            raise BarrierError(f"too many arrivals on {self} by {by.name} at {source_line()}")
        by.tick()
        self._arriving.merge(by.clock)
        self._arriving_visible.merge(by.visible)
        self.arrivals += count
        self.bytes += expected_bytes
        self._complete()

    def transaction(self) -> Epoch:
        """When the bytes of a copy that is issued now are known to be there."""
        return Epoch(self.component, self.phase + 1)

    def receive(self, epoch: Epoch, count: int) -> None:
        """Bytes of a copy that was issued in the phase of `epoch`."""
        if epoch.step != self.phase + 1:
            raise BarrierError(
                f"{count} bytes reach {self.name} in a later phase: more were copied than expected"
            )
        self.bytes -= count
        if self.bytes < 0 and self.arrivals == self.count:
            raise BarrierError(
                f"{-self.bytes} bytes more than expected reach {self.name}, in phase {self.phase}"
            )
        self._complete()

    def is_complete(self, parity: int) -> bool:
        """Whether the phase of that parity is."""
        return self.phase & 1 != parity & 1

    def publish(self, to: Partition) -> None:
        """Tell one that has waited what is known to be over."""
        to.clock.merge(self._known)
        to.visible.merge(self._visible)

    def check_known(self, by: Partition) -> None:
        """Whoever uses a barrier must be ordered behind its initialization."""
        if not by.clock.covers(self.initialized):
            raise BarrierError(
                f"{by.name} uses {self.name} at {source_line()}, but nothing orders it behind its init"
            )

    def _complete(self) -> None:
        if self.arrivals == self.count and self.bytes == 0:
            self.phase += 1
            self.arrivals = 0
            self._known = Clock(self._arriving)
            self._known.learn(self.component, self.phase)
            self._visible = Clock(self._arriving_visible)


class BarrierOperations:
    """The part of the builder that handles mbarriers, which live at an offset of an allocation."""

    partition: Partition

    def create_mbarrier_init(self, view: SharedView, count: int) -> None:
        barriers = _barriers_of(view)
        if view.offset in barriers:
            raise BarrierError(f"{barriers[view.offset].name} is initialized again at {source_line()}")
        name = f"mbarrier {view.offset // 8} of {view.allocation.name}"
        barriers[view.offset] = Barrier(name, count, self.partition)

    def create_mbarrier_inval(self, view: SharedView) -> None:
        barrier = barrier_at(view)
        barrier.check_known(self.partition)
        if barrier.bytes:
            raise BarrierError(f"{barrier} is invalidated while bytes are under way at {source_line()}")
        del _barriers_of(view)[view.offset]

    def create_mbarrier_expect(
        self, view: SharedView, count: int, predicate: Registers, *cluster: Any
    ) -> None:
        if bool(predicate.data):
            self.partition.program.schedule.switch()
            barrier_at(view).arrive(self.partition, 1, count)

    def create_mbarrier_arrive(self, view: SharedView, count: int, *rest: Any) -> None:
        # Triton 3.8 passes a mask of a cluster's programs before the predicate, 3.9 something alike behind it.
        predicate = next(value for value in rest if isinstance(value, Registers))
        if bool(predicate.data):
            self.partition.program.schedule.switch()
            barrier_at(view).arrive(self.partition, count)
            self.partition.program.schedule.switch()

    def create_mbarrier_wait(
        self, view: SharedView, parity: Registers, predicate: Registers, dependencies: Any
    ) -> None:
        if bool(predicate.data):
            barrier, by, wanted = barrier_at(view), self.partition, integer(parity)
            barrier.check_known(by)
            by.program.schedule.wait(
                lambda: barrier.is_complete(wanted), lambda: f"parity {wanted & 1} of {barrier}"
            )
            barrier.publish(by)


def barrier_at(view: SharedView) -> Barrier:
    """The barrier that was initialized there."""
    barrier = _barriers_of(view).get(view.offset)
    if barrier is None:
        raise BarrierError(
            f"no mbarrier was initialized in {view.allocation.name} as used at {source_line()}"
        )
    return barrier


def _barriers_of(view: SharedView) -> dict[int, Barrier]:
    return view.allocation.barriers  # type: ignore[return-value]
