"""Asynchronous copies: tiles by tensor maps (the copy engine, TMA), and cp.async, lane by lane.

A copy into shared memory is stamped when a warp issues it. It happens at some time before its mbarrier's phase ends or
a warp waits for its group. A copy out reads when a warp waits for its group.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from .barriers import barrier_at
from .decoding import Decoder, Run, instruction, lanes_of
from .errors import OutOfBoundsError
from .global_memory import GlobalMemory
from .numbers import Value
from .parser import Address, Instruction
from .strands import LANES, Job

#: Swizzle in bytes → (what a tile must be aligned to, how many bits of its row's number are mixed into an address).
SWIZZLES = {0: (128, 0), 32: (256, 1), 64: (512, 3), 128: (1024, 7)}


def swizzled(addresses: Any, swizzle: int) -> Any:
    """Where the byte lies that an address without swizzle means."""
    return addresses ^ (((addresses >> 7) & SWIZZLES[swizzle][1]) << 4)


@dataclasses.dataclass
class TensorMap:
    """What the copy engine knows of a matrix: [rows, columns], a tile's shape, how tiles lie in shared memory."""

    name: str
    base: int
    shape: tuple[int, int]
    row_stride: int  # bytes
    element_size: int
    box: tuple[int, int]
    swizzle: int

    def __post_init__(self) -> None:
        row = self.box[1] * self.element_size
        aligned = self.base % 16 == self.row_stride % 16 == row % 16 == 0
        if not aligned or not all(1 <= size <= 256 for size in self.box) or row > (self.swizzle or row):
            raise OutOfBoundsError(f"no tensor map can be made of {self}")

    @property
    def bytes(self) -> int:
        """Of a tile, what lies beside the matrix included."""
        return self.box[0] * self.box[1] * self.element_size

    def places(self, shared: int) -> Any:
        """int64 [rows, bytes of a row] of a tile that begins there."""
        if shared % SWIZZLES[self.swizzle][0]:
            raise OutOfBoundsError(
                f"a tile of {self.name} at {shared}, not a multiple of {SWIZZLES[self.swizzle][0]}"
            )
        row = self.box[1] * self.element_size
        return swizzled(shared + np.arange(self.box[0])[:, None] * row + np.arange(row), self.swizzle)

    def within(self, row: int, column: int) -> tuple[slice, slice]:
        """Rows, and bytes of rows, of the tile at these indices that are in the matrix."""
        rows = slice(max(0, -row), max(0, min(self.box[0], self.shape[0] - row)))
        first, last = max(0, -column), max(0, min(self.box[1], self.shape[1] - column))
        return rows, slice(first * self.element_size, last * self.element_size)

    def memory(
        self, memory: GlobalMemory, row: int, column: int, rows: slice, part: slice, waited: bool
    ) -> Any:
        """The bytes [rows, part] of the tile in global memory."""
        count, width = max(0, rows.stop - rows.start), max(0, part.stop - part.start)
        if count == 0 or width == 0:
            return np.empty((count, width), np.uint8)
        begin = self.base + (row + rows.start) * self.row_stride + column * self.element_size + part.start
        end = begin + (count - 1) * self.row_stride + width
        region = memory.at(begin, end, waited)
        offset = begin - region.address
        return np.lib.stride_tricks.as_strided(region.bytes[offset:], (count, width), (self.row_stride, 1))


def _tile(decoder: Decoder, operand: Address) -> Any:
    """A function from (strand, lane) to (tensor map, row, column)."""
    base = decoder.reader(operand.base, "u64")
    assert operand.coordinates is not None
    column, row = decoder.readers(operand.coordinates.items, "s32")

    def tile(strand: Any, lane: int) -> tuple[TensorMap, int, int]:
        one, two, three = (
            lanes_of(read(strand.registers), strand.lanes)[lane] for read in (base, row, column)
        )
        return decoder.machine.tensor_maps[int(one)], int(two), int(three)

    return tile


@instruction(r"cp\.async\.bulk\.tensor\.2d\.shared::(?:cluster|cta)\.global\.mbarrier::complete_tx::bytes\S*")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    address, tile = decoder.address(parsed.operands[0]), _tile(decoder, parsed.operands[1])
    barrier_address, memory = decoder.address(parsed.operands[2]), decoder.machine.memory

    def load(strand: Any, lane: int) -> None:
        cta, warp = strand.cta, strand.first + lane // LANES
        shared = int(lanes_of(address(strand.registers), strand.lanes)[lane])
        barrier = barrier_at(strand, int(lanes_of(barrier_address(strand.registers), strand.lanes)[lane]))
        tensor_map, row, column = tile(strand, lane)
        rows, part = tensor_map.within(row, column)
        source = tensor_map.memory(memory, row, column, rows, part, strand.waited)
        places, end = tensor_map.places(shared), shared + tensor_map.bytes
        cta.shared.start_load(warp, slice(shared, end), barrier.agent, barrier.phases + 1)

        def arrive() -> None:
            values = np.zeros(places.shape, np.uint8)
            values[rows, part] = source
            cta.shared.bytes[places] = values
            barrier.complete(tensor_map.bytes)

        cta.loads.append(Job(arrive, parsed))

    def run(strand: Any, mask: Value) -> None:
        for lane in strand.active(mask):
            load(strand, int(lane))

    return run


@instruction(r"cp\.async\.bulk\.tensor\.2d\.global\.shared::cta\.bulk_group\S*")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    tile, address, memory = (
        _tile(decoder, parsed.operands[0]),
        decoder.address(parsed.operands[1]),
        decoder.machine.memory,
    )

    def store(strand: Any, lane: int) -> None:
        cta, warp = strand.cta, strand.first + lane // LANES
        shared = int(lanes_of(address(strand.registers), strand.lanes)[lane])
        tensor_map, row, column = tile(strand, lane)
        rows, part = tensor_map.within(row, column)
        target = tensor_map.memory(memory, row, column, rows, part, strand.waited)
        places, read = tensor_map.places(shared)[rows, part], slice(shared, shared + tensor_map.bytes)
        cta.shared.start_reading(slice(warp, warp + 1), "copies", read, strand.counts["copies"] + 1)

        def leave() -> None:
            target[...] = cta.shared.bytes[places]

        strand.copies[-1].append(Job(leave))

    def run(strand: Any, mask: Value) -> None:
        for lane in strand.active(mask):
            store(strand, int(lane))

    return run


@instruction(r"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::\w+)?")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    target, source = decoder.address(parsed.operands[0]), decoder.address(parsed.operands[1])
    size, memory = parsed.operands[2].value, decoder.machine.memory
    filled = decoder.reader(parsed.operands[3 if len(parsed.operands) > 3 else 2], "u32")

    def run(strand: Any, mask: Value) -> None:
        registers, shared, active = strand.registers, strand.cta.shared, strand.active(mask)
        targets, sources, sizes = (
            lanes_of(read(registers), strand.lanes)[active] for read in (target, source, filled)
        )
        places = shared.indices(targets, size, size)
        warps = strand.lane_warps[active]
        shared.start_fill(warps, places, strand.counts["fills"] + 1)
        waited = strand.waited
        (brought,) = np.nonzero(sizes == size)
        (partly,) = np.nonzero((sizes > 0) & (sizes < size))

        def arrive() -> None:
            values = np.zeros(places.shape, np.uint8)
            if brought.size:
                values[brought] = memory.load(sources[brought], size, size, waited)
            for lane in partly:
                values[lane, : sizes[lane]] = memory.load(
                    sources[lane : lane + 1], int(sizes[lane]), 1, waited
                )
            shared.bytes[places] = values

        strand.fills[-1].append(Job(arrive))

    return run


@instruction(r"cp\.async\.(bulk\.)?(?:commit_group|(wait_group)(?:\.read)?|(wait_all))")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    kind = "copies" if found[1] else "fills"
    left = parsed.operands[0].value if found[2] else 0

    def run(strand: Any, mask: Value) -> None:
        groups = getattr(strand, kind)
        if not found[2] or found[3]:
            groups.append([])
            strand.counts[kind] += 1
        if not found[2] and not found[3]:
            return
        while len(groups) - 1 > left:
            for job in groups.pop(0):
                job.finish()
        clocks = strand.cta.clocks
        numbers = np.arange(strand.first, strand.last)
        agents = clocks.copies_of(numbers) if found[1] else clocks.fills_of(numbers)
        clocks.known[numbers, agents] = strand.counts[kind] - (len(groups) - 1)

    return run
