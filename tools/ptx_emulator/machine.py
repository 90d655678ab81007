"""Runs a launch: one CTA after another, with strands and copies in an order that a seed decides."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import numpy as np

from . import control, floats, integers, lane_exchange, memory_access, products  # noqa: F401  (instructions)
from .barriers import Barrier, NamedBarrier
from .clocks import Clocks
from .control import meetings
from .copies import TensorMap
from .decoding import Decoder, Run
from .errors import DeadlockError, EmulationError, UnfinishedError, UnknownInstructionError
from .global_memory import GlobalMemory
from .parser import Instruction, Program, parse
from .shared_memory import SharedMemory
from .strands import LANES, Job, Strand

#: Instructions that a strand executes before another one may; chances that a copy of the engine ends in between.
_MOST_AT_A_TIME, _COPY_ENDS = 400, 0.05
#: Where lanes of a warp go different ways, what concerns warps is not defined.
_OF_WHOLE_WARPS = (
    "bar",
    "wgmma",
    "mbarrier",
    "elect",
    "ldmatrix",
    "stmatrix",
    "shfl",
    "mma",
    "cp.async.bulk",
    "brx",
)


@dataclasses.dataclass
class Step:
    """A decoded instruction."""

    run: Run
    guard: int | None
    negated: bool
    touched: frozenset[int]
    parsed: Instruction


class Cta:
    """What the warps of one CTA share."""

    def __init__(self, machine: Machine, place: tuple[int, int, int], seed: int) -> None:
        self.machine, self.place = machine, place
        self.random = random.Random(seed)
        warps = machine.program.threads // LANES
        self.clocks = Clocks(warps)
        self.shared = SharedMemory(machine.shared_bytes, self.clocks, seed)
        self.barriers: dict[int, Barrier] = {}
        self.named: dict[int, NamedBarrier] = {}
        self.loads: list[Job] = []
        self.strands = [Strand(self, 0, warps, self._registers(machine.program))]

    def _registers(self, program: Program) -> list[Any]:
        poison = {
            1: np.bool_(False),
            2: np.uint16(0xDEAD),
            4: np.uint32(0xDEADBEEF),
            8: np.uint64(0xDEADBEEF << 32),
        }
        registers = [poison[dtype.itemsize] for dtype in program.registers]
        threads = np.arange(program.threads, dtype=np.uint32)
        special = {
            "%tid.x": threads,
            "%laneid": threads % np.uint32(LANES),
            "%ntid.x": np.uint32(program.threads),
        }
        for axis, name in enumerate("xyz"):
            special[f"%ctaid.{name}"] = np.uint32(self.place[axis])
            special[f"%nctaid.{name}"] = np.uint32(self.machine.grid[axis])
            special.setdefault(f"%tid.{name}", np.uint32(0))
            special.setdefault(f"%ntid.{name}", np.uint32(1))
        for name, index in program.special.items():
            registers[index] = special[name]
        return registers


class Machine:
    """One launch of a kernel.

    Args:
        ptx: of the kernel.
        arguments: of its parameters in order, as bits; tensor maps as they are. Those that are missing are 0.
        memory: what the arguments point to.
        grid: programs along up to three axes.
        shared_bytes: of shared memory that each gets.
        dependent: launched before the kernel in front has ended.
    """

    def __init__(
        self,
        ptx: str,
        arguments: list[Any],
        memory: GlobalMemory,
        grid: tuple[int, ...],
        shared_bytes: int,
        dependent: bool = False,
    ) -> None:
        self.program = parse(ptx)
        self.memory, self.grid = memory, (*grid, 1, 1)[:3]
        self.shared_bytes, self.dependent = shared_bytes, dependent
        self.tensor_maps: dict[int, TensorMap] = {}
        self.executed = 0
        self.symbols: dict[str, int] = {"global_smem": 0}
        for number, name in enumerate(self.program.parameters):
            value = arguments[number] if number < len(arguments) else 0
            if isinstance(value, TensorMap):
                address = 0x7000_0000_0000_0000 + 128 * number
                self.tensor_maps[address] = value
                value = address
            self.symbols[name] = value
        self._decoder = Decoder(self.program, self)
        self._steps: list[Step | None] = [None] * len(self.program.instructions)

    def _step(self, place: int) -> Step:
        """The decoded instruction there: decoded when it is first executed."""
        step = self._steps[place]
        if step is None:
            parsed = self.program.instructions[place]
            guard = None if parsed.guard is None else parsed.guard.index
            run = self._decoder.decode(parsed)
            step = self._steps[place] = Step(run, guard, parsed.negated, parsed.touched, parsed)
        return step

    def run(self, seed: int = 0) -> None:
        """All programs of the grid, in order for seed 0, else in one drawn from it."""
        places = [
            (x, y, z) for z in range(self.grid[2]) for y in range(self.grid[1]) for x in range(self.grid[0])
        ]
        if seed:
            random.Random(seed).shuffle(places)
        with np.errstate(all="ignore"):
            for number, place in enumerate(places):
                self._run_cta(Cta(self, place, 7919 * seed + number))

    def _run_cta(self, cta: Cta) -> None:
        while True:
            strands = [strand for strand in cta.strands if not strand.done]
            if not strands:
                break
            ready = [strand for strand in strands if strand.ready is None or strand.ready()]
            if cta.loads and (not ready or cta.random.random() < _COPY_ENDS):
                self._end_load(cta)
                continue
            if not ready:
                waiting = "; ".join(
                    f"warps {strand.first} to {strand.last - 1} in {self.program.instructions[strand.place]}"
                    for strand in strands
                )
                raise DeadlockError(f"{self.program.name}: all warps wait: {waiting}")
            strand = cta.random.choice(self._joined(cta, ready))
            strand.ready = None
            self._run_strand(strand, cta.random.randrange(1, _MOST_AT_A_TIME))
        while cta.loads:
            self._end_load(cta)
        for barrier in cta.barriers.values():
            barrier.check_at_end()
        for strand in cta.strands:
            if any(map(len, (*strand.products, *strand.copies))):
                raise UnfinishedError(f"{self.program.name} ends while a product or a copy out still runs")

    def _end_load(self, cta: Cta) -> None:
        load = cta.loads.pop(cta.random.randrange(len(cta.loads)))
        try:
            load.finish()
        except EmulationError as error:
            raise type(error)(f"{self.program.name}, program {cta.place}, {load.cause}: {error}") from error

    def _joined(self, cta: Cta, ready: list[Strand]) -> list[Strand]:
        """Those that are ready; neighbours that stand at the same place are one from now on."""
        ready.sort(key=lambda strand: strand.first)
        result = ready[:1]
        for strand in ready[1:]:
            if result[-1].can_join(strand):
                joined = result[-1].join(strand)
                cta.strands = [each for each in cta.strands if each not in (result[-1], strand)] + [joined]
                result[-1] = joined
            else:
                result.append(strand)
        return result

    def _run_strand(self, strand: Strand, budget: int) -> None:
        steps, step = self._steps, None
        try:
            while budget and not strand.done and strand.ready is None:
                budget -= 1
                self.executed += 1
                if strand.lane_places is not None:
                    step = self._step_apart(strand)
                    continue
                step = steps[strand.place] or self._step(strand.place)
                mask = None
                if step.guard is not None:
                    mask = strand.registers[step.guard]
                    mask = ~mask if step.negated else mask
                    if not mask.any():
                        strand.place += 1
                        continue
                    mask = None if mask.all() else mask
                if strand.in_flight and not strand.in_flight.isdisjoint(step.touched):
                    self._check_in_flight(strand, step)
                following = step.run(strand, mask)
                strand.place = strand.place + 1 if following is None else following
        except EmulationError as error:
            where = self.program.instructions[strand.place] if step is None else step.parsed
            message = f"{self.program.name}, program {strand.cta.place}, {where}: {error}"
            raise type(error)(message) from error

    def _check_in_flight(self, strand: Strand, step: Step) -> None:
        if not step.parsed.opcode.startswith("wgmma."):  # which order themselves
            raise UnfinishedError("a register of a product that still runs is used")

    def _step_apart(self, strand: Strand) -> Step:
        """One instruction, of the lanes that are the furthest behind."""
        places = strand.lane_places
        place = int(places[places != strand.meeting].min())
        step = self._step(place)
        active = places == place
        mask = active
        if step.guard is not None:
            guard = strand.registers[step.guard]
            mask = active & (~guard if step.negated else guard)
        if step.parsed.opcode.startswith(_OF_WHOLE_WARPS):
            raise UnknownInstructionError("an instruction of whole warps where lanes go different ways")
        following: int | None = None
        if mask.any():
            following = step.run(strand, mask)
        places = np.where(active, place + 1, places)
        if following is not None:
            places = np.where(mask, following, places)
        strand.lane_places = places
        if (places == strand.meeting).all():
            strand.place, strand.lane_places = strand.meeting, None
        return step

    def branch(self, strand: Strand, mask: Any, target: int) -> int | None:
        """Where a branch of some lanes goes on; the strand parts, or its lanes do."""
        if strand.lane_places is not None:
            return target
        targets = np.where(mask, target, strand.place + 1)
        by_warp = targets.reshape(-1, LANES)
        if (by_warp == by_warp[:, :1]).all():
            return self.part(strand, by_warp[:, 0])
        strand.meeting = meetings(self.program)[strand.place]
        strand.lane_places = targets
        return strand.place

    def part(self, strand: Strand, targets: Any) -> int:
        """Where a strand goes on whose warps have these targets: those that differ become strands of their own."""
        if (targets == targets[0]).all():
            return int(targets[0])
        borders = [0, *(np.flatnonzero(np.diff(targets)) + 1).tolist(), len(targets)]
        for begin, end in itertools.pairwise(borders):
            part = strand.part(strand.first + begin, strand.first + end)
            part.place = int(targets[begin])
            strand.cta.strands.append(part)
        strand.cta.strands.remove(strand)
        strand.done = True
        return strand.place
