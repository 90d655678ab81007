"""Vector clocks: what happened before what, whatever the schedule.

Every strand of execution is a component that counts its steps: a partition of warps, the queue of its products, the
queue of its TMA stores, and the transactions of each mbarrier (which count phases). An access is stamped with an epoch,
(component, step). A clock maps components to the last step known to be over. Waiting on a barrier merges what those who
arrived knew; an access may follow another one only if its issuer's clock covers the other's epoch. This finds a missing
wait in every schedule, not only in those where it does harm.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple


class Epoch(NamedTuple):
    """A step of a component."""

    component: Hashable
    step: int


class Clock(dict[Hashable, int]):
    """Component → the last of its steps that is known to be over."""

    def covers(self, epoch: Epoch) -> bool:
        """Whether that step is known to be over."""
        return self.get(epoch.component, 0) >= epoch.step

    def learn(self, component: Hashable, step: int) -> None:
        """That step, and all before it, are over."""
        if self.get(component, 0) < step:
            self[component] = step

    def merge(self, other: Clock) -> None:
        """Learn all that another clock knows."""
        for component, step in other.items():
            if self.get(component, 0) < step:
                self[component] = step
