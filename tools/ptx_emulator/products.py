"""Matrix instructions: wgmma, which runs asynchronously and reads shared memory, and mma.sync.

Float products are summed in float64 and rounded to float32 once per instruction; a GPU rounds differently within an
instruction. Integer products are exact. Of a tile of results or of a left operand, lane l of a warp holds rows l / 4
and l / 4 + 8, and pairs (of bytes: fours) of neighbours in columns that begin with l mod 4.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .copies import swizzled
from .decoding import Decoder, Run, instruction, items_of, lanes_of
from .errors import UnknownInstructionError
from .numbers import HALVES, Value
from .parser import Instruction, Vector
from .strands import LANES, Job

_GROUP = 4  # warps that wgmma belongs to
_ROWS = 64
#: Bits 62 and 63 of a matrix descriptor → swizzle.
_DESCRIPTOR_SWIZZLES = {0: 0, 1: 128, 2: 64, 3: 32}


def _numbers(raw: Any, kind: str) -> Any:
    """uint8 [rows, bytes] → float64, or float32 for int8, whose sums of an instruction are exact in it."""
    if kind == "s8":
        return raw.view(np.int8).astype(np.float32)
    return HALVES[kind][0](np.ascontiguousarray(raw).view(np.uint16)).astype(np.float64)


def _left(registers: list[Any], kind: str) -> Any:
    """[warps, 16, columns] of the four registers of each lane."""
    words = np.stack(registers).reshape(2, 2, -1, 8, 4)  # halves of columns, of rows; warps, rows, places
    raw = np.ascontiguousarray(words.transpose(2, 1, 3, 0, 4)).view(np.uint8)
    return _numbers(raw.reshape(-1, 32), kind).reshape(raw.shape[0], 16, -1)


def _results(products: Any, registers: list[Any], kind: str) -> list[Any]:
    """The registers of results [warps, 16, columns], added to those before."""
    warps, _, columns = products.shape
    parts = products.reshape(warps, 2, 8, columns // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4)
    added = parts.reshape(columns // 2, warps * LANES)
    before = (
        np.stack([np.broadcast_to(value, warps * LANES) for value in registers])
        if registers
        else np.uint32(0)
    )
    if kind == "s8":
        sums = before.view(np.int32) + added.astype(np.int32)
    else:
        sums = (before.view(np.float32).astype(np.float64) + added).astype(np.float32)
    return list(sums.view(np.uint32))


@functools.lru_cache(maxsize=4096)
def _places(descriptor: int, rows: int) -> tuple[Any, Any]:
    """(bytes [rows, 32], first bytes of chunks [rows, 2]) of a matrix whose rows' first 32 bytes are meant."""
    swizzle = _DESCRIPTOR_SWIZZLES[descriptor >> 62 & 3]
    if swizzle == 0:
        raise UnknownInstructionError("a matrix without swizzle")
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    row = np.arange(rows)[:, None]
    places = swizzled(start + row // 8 * stride + row % 8 * swizzle + np.arange(32), swizzle)
    return places, places[:, ::16]


@instruction(
    r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(?:16|32)\.(?:f32\.(bf16)\.bf16|f32\.(f16)\.f16|s32\.(s8)\.s8)"
)
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    columns, kind = int(found[1]), found[2] or found[3] or found[4]
    sums, left, right, adds, *immediates = parsed.operands
    if kind != "s8" and [item.value for item in immediates] != [1, 1, *[0] * (len(immediates) - 2)]:
        raise UnknownInstructionError(f"{parsed}: negated or transposed operands")
    results = [item.index for item in sums.items]
    assert len(results) == columns // 2
    in_registers = isinstance(left, Vector)
    left_readers = decoder.readers(items_of(left), "b32" if in_registers else "b64")
    read_right, read_adds = decoder.reader(right, "b64"), decoder.reader(adds, "pred")
    used = frozenset(results) | (
        frozenset(item.index for item in left.items) if in_registers else frozenset()
    )

    def run(strand: Any, mask: Value) -> None:
        assert mask is None
        assert strand.first % _GROUP == 0
        assert strand.last % _GROUP == 0
        registers, shared = strand.registers, strand.cta.shared
        step = _GROUP * LANES
        rights = [int(value) for value in lanes_of(read_right(registers), strand.lanes)[::step]]
        values = [lanes_of(read(registers), strand.lanes) for read in left_readers]
        adding = bool(np.all(read_adds(registers)))
        time = strand.counts["products"] + 1
        lefts: list[int] = []
        if not in_registers:
            lefts = [int(value) for value in values[0][::step]]
        for group, descriptor in enumerate(rights):
            warps = slice(strand.first + _GROUP * group, strand.first + _GROUP * (group + 1))
            shared.start_reading(warps, "products", _places(descriptor, columns)[1], time)
            if lefts:
                shared.start_reading(warps, "products", _places(lefts[group], _ROWS)[1], time)

        def multiply() -> None:
            found = []
            rows = _left(values, kind) if in_registers else None
            for group, descriptor in enumerate(rights):
                b = _numbers(shared.bytes[_places(descriptor, columns)[0]], kind)
                if rows is None:
                    a = _numbers(shared.bytes[_places(lefts[group], _ROWS)[0]], kind)
                else:
                    a = rows[_GROUP * group : _GROUP * (group + 1)].reshape(_ROWS, -1)
                found.append((a @ b.T).reshape(_GROUP, 16, columns))
            before = [strand.registers[index] for index in results] if adding else []
            for index, value in zip(results, _results(np.concatenate(found), before, kind), strict=True):
                strand.registers[index] = value

        strand.products[-1].append(Job(multiply))
        strand.in_flight |= used

    return run


@instruction(r"wgmma\.(commit_group|wait_group)\.sync\.aligned")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    def run(strand: Any, mask: Value) -> None:
        groups = strand.products
        if found[1] == "commit_group":
            groups.append([])
            strand.counts["products"] += 1
            return
        # The group that is open is not waited for.
        while len(groups) - 1 > parsed.operands[0].value:
            for job in groups.pop(0):
                job.finish()
        if not any(groups):
            strand.in_flight = frozenset()
        clocks, numbers = strand.cta.clocks, np.arange(strand.first, strand.last)
        clocks.known[numbers, clocks.products_of(numbers)] = strand.counts["products"] - (len(groups) - 1)

    return run


@instruction(
    r"mma\.sync\.aligned\.m16n8k(?:16|32)\.row\.col\.(?:satfinite\.)?"
    r"(?:f32\.(bf16)\.bf16\.f32|f32\.(f16)\.f16\.f32|s32\.(s8)\.s8\.s32)"
)
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    kind = found[1] or found[2] or found[3]
    sums, left, right, before = parsed.operands
    writers = decoder.writers(sums)
    readers: list[list[Callable[[Any], Any]]] = [
        decoder.readers(items.items, "b32") for items in (left, right, before)
    ]

    def run(strand: Any, mask: Value) -> None:
        assert mask is None, "a product of some lanes of a warp"
        a, b, c = (
            [lanes_of(read(strand.registers), strand.lanes) for read in operand] for operand in readers
        )
        words = np.stack(b).reshape(2, -1, 8, 4).transpose(1, 2, 0, 3)  # warps, columns, halves, places
        raw = np.ascontiguousarray(words).view(np.uint8)
        columns = _numbers(raw.reshape(-1, 32), kind).reshape(raw.shape[0], 8, -1)
        products = _left(a, kind) @ columns.transpose(0, 2, 1)
        for write, value in zip(writers, _results(products, c, kind), strict=True):
            write(strand, value, None)

    return run
