"""Quantizes floats to int8 codes row by row, with a grid per row or one given grid.

The largest magnitude is found by comparing the numbers' bits as integers. Their order is the same, and Inf and NaN are
the largest. A row that has one of them gets scale NaN and codes 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tritonq.cpu.code import F32, I8, I16, I32, Code, Value, vector
from tritonq.cpu.elements import SIZES, load_floats, store_values
from tritonq.cpu.int8 import to_codes
from tritonq.cpu.processor import Instructions

FIELDS = ["rows", "columns", "x", "x_pitch", "codes", "codes_pitch", "scale", "zero", "sum"]
_ROWS = 4
_INFINITY = 0x7F800000
_LEAST_SCALE = 2.0**-126


class Quantization(NamedTuple):
    """What a kernel of this family is compiled for.

    Attributes:
        x: the dtype.
        symmetric: codes in -127 … 127, zero point 0; else -128 … 127.
        bits: of a code in memory.
        offset: added to each code.
    """

    x: str
    symmetric: bool
    bits: int = 8
    offset: int = 0


def quantize_rows(what: Quantization, instructions: Instructions) -> Code:
    """The kernel: codes, scale float32 [M], zero int8 [M] and int32 [M] Σ of a row's codes (without the offset)."""
    code = Code(FIELDS)
    at = code.arguments
    with code.pieces((at["rows"] + (_ROWS - 1)) / _ROWS) as number:
        end = (number * _ROWS + _ROWS).minimum(at["rows"])
        with code.range(number * _ROWS, end) as row:
            _quantize_row(code, what, instructions.lanes, at, row)
    return code


def _quantize_row(code: Code, what: Quantization, lanes: int, at: dict[str, Value], row: Value) -> None:
    x, columns = at["x"] + row * at["x_pitch"], at["columns"]
    integers, floats = vector(I32, lanes), vector(F32, lanes)
    largest = code.variable(code.constant(integers, 0))
    low, high = (code.variable(code.constant(floats, 0.0)) for _ in range(2))

    def see(k: Value, count: Value | None) -> None:
        values = load_floats(code, what.x, x + k * SIZES[what.x], lanes, count)
        largest.set(largest.value.maximum(values.view(integers) & 0x7FFFFFFF))
        if not what.symmetric:
            low.set(values.minimum(low.value))
            high.set(values.maximum(high.value))

    _over_row(code, columns, lanes, see)
    amax = code.largest(largest.value)
    finite = amax < _INFINITY
    one = code.constant(F32, 1.0)
    zero = code.variable(code.constant(F32, 0.0))
    if what.symmetric:
        scale = amax.view(F32) / 127.0
        is_zero = amax.equals(0)
    else:
        least, most = low.value[0], high.value[0]
        for lane in range(1, lanes):
            least, most = least.minimum(low.value[lane]), most.maximum(high.value[lane])
        scale = most / 255.0 - least / 255.0
        is_zero = amax.equals(0)
    scale = is_zero.where(one, scale.maximum(_LEAST_SCALE))
    if not what.symmetric:
        found = ((least / scale).rint() * -1.0 + -128.0).clamp(-128.0, 127.0)
        zero.set(finite.where(found, code.constant(F32, 0.0)))
    factor = code.spread(finite.where(one / scale, code.constant(F32, 0.0)), lanes)
    zeros = code.spread(zero.value, lanes)
    sums = code.variable(code.constant(integers, 0))
    codes, size = at["codes"] + row * at["codes_pitch"], what.bits // 8
    low_code = -127 if what.symmetric else -128

    def write(k: Value, count: Value | None) -> None:
        values = load_floats(code, what.x, x + k * SIZES[what.x], lanes, count)
        found = to_codes(values * factor, zeros, low_code)
        if count is not None:
            places = code.places(lanes)
            found = (places < code.spread(count.cast(I32), lanes)).where(found, code.constant(integers, 0))
        sums.set(sums.value + found)
        if what.offset:
            found = found + what.offset
        packed = found.cast(I8 if what.bits == 8 else I16)
        if count is None:
            code.store(packed, codes + k * size)
        else:
            code.store_first(packed, codes + k * size, count)

    _over_row(code, columns, lanes, write)
    total = code.sum(sums.value)
    code.store(total, at["sum"] + row * 4)
    code.store(finite.where(scale, code.constant(F32, float("nan"))), at["scale"] + row * 4)
    code.store(zero.value.cast(I8), at["zero"] + row)


def _over_row(code: Code, columns: Value, lanes: int, body: Callable[[Value, Value | None], None]) -> None:
    """body(k, None) for each whole vector of a row, body(k, count) for what is left."""
    whole = columns & -lanes
    with code.range(0, whole, lanes) as k:
        body(k, None)
    with code.when(columns > whole):
        body(whole, columns - whole)


REWRITE_FIELDS = ["rows", "columns", "x", "x_pitch", "codes", "codes_pitch", "sum"]


class Rewriting(NamedTuple):
    """How codes are to lie in memory: `bits` each, with `offset` added."""

    bits: int
    offset: int


def rewrite_codes(what: Rewriting, instructions: Instructions) -> Code:
    """The kernel: int8 codes as another kernel wants them, and int32 [M] Σ of a row's codes (without the offset)."""
    code = Code(REWRITE_FIELDS)
    at, lanes = code.arguments, instructions.lanes
    with code.pieces(at["rows"]) as row:
        x, codes = at["x"] + row * at["x_pitch"], at["codes"] + row * at["codes_pitch"]
        sums = code.variable(code.constant(vector(I32, lanes), 0))

        def write(k: Value, count: Value | None) -> None:
            kind = vector(I8, lanes)
            found = (code.load(kind, x + k) if count is None else code.load_first(kind, x + k, count)).cast(
                I32
            )
            sums.set(sums.value + found)
            packed = (found + what.offset).cast(I8 if what.bits == 8 else I16)
            target = codes + k * (what.bits // 8)
            if count is None:
                code.store(packed, target)
            else:
                code.store_first(packed, target, count)

        _over_row(code, at["columns"], lanes, write)
        code.store(code.sum(sums.value), at["sum"] + row * 4)
    return code


GRID_FIELDS = ("count", "x", "codes", "scale", "zero")
#: Numbers that a thread takes at a time.
_PIECE = 1 << 14


class OnGrid(NamedTuple):
    """The dtype of x, and the least code."""

    x: str
    low: int


def quantize_on_grid(what: OnGrid, instructions: Instructions) -> Code:
    """The kernel: dense numbers → int8 codes on the grid of a float32 scale and an int8 zero point."""
    code, lanes = Code(GRID_FIELDS), instructions.lanes
    at, size = code.arguments, SIZES[what.x]
    factor = code.spread(code.constant(F32, 1.0) / code.load(F32, at["scale"]), lanes)
    zero = code.spread(code.load(I8, at["zero"]).cast(F32), lanes)
    with code.pieces((at["count"] + (_PIECE - 1)) / _PIECE) as number:
        first = number * _PIECE
        x, codes = at["x"] + first * size, at["codes"] + first

        def write(k: Value, count: Value | None) -> None:
            values = load_floats(code, what.x, x + k * size, lanes, count)
            store_values(code, "int8", to_codes(values * factor, zero, what.low), codes + k, count)

        _over_row(code, (at["count"] - first).minimum(_PIECE), lanes, write)
    return code
