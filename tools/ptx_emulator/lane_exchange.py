"""Instructions that a warp's lanes execute together: shuffles, votes, elect."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .decoding import Decoder, Run, instruction, lanes_of
from .errors import UnknownInstructionError
from .numbers import Value
from .parser import Instruction, Vector
from .strands import LANES

_LANE = np.arange(LANES)


@instruction(r"elect\.sync")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    leader, elected = decoder.writers(parsed.operands[0])

    def run(strand: Any, mask: Value) -> None:
        leader(strand, np.uint32(0), mask)
        elected(strand, np.arange(strand.lanes) % LANES == 0, mask)

    return run


@instruction(r"shfl\.sync\.(idx|bfly|down|up)\.b32")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    target, value, by = parsed.operands[:3]
    if isinstance(target, Vector):
        raise UnknownInstructionError(f"{parsed} is not known")
    write, read, read_by = decoder.writer(target), decoder.reader(value, "b32"), decoder.reader(by, "s32")
    of_clamp = decoder.reader(parsed.operands[3], "b32")

    def run(strand: Any, mask: Value) -> None:
        registers = strand.registers
        values = lanes_of(read(registers), strand.lanes)
        by, clamp = np.int64(0) + read_by(registers), lanes_of(of_clamp(registers), strand.lanes)
        lane = np.arange(strand.lanes) % LANES
        # The clamp has a mask of sub-warps above, the last lane of one below.
        segment = (clamp >> np.uint32(8)).astype(np.int64) & 31
        low = lane & segment
        high = low | (clamp.astype(np.int64) & 31 & ~segment)
        if found[1] == "idx":
            source = low | (by & ~segment & 31)
        else:
            source = {"bfly": lane ^ by, "down": lane + by, "up": lane - by}[found[1]]
        inside = source >= (clamp.astype(np.int64) & 31 | low) if found[1] == "up" else source <= high
        source = np.where(inside, source, lane)
        write(strand, values[np.arange(strand.lanes) // LANES * LANES + source], mask)

    return run


@instruction(r"vote\.sync\.(ballot\.b32|any\.pred|all\.pred)")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    write, read = decoder.writer(parsed.operands[0]), decoder.reader(parsed.operands[1], "pred")

    def run(strand: Any, mask: Value) -> None:
        votes = lanes_of(read(strand.registers), strand.lanes).reshape(-1, LANES)
        if found[1] == "ballot.b32":
            result = (votes.astype(np.uint64) << _LANE.astype(np.uint64)).sum(1).astype(np.uint32)
        else:
            result = votes.any(1) if found[1] == "any.pred" else votes.all(1)
        write(strand, np.repeat(result, LANES), mask)

    return run


@instruction(r"redux\.sync\.(add|min|max|and|or|xor)\.([bsu]32)")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    write, read = decoder.writer(parsed.operands[0]), decoder.reader(parsed.operands[1], found[2])
    reduce: Any = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[found[1]]

    def run(strand: Any, mask: Value) -> None:
        values = lanes_of(read(strand.registers), strand.lanes).reshape(-1, LANES)
        write(strand, np.repeat(reduce.reduce(values, axis=1, dtype=values.dtype), LANES), mask)

    return run
