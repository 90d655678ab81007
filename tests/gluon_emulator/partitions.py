"""A program and its partitions of warps: who runs, what each of them knows, and what it has under way."""

from __future__ import annotations

import dataclasses

from .clocks import Clock, Epoch
from .errors import UnfinishedError, source_line
from .schedule import Operation, Schedule


class Program:
    """One instance of the grid.

    Attributes:
        ids: its position in the grid.
        loads: TMA loads under way.
    """

    def __init__(
        self, schedule: Schedule, ids: tuple[int, int, int], waits_for_earlier_kernels: bool
    ) -> None:
        self.schedule = schedule
        self.ids = ids
        self.waits_for_earlier_kernels = waits_for_earlier_kernels
        self.loads: list[Operation] = []


@dataclasses.dataclass
class Issued:
    """An operation of a partition's queue, where it was issued, and which one of the queue it is."""

    operation: Operation
    line: str
    queue: Queue
    step: int

    def is_over(self) -> bool:
        return self.step <= self.queue.waited

    def __str__(self) -> str:
        return f"the {self.queue.what} issued at {self.line}"


class Queue:
    """Asynchronous operations of one kind and one partition, which end in order: products, or stores.

    Attributes:
        waited: how many of them are known to be over.
    """

    def __init__(self, partition: Partition, what: str) -> None:
        self._partition = partition
        self.what = what
        self.component = (partition.name, what)
        self.issued: list[Issued] = []
        self.waited = 0

    def next_epoch(self) -> Epoch:
        """The epoch of the operation that comes next."""
        return Epoch(self.component, self._count() + 1)

    def add(self, operation: Operation) -> Issued:
        """Put an operation under way."""
        issued = Issued(operation, source_line(), self, self._count() + 1)
        self.issued.append(issued)
        self._partition.program.schedule.add(operation)
        return issued

    def wait(self, outstanding: int) -> None:
        """Until at most that many are under way."""
        over = max(self._count() - outstanding, self.waited)
        finished = [issued for issued in self.issued if issued.step <= over]
        self._partition.program.schedule.finish([issued.operation for issued in finished])
        self.issued = self.issued[len(finished) :]
        self.waited = over
        self._partition.clock.learn(self.component, over)

    def check_empty(self) -> None:
        """At the end, nothing may be under way."""
        if self.issued:
            raise UnfinishedError(f"{self._partition.name} ends before {self.issued[0]} is waited for")

    def _count(self) -> int:
        return self.waited + len(self.issued)


class Partition:
    """Warps that run the same code, in step.

    Attributes:
        clock: what is known to be over.
        visible: the part of that which the asynchronous proxy sees, ordinary stores in front of a fence.
    """

    def __init__(self, program: Program, name: str, num_warps: int, parent: Partition | None = None) -> None:
        self.program = program
        self.name = name
        self.num_warps = num_warps
        self.clock: Clock = Clock(parent.clock if parent else {})
        self.visible: Clock = Clock(parent.visible if parent else {})
        self.products = Queue(self, "warpgroup_mma")
        self.stores = Queue(self, "TMA store")
        if not program.waits_for_earlier_kernels:
            self.clock.learn(EARLIER_KERNELS.component, EARLIER_KERNELS.step)

    def tick(self) -> Epoch:
        """A new step of this partition's own."""
        self.clock[self.name] = step = self.clock.get(self.name, 0) + 1
        return Epoch(self.name, step)

    def fence(self) -> None:
        """What is known to be over becomes visible to the asynchronous proxy."""
        self.visible.merge(self.clock)

    def join(self, other: Partition) -> None:
        """Wait for another partition's end."""
        self.clock.merge(other.clock)
        self.visible.merge(other.visible)

    def end(self) -> None:
        """Nothing may be left under way."""
        self.products.check_empty()
        self.stores.check_empty()


#: The end of the kernels before this one, which `gdc_wait` waits for.
EARLIER_KERNELS = Epoch("earlier kernels", 1)
