"""Strands: groups of neighbouring warps that execute each instruction together, in shared NumPy arrays of registers.

If a strand's warps branch differently, it splits; strands at the same place in the program merge again. If the lanes of
one warp branch differently, each lane has a separate place in the program until they meet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import UnknownInstructionError

LANES = 32


@dataclasses.dataclass(eq=False)
class Job:
    """Something asynchronous, whose effect comes at some time: once. Warps that part share those they have begun.

    `cause` is the instruction that asked for it.
    """

    effect: Callable[[], None] | None
    cause: object = None

    def finish(self) -> None:
        """Let it have been."""
        effect, self.effect = self.effect, None
        if effect is not None:
            effect()


@dataclasses.dataclass(eq=False)
class Strand:
    """Warps first … last - 1 of a CTA.

    Attributes:
        registers: by their number, an array of all lanes or one number for all.
        place: the instruction that is next.
        ready: what it waits for; None: nothing.
        lane_places: place of each lane, while they differ, and `meeting`, where they meet.
        in_flight: registers of products that run.
        products, fills, copies: groups of asynchronous work that are not over, the oldest first, the last one open.
        counts: how many groups of each kind have been closed.
        waited: has waited for the kernel in front.
    """

    cta: Any
    first: int
    last: int
    registers: list[Any]
    place: int = 0
    ready: Callable[[], bool] | None = None
    done: bool = False
    lane_places: Any = None
    meeting: int = 0
    in_flight: frozenset[int] = frozenset()
    products: list[list[Job]] = dataclasses.field(default_factory=lambda: [[]])
    fills: list[list[Job]] = dataclasses.field(default_factory=lambda: [[]])
    copies: list[list[Job]] = dataclasses.field(default_factory=lambda: [[]])
    counts: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"products": 0, "fills": 0, "copies": 0}
    )
    waited: bool = False

    def __post_init__(self) -> None:
        self.warps = slice(self.first, self.last)
        self.lanes = LANES * (self.last - self.first)
        self.lane_warps = np.repeat(np.arange(self.first, self.last), LANES)

    def active(self, mask: Any) -> Any:
        """Indices of the lanes of a mask."""
        return np.arange(self.lanes) if mask is None else np.flatnonzero(mask)

    def only_lane(self, mask: Any, what: str) -> int:
        """The one lane of a mask."""
        (*others, lane) = self.active(mask)
        if others:
            raise UnknownInstructionError(f"{what} by {len(others) + 1} threads")
        return int(lane)

    def part(self, first: int, last: int) -> Strand:
        """The part of it that the warps first … last - 1 are."""
        if any(self.products[0]) or len(self.products) > 1:
            raise UnknownInstructionError("warps part while a product runs")
        begin, end = LANES * (first - self.first), LANES * (last - self.first)
        part = Strand(self.cta, first, last, [_some(value, begin, end) for value in self.registers])
        part.place, part.counts, part.waited = self.place, dict(self.counts), self.waited
        part.fills = [list(group) for group in self.fills]
        part.copies = [list(group) for group in self.copies]
        return part

    def can_join(self, other: Strand) -> bool:
        """True if the other one follows, and all that is not kept per lane is alike."""
        return (
            self.last == other.first
            and self.place == other.place
            and self.lane_places is None
            and other.lane_places is None
            and self.counts == other.counts
            and self.waited == other.waited
            and not self.in_flight
            and not other.in_flight
            and len(self.products) == len(other.products) == 1
            and len(self.fills) == len(other.fills)
            and len(self.copies) == len(other.copies)
        )

    def join(self, other: Strand) -> Strand:
        """Both as one."""
        registers = [
            _both(mine, theirs, self.lanes, other.lanes)
            for mine, theirs in zip(self.registers, other.registers, strict=True)
        ]
        both = Strand(self.cta, self.first, other.last, registers)
        both.place, both.counts, both.waited = self.place, self.counts, self.waited
        both.fills = _united(self.fills, other.fills)
        both.copies = _united(self.copies, other.copies)
        return both


def _some(value: Any, begin: int, end: int) -> Any:
    return value[begin:end] if np.ndim(value) else value


def _both(one: Any, other: Any, lanes: int, other_lanes: int) -> Any:
    if not np.ndim(one) and not np.ndim(other) and one == other:
        return one
    return np.concatenate([np.broadcast_to(one, lanes), np.broadcast_to(other, other_lanes)])


def _united(mine: list[list[Job]], theirs: list[list[Job]]) -> list[list[Job]]:
    return [
        [*one, *[job for job in other if job not in one]] for one, other in zip(mine, theirs, strict=True)
    ]
