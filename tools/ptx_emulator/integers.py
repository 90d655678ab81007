"""Moves, integer arithmetic, bits, comparisons."""

from __future__ import annotations

import operator
import re
from typing import Any

import numpy as np

from .decoding import Decoder, Run, computed, instruction, items_of, pure
from .errors import UnknownInstructionError
from .numbers import Value, either, halves, joined
from .parser import DTYPES, Instruction, Vector

_BYTES = [np.uint64(8 * i) for i in range(8)]
_MASK32 = np.uint64(0xFFFFFFFF)

pure(r"add\.([su](?:16|32|64))", operator.add)
pure(r"sub\.([su](?:16|32|64))", operator.sub)
pure(r"mul\.lo\.([su](?:16|32|64))", operator.mul)
pure(r"mad\.lo\.([su](?:16|32|64))", lambda a, b, c: a * b + c)
pure(r"min\.([su](?:16|32|64))", np.minimum)
pure(r"max\.([su](?:16|32|64))", np.maximum)
pure(r"neg\.(s(?:16|32|64))", operator.neg)
pure(r"abs\.(s(?:16|32|64))", np.abs)
pure(r"and\.(b16|b32|b64|pred)", operator.and_)
pure(r"or\.(b16|b32|b64|pred)", operator.or_)
pure(r"xor\.(b16|b32|b64|pred)", operator.xor)
pure(r"not\.(b16|b32|b64|pred)", operator.invert)
pure(r"popc\.(b32)", np.bitwise_count)
pure(r"clz\.(b32)", lambda a: np.uint32(32) - np.ceil(np.log2(a.astype(np.float64) + 1)).astype(np.uint32))


@instruction(r"mov\.(b16|u16|s16|b32|u32|s32|f32|b64|u64|s64|f64|pred)")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    target, source = parsed.operands
    width = {"b16": 16, "b32": 32, "b64": 64}.get(found[1], 0)
    if isinstance(source, Vector):
        part = np.dtype(f"u{width // 8 // len(source.items)}")
        readers, whole = decoder.readers(source.items, part), np.dtype(f"u{width // 8}")

        def join(*parts: Value) -> Value:
            value = whole.type(0)
            for place, item in enumerate(parts):
                value = value | (item.astype(whole) << whole.type(8 * part.itemsize * place))
            return value

        return computed(decoder, parsed, join, readers)
    if isinstance(target, Vector):
        writers, read = decoder.writers(target), decoder.reader(source, found[1])
        part = np.dtype(f"u{width // 8 // len(writers)}")
        shifts = [DTYPES[found[1]].type(8 * part.itemsize * place) for place in range(len(writers))]

        def run(strand: Any, mask: Value) -> None:
            value = read(strand.registers)
            for write, shift in zip(writers, shifts, strict=True):
                write(strand, (value >> shift).astype(part), mask)

        return run
    return computed(decoder, parsed, lambda value: value, [decoder.reader(source, found[1])])


@instruction(r"ld\.param\.(\w+)")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    return computed(decoder, parsed, lambda value: value, [decoder.reader(parsed.operands[1].base, found[1])])


@instruction(r"cvta(?:\.to)?\.\w+\.u64")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    return computed(decoder, parsed, lambda value: value, [decoder.reader(parsed.operands[1], "u64")])


@instruction(r"(shl|shr)\.([bsu](?:16|32|64))")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    dtype = DTYPES[found[2]]
    last, nothing = np.uint32(8 * dtype.itemsize - 1), dtype.type(0)

    def shift(value: Value, by: Value) -> Value:
        inside = np.minimum(by, last).astype(dtype)
        if found[1] == "shr":
            shifted = value >> inside
            return shifted if found[2][0] == "s" else either(by > last, nothing, shifted)
        return either(by > last, nothing, value << inside)

    _, value, by = parsed.operands
    return computed(decoder, parsed, shift, [decoder.reader(value, dtype), decoder.reader(by, "u32")])


@instruction(r"(div|rem)\.([su](?:16|32|64))")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    wanted_quotient = found[1] == "div"

    def divide(a: Value, b: Value) -> Value:
        b = np.where(b == 0, b.dtype.type(1), b)  # undefined; lanes that are masked out do it
        rest = np.fmod(a, b)
        return (a - rest) // b if wanted_quotient else rest

    return computed(decoder, parsed, divide, decoder.readers(parsed.operands[1:], found[2]))


@instruction(r"mul\.hi\.([su])32")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    wide = np.int64 if found[1] == "s" else np.uint64
    readers = decoder.readers(parsed.operands[1:], f"{found[1]}32")
    return computed(
        decoder,
        parsed,
        lambda a, b: ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(np.uint32),
        readers,
    )


@instruction(r"(?:mul|mad)\.wide\.([su])(16|32)")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    wide = np.dtype(f"{'i' if found[1] == 's' else 'u'}{int(found[2]) // 4}")
    readers = decoder.readers(parsed.operands[1:3], found[1] + found[2])
    readers += decoder.readers(parsed.operands[3:], wide)

    def multiply(a: Value, b: Value, *added: Value) -> Value:
        return sum(added, a.astype(wide) * b.astype(wide))

    return computed(decoder, parsed, multiply, readers)


@instruction(r"bfe\.([su])32")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    _, value, place, length = parsed.operands
    readers = [decoder.reader(value, "u32"), decoder.reader(place, "u64"), decoder.reader(length, "u64")]

    def extract(value: Value, place: Value, length: Value) -> Value:
        field = (value.astype(np.uint64) >> place) & ((np.uint64(1) << length) - np.uint64(1))
        if found[1] == "s":
            sign = np.uint64(1) << (length - np.uint64(1))
            field = (field ^ sign) - sign
        return field.astype(np.uint32)

    return computed(decoder, parsed, extract, readers)


@instruction(r"lop3\.b32")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    table = parsed.operands[4].value

    def look_up(a: Value, b: Value, c: Value) -> Value:
        result = np.uint32(0)
        for row in range(8):
            if table >> row & 1:
                result = result | (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    return computed(decoder, parsed, look_up, decoder.readers(parsed.operands[1:4], "b32"))


@instruction(r"prmt\.b32")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    def permute(a: Value, b: Value, selectors: Value) -> Value:
        both, result = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32), np.uint64(0)
        for place in range(4):
            selector = selectors.astype(np.uint64) >> np.uint64(4 * place)
            byte = (both >> ((selector & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = (byte >> np.uint64(7)) * np.uint64(255)
            byte = np.where(selector & np.uint64(8), sign, byte)
            result = result | byte << _BYTES[place]
        return result.astype(np.uint32)[()]

    return computed(decoder, parsed, permute, decoder.readers(parsed.operands[1:], "b32"))


@instruction(r"shf\.([lr])\.wrap\.b32")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    def funnel(low: Value, high: Value, by: Value) -> Value:
        both, by = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32), by & np.uint64(31)
        moved = both >> by if found[1] == "r" else both << by >> np.uint64(32)
        return (moved & _MASK32).astype(np.uint32)

    low, high, by = parsed.operands[1:]
    readers = [decoder.reader(low, "b32"), decoder.reader(high, "b32"), decoder.reader(by, "b64")]
    return computed(decoder, parsed, funnel, readers)


@instruction(r"selp\.(\w+)")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    readers = [*decoder.readers(parsed.operands[1:3], found[1]), decoder.reader(parsed.operands[3], "pred")]
    return computed(decoder, parsed, lambda a, b, first: either(first, a, b), readers)


_COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    **dict.fromkeys(("lt", "lo"), operator.lt),
    **dict.fromkeys(("le", "ls"), operator.le),
    **dict.fromkeys(("gt", "hi"), operator.gt),
    **dict.fromkeys(("ge", "hs"), operator.ge),
}


@instruction(r"setp\.(eq|ne|lt|le|gt|ge|lo|ls|hi|hs)(?:\.(and|or))?\.([bsu](?:16|32|64))")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    compare = _COMPARISONS[found[1]]
    readers = decoder.readers(parsed.operands[1:3], found[3])
    if found[2] is None:
        return computed(decoder, parsed, compare, readers)
    combine = operator.and_ if found[2] == "and" else operator.or_
    readers.append(decoder.reader(parsed.operands[3], "pred"))
    return computed(decoder, parsed, lambda a, b, c: combine(compare(a, b), c), readers)


@instruction(r"(add|sub|min|max)\.([su])16x2")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    functions: dict[str, Any] = {
        "add": operator.add,
        "sub": operator.sub,
        "min": np.minimum,
        "max": np.maximum,
    }
    compute = functions[found[1]]
    dtype = DTYPES[f"{found[2]}16"]

    def both(a: Value, b: Value) -> Value:
        parts = [compute(x.view(dtype), y.view(dtype)) for x, y in zip(halves(a), halves(b), strict=True)]
        return joined(parts[0].view(np.uint16), parts[1].view(np.uint16))

    return computed(decoder, parsed, both, decoder.readers(parsed.operands[1:], "b32"))


@instruction(r"cvt\.([su](?:8|16|32|64))\.([su](?:8|16|32|64))")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    target = DTYPES[found[1]]
    if len(items_of(parsed.operands[0])) != 1:
        raise UnknownInstructionError(f"{parsed} is not known")
    return computed(
        decoder,
        parsed,
        # A register wider than its value is filled up with the value's sign.
        lambda value: value.astype(target),
        [decoder.reader(parsed.operands[1], found[2])],
    )
