"""From a parsed instruction to a Python function, once per instruction of a launch.

`@instruction(pattern)` registers what makes such functions for all opcodes that the pattern matches. They are called
with the strand of warps that executes (strands.py) and a mask of its lanes, or None for all of them, and return where
to go on, or None for the next instruction. `pure` is for those that compute one value from others.

The value of a register is an array of all lanes of a strand, never changed in place, or one number where all lanes have
the same.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UnknownInstructionError
from .numbers import Value
from .parser import DTYPES, Address, Immediate, Instruction, Program, Register, Symbol, Vector

if TYPE_CHECKING:
    from .machine import Machine
    from .strands import Strand

Run = Callable[["Strand", Value], "int | None"]
Reader = Callable[[list[Value]], Value]
Writer = Callable[["Strand", Value, Value], None]
_BITS = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}


@dataclasses.dataclass
class Decoder:
    """What a decoded instruction may refer to: the program, and the launch."""

    program: Program
    machine: Machine

    def decode(self, instruction: Instruction) -> Run:
        """The function that executes an instruction."""
        found = _maker(instruction.opcode)
        if found is None:
            raise UnknownInstructionError(f"{instruction} is not known")
        return found[0](self, instruction, found[1])

    def reader(self, operand: Any, dtype: Any) -> Reader:
        """A function from a strand's registers to the operand's value as dtype, or the name of one."""
        dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        if isinstance(operand, Symbol):
            operand = Immediate(self.machine.symbols[operand.name])
        if isinstance(operand, Immediate):
            constant = _constant(operand.value, dtype)
            return lambda registers: constant
        if not isinstance(operand, Register):
            raise UnknownInstructionError(f"{operand} as a value")
        index = operand.index
        if operand.dtype == dtype:
            return lambda registers: registers[index]
        if operand.dtype.itemsize == dtype.itemsize:
            return lambda registers: registers[index].view(dtype)
        bits = _BITS[dtype.itemsize]
        return lambda registers: registers[index].astype(bits).view(dtype)

    def readers(self, operands: Any, dtype: Any) -> list[Reader]:
        """One for each."""
        return [self.reader(operand, dtype) for operand in operands]

    def writer(self, operand: Any) -> Writer:
        """A function that puts a value into a register of a strand, of the lanes of a mask."""
        if operand is None:
            return lambda strand, value, mask: None
        if not isinstance(operand, Register):
            raise UnknownInstructionError(f"{operand} as a destination")
        index, dtype = operand.index, operand.dtype

        def write(strand: Strand, value: Value, mask: Value) -> None:
            if value.dtype != dtype:
                value = value.view(dtype) if value.dtype.itemsize == dtype.itemsize else value.astype(dtype)
            registers = strand.registers
            registers[index] = value if mask is None else np.where(mask, value, registers[index])

        return write

    def writers(self, operand: Any) -> list[Writer]:
        """Of a vector's items, or of one operand."""
        return [self.writer(item) for item in items_of(operand)]

    def address(self, operand: Address) -> Reader:
        """Addresses, int64."""
        base, offset = self.reader(operand.base, "b64"), np.int64(operand.offset)
        return lambda registers: base(registers).astype(np.int64) + offset


def items_of(operand: Any) -> tuple[Any, ...]:
    """A vector's items, or the operand alone."""
    return operand.items if isinstance(operand, Vector) else (operand,)


def lanes_of(value: Value, lanes: int) -> Value:
    """One value per lane."""
    return value if np.ndim(value) else np.full(lanes, value)


def _constant(value: int, dtype: Any) -> Value:
    if dtype == np.bool_:
        return np.bool_(value)
    bits: Any = _BITS[dtype.itemsize]
    return np.array(value & (2 ** (8 * dtype.itemsize) - 1), dtype=bits).view(dtype)[()]


Maker = Callable[[Decoder, Instruction, "re.Match[str]"], Run]
_MAKERS: list[tuple[re.Pattern[str], Maker]] = []


@functools.cache
def _maker(opcode: str) -> tuple[Maker, re.Match[str]] | None:
    for pattern, make in _MAKERS:
        found = pattern.fullmatch(opcode)
        if found is not None:
            return make, found
    return None


def instruction(pattern: str) -> Callable[[Maker], Maker]:
    """Register what decodes the opcodes that match, of which no other pattern matches any."""

    def register(make: Maker) -> Maker:
        _MAKERS.append((re.compile(pattern), make))
        return make

    return register


def pure(pattern: str, compute: Callable[..., Value], *, group: int = 1) -> None:
    """Register opcodes that compute their destination from operands, all of the type that the pattern's group names."""

    def make(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
        return computed(decoder, parsed, compute, decoder.readers(parsed.operands[1:], found[group]))

    _MAKERS.append((re.compile(pattern), make))


def computed(
    decoder: Decoder, parsed: Instruction, compute: Callable[..., Value], readers: list[Reader]
) -> Run:
    """An instruction that writes compute(operands) to its first operand."""
    write = decoder.writer(parsed.operands[0])
    if len(readers) == 1:
        (first,) = readers

        def run(strand: Strand, mask: Value) -> None:
            write(strand, compute(first(strand.registers)), mask)

    elif len(readers) == 2:
        first, second = readers

        def run(strand: Strand, mask: Value) -> None:
            registers = strand.registers
            write(strand, compute(first(registers), second(registers)), mask)

    else:

        def run(strand: Strand, mask: Value) -> None:
            registers = strand.registers
            write(strand, compute(*[read(registers) for read in readers]), mask)

    return run
