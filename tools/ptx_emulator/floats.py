"""Floating-point arithmetic, comparisons and conversions; approximate functions are as exact as float32 is."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

import numpy as np

from .decoding import Decoder, Run, computed, instruction, pure
from .errors import UnknownInstructionError
from .numbers import HALVES, Value, clipped, halves, joined
from .parser import DTYPES, Instruction


def fused_multiply_add(a: Value, b: Value, c: Value) -> Value:
    """float32; the product is exact, as float64."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


pure(r"add(?:\.rn)?(?:\.ftz)?\.(f32)", operator.add)
pure(r"sub(?:\.rn)?(?:\.ftz)?\.(f32)", operator.sub)
pure(r"mul(?:\.rn)?(?:\.ftz)?\.(f32)", operator.mul)
pure(r"fma\.rn(?:\.ftz)?\.(f32)", fused_multiply_add)
pure(r"div\.(?:rn|full|approx)(?:\.ftz)?\.(f32)", operator.truediv)
pure(r"rcp\.(?:rn|approx)(?:\.ftz)?\.(f32)", lambda a: np.float32(1) / a)
pure(r"sqrt\.(?:rn|approx)(?:\.ftz)?\.(f32)", np.sqrt)
pure(r"rsqrt\.approx(?:\.ftz)?\.(f32)", lambda a: np.float32(1) / np.sqrt(a))
pure(r"ex2\.approx(?:\.ftz)?\.(f32)", np.exp2)
pure(r"lg2\.approx(?:\.ftz)?\.(f32)", np.log2)
pure(r"tanh\.approx\.(f32)", np.tanh)
pure(r"neg(?:\.ftz)?\.(f32)", operator.neg)
pure(r"abs(?:\.ftz)?\.(f32)", np.abs)
pure(r"max(?:\.ftz)?\.(f32)", np.fmax)
pure(r"min(?:\.ftz)?\.(f32)", np.fmin)
pure(r"max\.NaN\.(f32)", np.maximum)
pure(r"min\.NaN\.(f32)", np.minimum)
pure(r"copysign\.(f32)", lambda sign, value: np.copysign(value, sign))

_EXACTLY: dict[str, Callable[..., Value]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "fma": lambda a, b, c: a * b + c,
    "max": np.fmax,
    "min": np.fmin,
    "neg": operator.neg,
    "abs": np.abs,
}


@instruction(r"(add|sub|mul|fma|max|min|neg|abs)(?:\.rn)?(?:\.(NaN))?\.(bf16|f16)(x2)?")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    read, write = HALVES[found[3]]
    compute = _EXACTLY[found[1]]
    if found[2]:
        compute = {"max": np.maximum, "min": np.minimum}[found[1]]

    def one(*bits: Value) -> Value:
        return write(compute(*[read(each).astype(np.float64) for each in bits]))

    def two(*bits: Value) -> Value:
        lows, highs = zip(*map(halves, bits), strict=True)
        return joined(one(*lows), one(*highs))

    dtype = found[3] + (found[4] or "")
    return computed(decoder, parsed, two if found[4] else one, decoder.readers(parsed.operands[1:], dtype))


@instruction(r"setp\.(eq|ne|lt|le|gt|ge|num|nan)(u?)(?:\.ftz)?(?:\.(and|or))?\.f32")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    readers = decoder.readers(parsed.operands[1:3], "f32")
    compare: Callable[[Value, Value], Value] = getattr(operator, found[1], operator.eq)

    def ordered(a: Value, b: Value) -> Value:
        unordered = np.isnan(a) | np.isnan(b)
        if found[1] in ("num", "nan"):
            return unordered == (found[1] == "nan")
        return compare(a, b) | unordered if found[2] else compare(a, b) & ~unordered

    if found[3] is None:
        return computed(decoder, parsed, ordered, readers)
    combine = operator.and_ if found[3] == "and" else operator.or_
    readers.append(decoder.reader(parsed.operands[3], "pred"))
    return computed(decoder, parsed, lambda a, b, c: combine(ordered(a, b), c), readers)


@instruction(r"cvt\.rn(?:\.(relu|satfinite))?\.(bf16|f16)x2\.f32")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    write = HALVES[found[2]][1]
    if found[1]:
        raise UnknownInstructionError(f"{parsed} is not known")
    readers = decoder.readers(parsed.operands[1:], "f32")
    return computed(decoder, parsed, lambda high, low: joined(write(low), write(high)), readers)


@instruction(
    r"cvt(?!\.[su]\d+\.[su]\d+$)(?:\.(rn|rz|rm|rp|rni|rzi|rmi|rpi))?(?:\.(?:ftz|sat))?\.(\w+)\.(\w+)"
)
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    """From or to a float; between integers, integers.py decodes."""
    rounding, target, source = found[1], found[2], found[3]
    read: Callable[[Value], Value] = HALVES[source][0] if source in HALVES else lambda value: value
    if rounding and rounding.endswith("i"):
        whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
        if target == "f32":
            return computed(decoder, parsed, whole, [decoder.reader(parsed.operands[1], source)])
        dtype = DTYPES[target]
        return computed(
            decoder,
            parsed,
            lambda value: clipped(whole(read(value).astype(np.float64)), dtype),
            [decoder.reader(parsed.operands[1], source)],
        )
    if rounding not in (None, "rn") or target not in (*HALVES, "f32"):
        raise UnknownInstructionError(f"{parsed} is not known")

    def convert(value: Value) -> Value:
        value = read(value)
        if target == "f32":
            return value.astype(np.float32)
        wide = value if value.dtype == np.float32 else value.astype(np.float64)
        return HALVES[target][1](wide)

    return computed(decoder, parsed, convert, [decoder.reader(parsed.operands[1], source)])
