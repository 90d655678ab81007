"""Barriers between warps: named ones (bar.sync), and mbarriers, which also count bytes that the copy engine brings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .clocks import Knowledge, joined
from .decoding import Decoder, Run, instruction, lanes_of
from .errors import BarrierError
from .numbers import Value
from .parser import Immediate, Instruction
from .strands import LANES, Strand

if TYPE_CHECKING:
    from .machine import Cta


class NamedBarrier:
    """One of the 16 of a CTA: so many warps wait for each other."""

    def __init__(self) -> None:
        self.turn = 0
        self.strands: list[Strand] = []
        self.wanted = 0

    def arrive(self, strand: Strand, wanted: int) -> None:
        """The strand waits until as many warps as are wanted do; neighbours go on as one strand then."""
        if self.strands and self.wanted != wanted:
            raise BarrierError(f"a barrier of {self.wanted} warps is one of {wanted} for others")
        self.wanted = wanted
        self.strands.append(strand)
        turn = self.turn
        strand.ready = lambda: self.turn != turn
        if sum(each.last - each.first for each in self.strands) < wanted:
            return
        strands, self.strands = self.strands, []
        self.turn += 1
        if sum(each.last - each.first for each in strands) > wanted:
            raise BarrierError("more warps than the barrier is for")
        clocks = strand.cta.clocks
        knowledge: Knowledge | None = None
        for each in strands:
            knowledge = joined(knowledge, clocks.given(each.warps))
        assert knowledge is not None
        for each in strands:
            clocks.take(each.warps, knowledge)


@instruction(r"(?:bar|barrier)(?:\.cta)?\.sync(?:\.aligned)?")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    number = decoder.reader(parsed.operands[0], "u32")
    threads = decoder.reader(Immediate(decoder.program.threads), "u32")
    if len(parsed.operands) > 1:
        threads = decoder.reader(parsed.operands[1], "u32")

    def run(strand: Any, mask: Value) -> None:
        assert mask is None, "only some lanes of warps at a barrier"
        barrier = strand.cta.named.setdefault(int(number(strand.registers)), NamedBarrier())
        barrier.arrive(strand, int(threads(strand.registers)) // LANES)

    return run


class Barrier:
    """An mbarrier: a phase is over when so many have arrived, and all bytes that were announced have come."""

    def __init__(self, cta: Cta, address: int, count: int) -> None:
        self.cta, self.address, self.count = cta, address, count
        self.pending, self.bytes, self.phases = count, 0, 0
        self.agent = cta.clocks.barrier(len(cta.barriers))
        self._arrived: Knowledge | None = None
        self._given: Knowledge | None = None

    def arrive(self, warp: int, times: int, expected: int = 0) -> None:
        """A thread of a warp arrives, and announces bytes."""
        self._arrived = joined(self._arrived, self.cta.clocks.given(slice(warp, warp + 1)))
        self.bytes += expected
        self.pending -= times
        if self.pending < 0:
            raise BarrierError(
                f"more than {self.count} arrivals in a phase of the mbarrier at {self.address}"
            )
        self._turn()

    def complete(self, brought: int) -> None:
        """Bytes have come."""
        self.bytes -= brought
        if self.bytes < 0:
            raise BarrierError(
                f"{-self.bytes} bytes more than expected came to the mbarrier at {self.address}"
            )
        self._turn()

    def _turn(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phases += 1
            self.pending = self.count
            self._given = self._arrived

    def has_passed(self, parity: int) -> bool:
        """True once the phase of this parity is over."""
        return self.phases & 1 != parity & 1

    def passed_by(self, strand: Strand) -> None:
        """What its wait tells a strand."""
        clocks = self.cta.clocks
        if self._given is not None:
            clocks.take(strand.warps, self._given)
        clocks.known[strand.warps, self.agent] = self.phases

    def check_at_end(self) -> None:
        """Raise if bytes were announced that never came."""
        if self.bytes:
            raise BarrierError(f"{self.bytes} bytes never came to the mbarrier at {self.address}")


def barrier_at(strand: Strand, address: int) -> Barrier:
    """The mbarrier that was made there."""
    found: Barrier | None = strand.cta.barriers.get(address)
    if found is None:
        raise BarrierError(f"no mbarrier was made at {address}")
    return found


@instruction(r"mbarrier\.(init|inval)\.shared(?:::cta)?\.b64")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    address = decoder.address(parsed.operands[0])
    count = decoder.reader(parsed.operands[1], "u32") if found[1] == "init" else None

    def run(strand: Any, mask: Value) -> None:
        lane = strand.only_lane(mask, "an mbarrier is made")
        place = int(lanes_of(address(strand.registers), strand.lanes)[lane])
        strand.cta.shared.indices(np.array([place]), 8, 8)
        if count is None:
            barrier_at(strand, place).check_at_end()
            # Its agent's number stays taken.
            strand.cta.barriers[-place - 1] = strand.cta.barriers.pop(place)
        else:
            made = Barrier(strand.cta, place, int(lanes_of(count(strand.registers), strand.lanes)[lane]))
            strand.cta.barriers[place] = made

    return run


@instruction(r"mbarrier\.arrive(\.expect_tx)?\.shared(?:::cta)?\.b64")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    address = decoder.address(parsed.operands[1])
    number = decoder.reader(parsed.operands[2] if len(parsed.operands) > 2 else Immediate(1), "u32")

    def run(strand: Any, mask: Value) -> None:
        lane = strand.only_lane(mask, "an arrival at an mbarrier")
        place = int(lanes_of(address(strand.registers), strand.lanes)[lane])
        value = int(lanes_of(number(strand.registers), strand.lanes)[lane])
        warp = strand.first + lane // LANES
        barrier = barrier_at(strand, place)
        if found[1]:
            barrier.arrive(warp, 1, value)
        else:
            barrier.arrive(warp, value)

    return run


@instruction(r"mbarrier\.try_wait\.parity\.shared(?:::cta)?\.b64")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    write, address = decoder.writer(parsed.operands[0]), decoder.address(parsed.operands[1])
    parity = decoder.reader(parsed.operands[2], "u32")

    def run(strand: Any, mask: Value) -> int | None:
        place = address(strand.registers)
        barrier = barrier_at(strand, int(np.min(place)))
        wanted = int(np.min(parity(strand.registers)))
        if barrier.has_passed(wanted):
            barrier.passed_by(strand)
            write(strand, np.bool_(True), mask)
            return None
        strand.ready = lambda: barrier.has_passed(wanted)
        return int(strand.place)

    return run


@instruction(r"fence\.proxy\.async\S*")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    def run(strand: Any, mask: Value) -> None:
        strand.cta.clocks.fence(strand.warps)

    return run
