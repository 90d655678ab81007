"""Vector clocks: the events that each warp knows have happened.

Agents are the warps and the units that work for a warp in parallel. A row of `known` belongs to a warp, a column to an
agent:

    warps       wgmma         cp.async      copies out     mbarriers
    0 … W - 1   W … 2W - 1    2W … 3W - 1   3W … 4W - 1    4W …
    steps       products      groups        groups         phases

An access is stamped with its agent and the agent's time. A warp that touches the same bytes later must know that time.
It learns times at barriers: a warp that arrives passes on all it knows, and a warp that waits receives it. `visible`
holds the same for the asynchronous proxy (wgmma, the copy engine): a proxy fence makes all that a warp knows visible.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Knowledge = tuple[Any, Any]


class Clocks:
    """Of one CTA.

    Args:
        warps: of the CTA.
        barriers: the most mbarriers it makes.
    """

    def __init__(self, warps: int, barriers: int = 256) -> None:
        self.warps = warps
        self.known = np.zeros((warps, 4 * warps + barriers), np.int32)
        self.visible = np.zeros((warps, warps), np.int32)
        self.known[:, :warps] = np.eye(warps, dtype=np.int32)  # time starts at 1

    def products_of(self, warp: Any) -> Any:
        """The agent that multiplies for a warp."""
        return self.warps + warp

    def fills_of(self, warp: Any) -> Any:
        """The agent that runs a warp's cp.async."""
        return 2 * self.warps + warp

    def copies_of(self, warp: Any) -> Any:
        """The agent that copies out of shared memory for a warp."""
        return 3 * self.warps + warp

    def barrier(self, number: int) -> int:
        """The agent that counts the phases of an mbarrier."""
        return 4 * self.warps + number

    def fence(self, warps: slice) -> None:
        """What these warps know is visible to the asynchronous proxy."""
        np.maximum(self.visible[warps], self.known[warps, : self.warps], out=self.visible[warps])

    def given(self, warps: slice) -> Knowledge:
        """All that these warps know, at a moment that their later steps are not part of."""
        knowledge = self.known[warps].max(0), self.visible[warps].max(0)
        numbers = np.arange(warps.start, warps.stop)
        self.known[numbers, numbers] += 1
        return knowledge

    def take(self, warps: slice, knowledge: Knowledge) -> None:
        """These warps learn it."""
        np.maximum(self.known[warps], knowledge[0], out=self.known[warps])
        np.maximum(self.visible[warps], knowledge[1], out=self.visible[warps])


def joined(one: Knowledge | None, other: Knowledge) -> Knowledge:
    """Both."""
    if one is None:
        return other
    return np.maximum(one[0], other[0]), np.maximum(one[1], other[1])
