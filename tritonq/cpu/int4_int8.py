"""The product of int8 codes x [M, K] and int4 codes weightᵀ [N, K] in slabs, with a scale for each group of columns.

Here the lanes of a vector are rows of the weight, so that a group's sums get their scales without being added up:

    panel     a block (two slabs) of 2 · lanes rows of the weight, as unsigned bytes code + 8, four columns in a lane:
              loaded row by row, transposed in registers, the two nibbles of a byte taken apart
    sums      int32 [rows of x, 2 · lanes], from -8 · Σx of the group on, by dot products of four columns at a time;
              where a group ends they become float32, times its scales, and are added to
    totals    float32 [rows of x, 2 · lanes], the groups in ascending order

For few rows of x a panel is not worth its making. Then the lanes are columns, of four rows of the weight at a time, and
each group's sums are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tritonq.cpu.code import F32, I8, I16, I32, Code, Value, vector
from tritonq.cpu.elements import SIZES, copy_floats, dot_bytes, load_floats, store_values, sum_lanes
from tritonq.cpu.processor import AVX2, AVX512_VNNI, Instructions

#: Rows of the weight that a thread takes at a time.
CHUNK = 32
#: Up to as many rows of x are multiplied without a panel, in slabs of FEW_SLAB columns.
FEW, FEW_SLAB = 4, 64
_TILE = 4
#: Rows of x whose sums are kept at a time.
BLOCK = 96
_VECTORS = 2
_SLABS = 2
#: In each byte: what turns two's complement nibbles into code + 8; a mask of the lower nibble.
_EIGHTS, _LOW = -0x77777778, 0x0F0F0F0F
#: Bytes of a row that are asked for before they are read.
_AHEAD = 512

FIELDS = (
    *("rows", "features", "groups", "blocks", "slabs_per_group", "x", "x_pitch", "x_scale", "x_sums"),
    *("weight", "weight_pitch", "scale", "scale_pitch", "bias", "out"),
)


class Int4Int8Product(NamedTuple):
    """What a kernel of this family is compiled for.

    Attributes:
        slab: columns of a slab.
        scale, bias: dtypes; bias None where there is none.
        grouped: whether a row has several scales; with one, x's scale comes first.
        out: a float dtype.
        few: whether x has up to FEW rows, and no block lies in two groups.
    """

    slab: int
    scale: str
    bias: str | None
    grouped: bool
    out: str
    few: bool


def int4_int8_product(what: Int4Int8Product, instructions: Instructions) -> Code:
    """The kernel; arguments as FIELDS: x int8 in the columns of the slabs, x_sums int32 [M, groups]."""
    code = Code(FIELDS)
    kernel = _Kernel(code, what, instructions)
    rows, features = code.arguments["rows"], code.arguments["features"]
    with code.pieces((features + (CHUNK - 1)) / CHUNK) as number:
        first = number * CHUNK
        width = (features - first).minimum(CHUNK)
        kernel.read_constants(first, width)
        start = code.variable(code.integer(0))
        with code.range(0, (rows + (BLOCK - 1)) / BLOCK):
            end = (start.value + BLOCK).minimum(rows)
            with code.range(0, width, kernel.width) as place:
                kernel.multiply(first + place, start.value, end)
                with code.range(start.value, end) as row:
                    kernel.finish_row(row, row - start.value, first, place, width)
            start.set(end)
    return code


class _Kernel:
    """One kernel in the making, its scratch memory, and its arguments by name."""

    def __init__(self, code: Code, what: Int4Int8Product, instructions: Instructions) -> None:
        self.code, self.what, self.at = code, what, code.arguments
        self.instructions, self.lanes = instructions, instructions.lanes
        self.width = _VECTORS * self.lanes
        self.integers, self.floats = vector(I32, self.lanes), vector(F32, self.lanes)
        self.panel = code.scratch(_SLABS * what.slab * self.width)
        self.sums, self.totals = code.scratch(4 * BLOCK * self.width), code.scratch(4 * BLOCK * self.width)
        self.scales, self.bias = code.scratch(4 * CHUNK), code.scratch(4 * CHUNK)

    def read_constants(self, first: Value, width: Value) -> None:
        """A chunk's bias and, of a weight without groups, its scales."""
        code, what, at = self.code, self.what, self.at
        if not what.grouped:
            copy_floats(code, what.scale, at["scale"] + first * SIZES[what.scale], self.scales, width)
        if what.bias is not None:
            copy_floats(code, what.bias, at["bias"] + first * SIZES[what.bias], self.bias, width)

    def multiply(self, feature: Value, start: Value, end: Value) -> None:
        """totals of rows start … end of x and self.width features."""
        if not self.what.few:
            self._multiply_panels(feature, start, end)
            return
        for rows in range(1, FEW + 1):
            with (
                self.code.when(end.equals(rows)),
                self.code.range(0, self.code.integer(self.width), _TILE) as place,
            ):
                self._multiply_few(feature + place, place, rows)

    def _multiply_few(self, feature: Value, place: Value, rows: int) -> None:
        """totals of all of up to FEW rows of x with four of the weight."""
        code, at, what, slab = self.code, self.at, self.what, self.what.slab
        last, size = at["features"] - 1, 4 * self.lanes
        lines = [at["weight"] + (feature + j).minimum(last) * at["weight_pitch"] for j in range(_TILE)]
        totals = [code.variable(code.constant(vector(F32, _TILE), 0.0)) for _ in range(rows)]
        zero, dot = code.constant(self.integers, 0), _dot(self.instructions)
        blocks_of_group = at["slabs_per_group"] / _SLABS
        with code.range(0, at["groups"]) as group:
            sums = [[code.variable(zero) for _ in lines] for _ in range(rows)]
            with code.range(group * blocks_of_group, (group + 1) * blocks_of_group) as block:
                for line in lines:
                    code.prefetch(line + block * slab + at["weight_pitch"] * _TILE)
                for part in range(0, slab, size):
                    x = [at["x"] + at["x_pitch"] * i + block * (_SLABS * slab) + part for i in range(rows)]
                    low = [code.load(self.integers, address) for address in x]
                    high = [code.load(self.integers, address + slab) for address in x]
                    for j, line in enumerate(lines):
                        biased = code.load(self.integers, line + block * slab + part) ^ _EIGHTS
                        for i in range(rows):
                            found = dot(code, sums[i][j].value, biased & _LOW, low[i])
                            sums[i][j].set(dot(code, found, (biased >> 4) & _LOW, high[i]))
            scales = None
            if what.grouped:
                address = at["scale"] + group * at["scale_pitch"] + feature * SIZES[what.scale]
                scales = load_floats(code, what.scale, address, _TILE, at["features"] - feature)
            for i in range(rows):
                x_sum = code.load(I32, at["x_sums"] + (at["groups"] * i + group) * 4)
                found = sum_lanes(code, [total.value for total in sums[i]])
                value = (found - code.spread(x_sum * 8, _TILE)).cast(F32)
                totals[i].set(value if scales is None else totals[i].value + value * scales)
        for i in range(rows):
            code.store(totals[i].value, self.totals + place * 4 + 4 * self.width * i)

    def _multiply_panels(self, feature: Value, start: Value, end: Value) -> None:
        code, at, slab = self.code, self.at, self.what.slab
        zero = code.constant(self.floats, 0.0)
        with code.range(0, end - start) as row:
            for v in range(_VECTORS):
                code.store(zero, self._of(self.totals, row, v))
        last = at["features"] - 1
        lines = [at["weight"] + (feature + j).minimum(last) * at["weight_pitch"] for j in range(self.width)]
        group, left = code.variable(code.integer(0)), code.variable(at["slabs_per_group"] + 0)
        with code.range(0, at["blocks"]) as block:
            self._unpack(lines, block * slab)
            for half in range(_SLABS):
                begins, ends = left.value.equals(at["slabs_per_group"]), left.value.equals(1)
                x = at["x"] + (block * _SLABS + half) * slab
                with code.when(group.value < at["groups"]):  # slabs behind the last group are padding
                    panel = self.panel + half * slab * self.width
                    self._multiply_slab(x, panel, group.value, begins, ends, feature, start, end)
                group.set(ends.where(group.value + 1, group.value))
                left.set(ends.where(at["slabs_per_group"], left.value - 1))

    def _of(self, memory: Value, row: Value | int, v: int) -> Value:
        return memory + (row * (4 * self.width) + 4 * self.lanes * v)

    def _unpack(self, lines: list[Value], offset: Value) -> None:
        """Fill the panel with the block whose bytes lie at an offset of each line."""
        code, lanes, slab = self.code, self.lanes, self.what.slab
        words = min(lanes, slab // 4)
        for v in range(_VECTORS):
            for part in range(slab // (4 * words)):
                loaded = []
                for line in lines[v * lanes : (v + 1) * lanes]:
                    place = line + offset + 4 * words * part
                    code.prefetch(place + _AHEAD)
                    loaded.append(
                        code.load(vector(I32, words), place).take(*[k % words for k in range(lanes)])
                    )
                for k, word in enumerate(_transposed(code, loaded)[:words]):
                    biased = word ^ _EIGHTS
                    target = self.panel + (part * words + k) * (4 * self.width) + 4 * lanes * v
                    code.store(biased & _LOW, target)
                    code.store((biased >> 4) & _LOW, target + slab * self.width)

    def _multiply_slab(
        self,
        x: Value,
        panel: Value,
        group: Value,
        begins: Value,
        ends: Value,
        feature: Value,
        start: Value,
        end: Value,
    ) -> None:
        code, at, what = self.code, self.at, self.what
        scales = []
        if what.grouped:
            for v in range(_VECTORS):
                place = feature + self.lanes * v
                address = at["scale"] + group * at["scale_pitch"] + place * SIZES[what.scale]
                scales.append(load_floats(code, what.scale, address, self.lanes, at["features"] - place))
        most = 8 if self.instructions is AVX512_VNNI else 4
        row = code.variable(start)
        with code.range(0, (end - start + (most - 1)) / most):
            height = (end - row.value).minimum(most)
            for rows in range(1, most + 1):
                with code.when(height.equals(rows)):
                    self._tile(x, panel, group, begins, ends, scales, row.value, row.value - start, rows)
            row.set(row.value + height)

    def _tile(
        self,
        x: Value,
        panel: Value,
        group: Value,
        begins: Value,
        ends: Value,
        scales: list[Value],
        row: Value,
        place: Value,
        rows: int,
    ) -> None:
        """sums of some rows of x over a slab, and totals where its group ends."""
        code, at = self.code, self.at
        zero = code.constant(self.integers, 0)
        sums = [[code.variable(zero) for _ in range(_VECTORS)] for _ in range(rows)]
        with code.choose(begins) as (first, later):
            with first:
                for i in range(rows):
                    x_sum = code.load(I32, at["x_sums"] + ((row + i) * at["groups"] + group) * 4)
                    for v in range(_VECTORS):
                        sums[i][v].set(code.spread(x_sum * -8, self.lanes))
            with later:
                for i in range(rows):
                    for v in range(_VECTORS):
                        sums[i][v].set(code.load(self.integers, self._of(self.sums, place + i, v)))
        lines = [x + (row + i) * at["x_pitch"] for i in range(rows)]
        dot = _dot(self.instructions)
        with code.range(0, code.integer(self.what.slab), 4) as k:
            weights = [
                code.load(self.integers, panel + k * self.width + 4 * self.lanes * v) for v in range(_VECTORS)
            ]
            for i in range(rows):
                four = code.spread(code.load(I32, lines[i] + k), self.lanes)
                for v in range(_VECTORS):
                    sums[i][v].set(dot(code, sums[i][v].value, weights[v], four))
        with code.choose(ends) as (last, inside):
            with last:
                for i in range(rows):
                    for v in range(_VECTORS):
                        total = self._of(self.totals, place + i, v)
                        value = sums[i][v].value.cast(F32)
                        if scales:
                            value = code.load(self.floats, total) + value * scales[v]
                        code.store(value, total)
            with inside:
                for i in range(rows):
                    for v in range(_VECTORS):
                        code.store(sums[i][v].value, self._of(self.sums, place + i, v))

    def finish_row(self, row: Value, line: Value, first: Value, place: Value, width: Value) -> None:
        """One row's totals → out."""
        code, what, at, lanes = self.code, self.what, self.at, self.lanes
        size = SIZES[what.out]
        x_scale = code.spread(code.load(F32, at["x_scale"] + row * 4), lanes)
        for v in range(_VECTORS):
            n = place + lanes * v
            left = width - n
            with code.when(left > 0):
                value = code.load(self.floats, self._of(self.totals, line, v)) * x_scale
                if not what.grouped:
                    value = value * code.load(self.floats, self.scales + n * 4)
                if what.bias is not None:
                    value = value + code.load(self.floats, self.bias + n * 4)
                target = at["out"] + (row * at["features"] + first + n) * size
                with code.choose(left >= lanes) as (whole, part):
                    with whole:
                        store_values(code, what.out, value, target)
                    with part:
                        store_values(code, what.out, value, target, left)


def _transposed(code: Code, rows: list[Value]) -> list[Value]:
    """As many vectors as each has lanes → vector k holds lane k of all of them."""
    rows, lanes = list(rows), len(rows)
    distance = 1
    while distance < lanes:
        keep = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
        move = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
        for i in range(lanes):
            if not i & distance:
                one, other = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = code.shuffle(one, other, keep), code.shuffle(one, other, move)
        distance *= 2
    return rows


def _dot(instructions: Instructions) -> Callable[[Code, Value, Value, Value], Value]:
    """(code, sums, four bytes 0 … 15 in each lane, four int8 in each lane) → sums + their products."""
    if instructions is AVX512_VNNI:
        return dot_bytes
    return _dot_avx2 if instructions is AVX2 else _dot_portable


def _dot_avx2(code: Code, sums: Value, unsigned: Value, signed: Value) -> Value:
    # Two products of at most 15 · 128 never saturate an int16.
    codes, pairs = vector(I8, 32), vector(I16, 16)
    name = "llvm.x86.avx2.pmadd.ub.sw"
    found = code.intrinsic(name, pairs, unsigned.view(codes), signed.view(codes))
    return sums + code.intrinsic("llvm.x86.avx2.pmadd.wd", sums.type, found, code.constant(pairs, 1))


def _dot_portable(code: Code, sums: Value, unsigned: Value, signed: Value) -> Value:
    for place in range(4):
        one = (signed << (24 - 8 * place)).shift_signed(24)
        sums = sums + ((unsigned >> 8 * place) & 0xFF) * one
    return sums
