"""The product of int8 codes, x [M, K] · weightᵀ [N, K], exact in int32, and what becomes of it.

A tile is up to six rows of x by four of the weight; each of its sums is a vector along K, whose lanes are added up at
the end of the row. So both operands are read as they lie, row after row:

    chunk   32 rows of the weight, one thread's
    block   rows of x whose sums [block, 32] are kept until K is done; a part of K of them fits the second-level cache
    depth   a part of K, such that a tile's rows of both fit the first-level cache
    tile    up to 6 × 4 sums in registers
"""

from __future__ import annotations

from typing import NamedTuple

from tritonq.cpu.code import F32, I8, I32, Code, Value, vector
from tritonq.cpu.elements import SIZES, Int8Dot, copy_floats, store_values, sum_lanes
from tritonq.cpu.processor import AVX2, Instructions

#: Rows of the weight that a thread takes at a time.
CHUNK = 32
#: Most rows of x whose sums are kept at a time.
MOST_BLOCK = 96
_TILE_FEATURES = 4

FIELDS = [
    "rows",
    "features",
    "in_features",
    "block",
    "depth",
    "x",
    "x_pitch",
    "x_scale",
    "x_scale_step",
    "x_zero",
    "x_zero_step",
    "x_sum",
    "weight",
    "weight_pitch",
    "weight_columns",
    "weight_sum",
    "weight_scale",
    "weight_zero",
    "bias",
    "out",
    "out_scale",
    "out_zero",
]


class Int8Product(NamedTuple):
    """What a kernel of this family is compiled for.

    Attributes:
        scale, bias: dtypes; bias None where there is none.
        x_zero, weight_zero: whether there are zero points.
        out: "int32" for the sums; a float dtype; "int8" for codes on another grid.
        low: the least code of that grid.
        relu: before the codes.
    """

    scale: str
    bias: str | None
    x_zero: bool
    weight_zero: bool
    out: str
    low: int = -128
    relu: bool = False


def int8_product(what: Int8Product, instructions: Instructions) -> Code:
    """The kernel; arguments as FIELDS, scales of x float32, `x` and `x_sum` as `quantize` leaves them."""
    code = Code(FIELDS)
    at = code.arguments
    dot = Int8Dot(instructions)
    sums = code.scratch(4 * CHUNK * MOST_BLOCK)
    constants = _Constants(code, what)
    rows, features, block = at["rows"], at["features"], at["block"]
    chunks = (features + (CHUNK - 1)) / CHUNK
    with code.pieces(chunks) as number:
        first = number * CHUNK
        width = (features - first).minimum(CHUNK)
        constants.read(at, first, width)
        start = code.variable(code.integer(0))
        with code.range(0, (rows + block - 1) / block):
            end = (start.value + block).minimum(rows)
            with code.range(0, at["weight_columns"], at["depth"]) as k:
                part = (k, (k + at["depth"]).minimum(at["weight_columns"]))
                _multiply(code, dot, at, sums, first, width, start.value, end, part)
            with code.range(start.value, end) as row:
                line = sums + (row - start.value) * (4 * CHUNK)
                _finish_row(code, what, dot, instructions.lanes, constants, at, line, row, first, width)
            start.set(end)
    return code


def _multiply(
    code: Code,
    dot: Int8Dot,
    at: dict[str, Value],
    sums: Value,
    first: Value,
    width: Value,
    start: Value,
    end: Value,
    part: tuple[Value, Value],
) -> None:
    """sums [end - start, CHUNK] += of a part of K: of rows start … end of x and features first … first + width."""
    most = 3 if dot.instructions is AVX2 else 6
    count = end - start
    even = (count + ((count + (most - 1)) / most) - 1) / (
        (count + (most - 1)) / most
    )  # tiles of about one height
    last = at["features"] - 1
    with code.range(0, width, _TILE_FEATURES) as feature:
        weights = [
            at["weight"] + (first + feature + j).minimum(last) * at["weight_pitch"]
            for j in range(_TILE_FEATURES)
        ]
        row = code.variable(start)
        with code.range(0, (count + even - 1) / even):
            height = (end - row.value).minimum(even)
            x = at["x"] + row.value * at["x_pitch"]
            line = sums + (row.value - start) * (4 * CHUNK) + feature * 4
            for rows in range(1, most + 1):
                with code.when(height.equals(rows)):
                    _tile(code, dot, at, rows, x, weights, line, part)
            row.set(row.value + height)


def _tile(
    code: Code,
    dot: Int8Dot,
    at: dict[str, Value],
    rows: int,
    x: Value,
    weights: list[Value],
    line: Value,
    part: tuple[Value, Value],
) -> None:
    """sums += `rows` rows of x times four of the weight, over a part of K."""
    zero = code.constant(vector(I32, dot.lanes), 0)
    totals = [[code.variable(zero) for _ in weights] for _ in range(rows)]
    start, end = part
    whole = start + ((end - start) & -dot.columns)

    def step(k: Value, count: Value | None) -> None:
        if count is None:
            for (
                weight
            ) in weights:  # the next tile's: what lies before a page's end is all that processors foresee
                code.prefetch(weight + k + at["weight_pitch"] * _TILE_FEATURES)
        size = dot.x_bits // 8
        values = [code.load(dot.x_type, x + at["x_pitch"] * i + k * size) for i in range(rows)]
        for j, weight in enumerate(weights):
            factor = dot.weight(code, weight + k, count)
            for i in range(rows):
                totals[i][j].set(dot.add(code, totals[i][j].value, values[i], factor))

    with code.range(start, whole, dot.columns) as k:
        step(k, None)
    if dot.columns > 16:
        with code.when(end > whole):
            step(whole, end - whole)
    found = [sum_lanes(code, [total.value for total in totals[i]]) for i in range(rows)]
    with code.choose(start > 0) as (later, first):
        with later:
            for i in range(rows):
                before = code.load(found[i].type, line + 4 * CHUNK * i)
                code.store(before + found[i], line + 4 * CHUNK * i)
        with first:
            for i in range(rows):
                code.store(found[i], line + 4 * CHUNK * i)


class _Constants:
    """What a chunk's features bring to the epilogue, as float32 and int32 [CHUNK] in scratch."""

    def __init__(self, code: Code, what: Int8Product) -> None:
        self.code, self.what = code, what
        self.sum, self.scale, self.zero, self.bias = (code.scratch(4 * CHUNK) for _ in range(4))

    def read(self, at: dict[str, Value], first: Value, width: Value) -> None:
        """Of features first … first + width."""
        code, what = self.code, self.what
        with code.range(0, width, 4) as n:
            count, place = (width - n).minimum(4), first + n
            code.store(code.load_first(vector(I32, 4), at["weight_sum"] + place * 4, count), self.sum + n * 4)
            if what.weight_zero:
                zeros = code.load_first(vector(I8, 4), at["weight_zero"] + place, count)
                code.store(zeros.cast(I32), self.zero + n * 4)
        if what.out == "int32":
            return
        copy_floats(code, what.scale, at["weight_scale"] + first * SIZES[what.scale], self.scale, width)
        if what.bias is None:
            return
        copy_floats(code, what.bias, at["bias"] + first * SIZES[what.bias], self.bias, width)
        if what.out == "int8":
            scale = code.spread(code.load(F32, at["out_scale"]), 4)
            with code.range(0, width, 4) as n:
                code.store(code.load(scale.type, self.bias + n * 4) / scale, self.bias + n * 4)


def _finish_row(
    code: Code,
    what: Int8Product,
    dot: Int8Dot,
    lanes: int,
    constants: _Constants,
    at: dict[str, Value],
    line: Value,
    row: Value,
    first: Value,
    width: Value,
) -> None:
    """One row's sums [width] → out."""
    integers = vector(I32, lanes)
    shift = code.constant(I32, dot.offset)  # what multiplies Σ of the weight
    x_zero = code.constant(I32, 0)
    if what.x_zero:
        x_zero = code.load(I8, at["x_zero"] + row * at["x_zero_step"]).cast(I32)
        shift = shift + x_zero
    shift = code.spread(shift, lanes)
    centre = None
    if what.weight_zero:
        x_sum = code.load(I32, at["x_sum"] + row * 4)
        centre = code.spread(x_sum - at["in_features"].cast(I32) * x_zero, lanes)
    x_scale = out_scale = out_zero = None
    if what.out != "int32":
        x_scale = code.spread(code.load(F32, at["x_scale"] + row * at["x_scale_step"]), lanes)
    if what.out == "int8":
        out_scale = code.spread(code.load(F32, at["out_scale"]), lanes)
        out_zero = code.spread(code.load(I8, at["out_zero"]).cast(F32), lanes)
    target = at["out"] + (row * at["features"] + first) * SIZES[what.out]
    with code.range(0, width, lanes) as n:
        total = code.load(integers, line + n * 4)
        if dot.offset or what.x_zero:
            total = total - shift * code.load(integers, constants.sum + n * 4)
        if centre is not None:
            total = total - centre * code.load(integers, constants.zero + n * 4)
        result = total
        if x_scale is not None:
            weight_scale = code.load(vector(F32, lanes), constants.scale + n * 4)
            value = total.cast(F32)
            if out_scale is None:
                value = (value * x_scale) * weight_scale
            else:
                value = value * ((x_scale * weight_scale) / out_scale)
            if what.bias is not None:
                value = value + code.load(vector(F32, lanes), constants.bias + n * 4)
            if out_zero is not None:
                result = to_codes(value, out_zero, what.low, what.relu)
            else:
                result = value
        left = width - n
        address = target + n * SIZES[what.out]
        with code.choose(left >= lanes) as (whole, part):
            with whole:
                store_values(code, what.out, result, address)
            with part:
                store_values(code, what.out, result, address, left)


def to_codes(value: Value, zero: Value, low: int, relu: bool = False) -> Value:
    """float32 in units of a grid, and its zero point as float32 → int32 codes in low … 127; NaN takes zero's."""
    nothing = value.code.constant(value.type, 0.0)
    value = value.equals(value).where(value, nothing)
    if relu:
        value = value.maximum(0.0)
    lowest, highest = zero * -1.0 + float(low), zero * -1.0 + 127.0
    return (value.clamp(lowest, highest).rint() + zero).cast(I32)
