"""Parts that kernels share: floats in memory, partial vectors, sums over lanes, products of codes."""

from __future__ import annotations

from collections.abc import Sequence

from tritonq.cpu.code import F16, F32, I8, I16, I32, Code, Value, vector
from tritonq.cpu.processor import AVX2, AVX512_VNNI, Instructions

#: Bytes of a number in memory.
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "int8": 1}
_BFLOAT16_NAN = 0x7FC0
#: To the sign bit: a code as an unsigned byte, code + 128.
FLIP = -128


def load_floats(code: Code, dtype: str, address: Value, lanes: int, count: Value | None = None) -> Value:
    """float32 values of memory in `dtype`; with a count, that many and zeros behind them."""
    stored = vector({"float32": F32, "float16": F16, "bfloat16": I16}[dtype], lanes)
    raw = code.load(stored, address) if count is None else code.load_first(stored, address, count)
    if dtype == "float32":
        return raw
    if dtype == "float16":
        return raw.cast(F32)
    return (raw.widen(I32) << 16).view(vector(F32, lanes))


def store_values(code: Code, dtype: str, values: Value, address: Value, count: Value | None = None) -> None:
    """float32 values rounded once to `dtype`, or int32 ones to int8, into memory; with a count, that many."""
    if dtype == "float16":
        values = values.cast(F16)
    elif dtype == "bfloat16":
        values = _bfloat16(values)
    elif dtype == "int8":
        values = values.cast(I8)
    if count is None:
        code.store(values, address)
    else:
        code.store_first(values, address, count)


def copy_floats(code: Code, dtype: str, source: Value, target: Value, count: Value) -> None:
    """`count` numbers of `dtype` at one address → float32 at another, which has room for a multiple of four."""
    with code.range(0, count, 4) as n:
        values = load_floats(code, dtype, source + n * SIZES[dtype], 4, (count - n).minimum(4))
        code.store(values, target + n * 4)


def _bfloat16(values: Value) -> Value:
    """The upper halves, rounded half to even; subnormal numbers stay."""
    bits = values.view(vector(I32, values.type.count))
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    not_nan = values.equals(values)
    return not_nan.where(rounded, rounded * 0 + _BFLOAT16_NAN).cast(I16)


def sum_lanes(code: Code, sums: Sequence[Value]) -> Value:
    """Four vectors → a vector of their four sums, always in the same order."""
    a, b, c, d = sums
    lanes = a.type.count

    def low_and_high(one: Value, other: Value, pattern: tuple[tuple[int, ...], tuple[int, ...]]) -> Value:
        """The sum of two interleavings of every four lanes; 4 and more stand for the other vector's."""
        parts = []
        for places in pattern:
            everywhere = [
                block + place if place < 4 else lanes + block + place - 4
                for block in range(0, lanes, 4)
                for place in places
            ]
            parts.append(code.shuffle(one, other, everywhere))
        return parts[0] + parts[1]

    by_one, by_two = ((0, 4, 1, 5), (2, 6, 3, 7)), ((0, 1, 4, 5), (2, 3, 6, 7))
    total = low_and_high(low_and_high(a, b, by_one), low_and_high(c, d, by_one), by_two)
    while total.type.count > 4:
        half = total.type.count // 2
        total = total.take(*range(half)) + total.take(*range(half, 2 * half))
    return total


class Int8Dot:
    """Products of int8 codes, summed along K in the lanes of int32 vectors.

    Attributes:
        columns: of K that one step takes.
        x_bits: bits of a code of x as it lies in scratch; weights are bytes.
        offset: what is added to x's codes there, and so offset · Σw to every sum.
    """

    def __init__(self, instructions: Instructions) -> None:
        self.instructions, self.lanes = instructions, instructions.lanes
        self.columns = 64 if instructions is AVX512_VNNI else 16
        self.x_bits, self.offset = (8, 128) if instructions is AVX512_VNNI else (16, 0)
        self.x_type = vector(I8, 64) if instructions is AVX512_VNNI else vector(I16, 16)

    def weight(self, code: Code, address: Value, count: Value | None = None) -> Value:
        """The codes of one step, or of its first `count` columns, ready to be multiplied."""
        kind = vector(I8, self.columns)
        raw = code.load(kind, address) if count is None else code.load_first(kind, address, count)
        return raw if self.instructions is AVX512_VNNI else raw.cast(I16)

    def add(self, code: Code, total: Value, x: Value, weight: Value) -> Value:
        """total + x · weight."""
        if self.instructions is AVX512_VNNI:
            return dot_bytes(code, total, x, weight)
        if self.instructions is AVX2:
            pairs = code.intrinsic("llvm.x86.avx2.pmadd.wd", total.type, x, weight)
            return total + pairs
        product = x.cast(I32) * weight.cast(I32)
        for start in range(0, self.columns, 4):
            total = total + product.take(*range(start, start + 4))
        return total


def dot_bytes(code: Code, total: Value, unsigned: Value, signed: Value) -> Value:
    """vpdpbusd: to each of 16 int32, the sum of four products uint8 · int8."""
    operands = (total, unsigned.view(total.type), signed.view(total.type))
    return code.intrinsic("llvm.x86.avx512.vpdpbusd.512", total.type, *operands)
