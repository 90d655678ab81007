"""Loads, stores and atomic operations, of global and shared memory; matrices of 8 × 8 halves."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .decoding import Decoder, Run, instruction, items_of, lanes_of
from .numbers import Value
from .parser import DTYPES, Instruction
from .strands import LANES

_WORDS = r"(?:\.(?:volatile|relaxed|acquire|release|weak|gpu|cta|sys|ca|cg|cs|cv|wb|lu|nc|L1::\w+|L2::\w+))*"
_TYPES = r"([bsu](?:8|16|32|64)|f32|f64)"


@instruction(rf"ld{_WORDS}\.(global|shared)(?:::cta)?{_WORDS}(?:\.v([24]))?\.{_TYPES}")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    writers, address = decoder.writers(parsed.operands[0]), decoder.address(parsed.operands[1])
    dtype, space = DTYPES[found[3]], found[1]
    size, memory = dtype.itemsize * len(writers), decoder.machine.memory

    def run(strand: Any, mask: Value) -> None:
        addresses = lanes_of(address(strand.registers), strand.lanes)
        warps = strand.lane_warps
        if mask is not None:
            addresses, warps = addresses[mask], warps[mask]
        if space == "global":
            loaded = memory.load(addresses, size, size, strand.waited)
        else:
            shared = strand.cta.shared
            loaded = shared.load(warps, shared.indices(addresses, size, size))
        values = loaded.view(dtype).T
        for write, value in zip(writers, values, strict=True):
            if mask is not None:
                whole = np.zeros(strand.lanes, dtype)
                whole[mask] = value
                value = whole
            write(strand, np.ascontiguousarray(value), mask)

    return run


@instruction(rf"st{_WORDS}\.(global|shared)(?:::cta)?{_WORDS}(?:\.v([24]))?\.{_TYPES}")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    address = decoder.address(parsed.operands[0])
    readers = decoder.readers(items_of(parsed.operands[1]), found[3])
    dtype, space, memory = DTYPES[found[3]], found[1], decoder.machine.memory
    size = dtype.itemsize * len(readers)

    def run(strand: Any, mask: Value) -> None:
        registers = strand.registers
        addresses = lanes_of(address(registers), strand.lanes)
        values = np.empty((strand.lanes, len(readers)), dtype)
        for place, read in enumerate(readers):
            values[:, place] = read(registers)
        warps = strand.lane_warps
        if mask is not None:
            addresses, values, warps = addresses[mask], values[mask], warps[mask]
        stored = values.view(np.uint8)
        if space == "global":
            memory.store(addresses, stored, size, strand.waited)
        else:
            shared = strand.cta.shared
            shared.store(warps, shared.indices(addresses, size, size), stored)

    return run


_ATOMIC: dict[str, Any] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
}


@instruction(
    rf"(atom|red){_WORDS}\.(global|shared)(?:::cta)?(?:\.\w+)*?\.(add|min|max|and|or|xor|exch)\.{_TYPES}"
)
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    operands = list(parsed.operands)
    write = decoder.writer(operands.pop(0) if found[1] == "atom" else None)
    address, read = decoder.address(operands[0]), decoder.reader(operands[1], found[4])
    dtype, space, memory = DTYPES[found[4]], found[2], decoder.machine.memory
    operation, size = _ATOMIC[found[3]], DTYPES[found[4]].itemsize

    def run(strand: Any, mask: Value) -> None:
        registers = strand.registers
        addresses = lanes_of(address(registers), strand.lanes)
        values = lanes_of(read(registers), strand.lanes)
        before = np.zeros(strand.lanes, dtype)
        for lane in strand.active(mask):
            place = addresses[lane : lane + 1]
            if space == "global":
                before[lane] = old = memory.load(place, size, size, strand.waited).view(dtype)[0, 0]
                new = np.array([[operation(old, values[lane])]], dtype)
                memory.store(place, new.view(np.uint8), size, strand.waited)
            else:
                shared = strand.cta.shared
                indices = shared.indices(place, size, size)
                before[lane] = old = shared.load(strand.lane_warps[lane : lane + 1], indices).view(dtype)[
                    0, 0
                ]
                # Atomic operations do not race with each other: none is taken for a store.
                shared.bytes[indices] = np.array([[operation(old, values[lane])]], dtype).view(np.uint8)
        write(strand, before, mask)

    return run


def _matrix_rows(strand: Any, addresses: Value, count: int) -> tuple[Any, Any]:
    """(warps, bytes' places [warps, count, 8, 16]) of the rows whose addresses each warp's first lanes hold."""
    rows = lanes_of(addresses, strand.lanes).reshape(-1, LANES)[:, : 8 * count]
    warps = np.repeat(np.arange(strand.first, strand.last), 8 * count)
    return warps, strand.cta.shared.indices(rows.ravel(), 16, 16)


@instruction(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    """A lane gets two neighbours of row lane / 4 of each matrix."""
    writers, address, count = (
        decoder.writers(parsed.operands[0]),
        decoder.address(parsed.operands[1]),
        int(found[1]),
    )

    def run(strand: Any, mask: Value) -> None:
        loaded = strand.cta.shared.load(*_matrix_rows(strand, address(strand.registers), count))
        matrices = loaded.view(np.uint16).reshape(-1, count, 8, 8)
        if found[2]:
            matrices = matrices.transpose(0, 1, 3, 2)
        words = (
            np.ascontiguousarray(matrices.transpose(1, 0, 2, 3)).view(np.uint32).reshape(count, strand.lanes)
        )
        for write, value in zip(writers, words, strict=True):
            write(strand, value, mask)

    return run


@instruction(r"stmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    address, count = decoder.address(parsed.operands[0]), int(found[1])
    readers = decoder.readers(items_of(parsed.operands[1]), "b32")

    def run(strand: Any, mask: Value) -> None:
        assert mask is None, "a matrix stored by some lanes of a warp"
        registers = strand.registers
        words = np.stack([lanes_of(read(registers), strand.lanes) for read in readers])
        matrices = words.view(np.uint16).reshape(count, -1, 8, 8).transpose(1, 0, 2, 3)
        if found[2]:
            matrices = matrices.transpose(0, 1, 3, 2)
        values = np.ascontiguousarray(matrices).reshape(-1, 8).view(np.uint8)
        strand.cta.shared.store(*_matrix_rows(strand, address(registers), count), values)

    return run
