"""A few instructions of PTX, so that what kernels write as inline assembly is checked too, bit by bit.

`inline_asm_elementwise` hands `pack` neighbouring elements of each operand to one run of the assembly, packed into
registers of up to 32 bits, the first element lowest. Registers are held here as int64 tensors, one entry for each run.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def run_assembly(assembly: str, inputs: list[Tensor], dtypes: list[torch.dtype], pack: int) -> list[Tensor]:
    """What an assembly text makes of tensors of one shape: one result of that shape for each dtype."""
    shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    runs = shape.numel() // pack
    if runs * pack != shape.numel():
        raise NotImplementedError(f"{shape.numel()} elements in packs of {pack}")
    counts = [_registers_of(dtype, pack) for dtype in dtypes]
    registers = {f"${i}": torch.zeros(runs, dtype=torch.int64) for i in range(sum(counts))}
    for x in inputs:
        for register in _packed(x.expand(shape).reshape(runs, pack)):
            registers[f"${len(registers)}"] = register
    for line in re.sub(r"//[^\n]*|[{}]", "", assembly).split(";"):
        instruction, _, operands = line.strip().partition(" ")
        if instruction and instruction != ".reg":
            _execute(instruction, [operand.strip() for operand in operands.split(",")], registers)
    results, first = [], 0
    for dtype, count in zip(dtypes, counts, strict=True):
        words = [registers[f"${first + i}"] for i in range(count)]
        results.append(_unpacked(words, dtype, pack).reshape(shape))
        first += count
    return results


def _execute(instruction: str, operands: list[str], registers: dict[str, Tensor]) -> None:
    target, *sources = operands
    operation = _INSTRUCTIONS.get(instruction)
    if operation is None:
        raise NotImplementedError(f"the Gluon emulator does not know the instruction {instruction}")
    values = [
        registers[source] if source in registers else torch.tensor(int(source, 0) & _WORD)
        for source in sources
    ]
    runs = next(iter(registers.values())).shape
    registers[target] = (operation(*values) & _WORD).expand(runs)


def _per_register(dtype: torch.dtype, pack: int) -> int:
    """How many elements share a register."""
    return min(pack, max(1, 4 // dtype.itemsize))


def _registers_of(dtype: torch.dtype, pack: int) -> int:
    return pack // _per_register(dtype, pack)


def _packed(x: Tensor) -> list[Tensor]:
    """[runs, pack] → the registers that hold a run's elements."""
    per, bits = _per_register(x.dtype, x.shape[1]), 8 * x.element_size()
    whole = x.contiguous().view(_BITS[x.element_size()]).to(torch.int64) & ((1 << bits) - 1)
    return [
        torch.stack([whole[:, first + i] << bits * i for i in range(per)]).sum(dim=0)
        for first in range(0, x.shape[1], per)
    ]


def _unpacked(registers: list[Tensor], dtype: torch.dtype, pack: int) -> Tensor:
    """The reverse: [runs, pack] of dtype."""
    per, bits = _per_register(dtype, pack), 8 * dtype.itemsize
    parts = [(register >> bits * i) & ((1 << bits) - 1) for register in registers for i in range(per)]
    return torch.stack(parts, dim=1).to(_BITS[dtype.itemsize]).view(dtype)


def _lop3(a: Tensor, b: Tensor, c: Tensor, table: Tensor) -> Tensor:
    """Bit by bit: the entry of the table at (bit of a, bit of b, bit of c)."""
    result = torch.zeros_like(a)
    for entry in range(8):
        if int(table) >> entry & 1:
            terms = (x if entry >> place & 1 else ~x for x, place in ((a, 2), (b, 1), (c, 0)))
            first, second, third = terms
            result = result | (first & second & third)
    return result


def _prmt(a: Tensor, b: Tensor, selector: Tensor) -> Tensor:
    """Each byte: one of the eight of (b, a), or, with the fourth bit set, its sign eight times."""
    both = [(x >> 8 * i) & 0xFF for x in (a, b) for i in range(4)]
    result = torch.zeros_like(a)
    for place in range(4):
        choice = int(selector) >> 4 * place & 0xF
        byte = both[choice & 7]
        result = result | ((byte >> 7) * 0xFF if choice & 8 else byte) << 8 * place
    return result


def _on_pairs(dtype: torch.dtype, operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operation on both halves of a register, exact and rounded once."""

    def compute(*words: Tensor) -> Tensor:
        def half(word: Tensor, shift: int) -> Tensor:
            return ((word >> shift) & 0xFFFF).to(torch.int16).view(dtype).double()

        low, high = (
            operation(*(half(word, shift) for word in words)).to(dtype).view(torch.int16).to(torch.int64)
            & 0xFFFF
            for shift in (0, 16)
        )
        return low | high << 16

    return compute


_INSTRUCTIONS: dict[str, Callable[..., Tensor]] = {
    "mov.b32": lambda a: a,
    "mov.u32": lambda a: a,
    "cvt.u32.u16": lambda a: a & 0xFFFF,
    "shr.u32": torch.bitwise_right_shift,
    "shl.b32": torch.bitwise_left_shift,
    "and.b32": torch.bitwise_and,
    "or.b32": torch.bitwise_or,
    "xor.b32": torch.bitwise_xor,
    "lop3.b32": _lop3,
    "prmt.b32": _prmt,
}
for _name, _dtype in (("bf16x2", torch.bfloat16), ("f16x2", torch.float16)):
    _INSTRUCTIONS[f"add.rn.{_name}"] = _on_pairs(_dtype, torch.add)
    _INSTRUCTIONS[f"sub.rn.{_name}"] = _on_pairs(_dtype, torch.sub)
    _INSTRUCTIONS[f"mul.rn.{_name}"] = _on_pairs(_dtype, torch.mul)
    _INSTRUCTIONS[f"fma.rn.{_name}"] = _on_pairs(_dtype, lambda a, b, c: a * b + c)
