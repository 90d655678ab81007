"""The product of floats x [M, K] and a dequantized weightᵀ [N, K], accumulated in float32.

The weight is read as it lies, in slabs (tritonq/numerics/slabs.py), a tile of four rows at a time, and never unpacked
as a whole. A word of 16 bits holds a code of each of four slabs: a vector of words, shifted, gives one of each slab.
With 512-bit vectors its low four bits look the float up in a table of 16, which holds a group's (code - zero) · scale.

    few rows of x     the floats are multiplied in the registers in which they arise
    more              a part of K of the tile is unpacked into the first-level cache and multiplied with all rows of x,
                      then the next part; the sums of a tile wait in memory, as vectors

Each sum is one vector along K, in ascending order, whose lanes are added up at the end. So a row's result is the same
whatever the number of rows beside it, and of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tritonq.cpu.code import F32, I8, I16, I32, Code, Value, Variable, vector
from tritonq.cpu.elements import SIZES, copy_floats, load_floats, store_values, sum_lanes
from tritonq.cpu.processor import AVX2, AVX512_VNNI, Instructions

#: Rows of the weight that a thread takes at a time.
CHUNK = 32
#: Up to as many rows of x are multiplied in registers.
FEW = 4
#: Most rows of x whose sums are kept at a time.
MOST_BLOCK = 96
#: Columns of a part of K: a tile of the weight, unpacked, and one of x fit the first-level cache.
PART = 512
_TILE = 4
_PART_PITCH = 4 * PART + 64

FIELDS = (
    *(
        "rows",
        "features",
        "groups",
        "blocks",
        "slabs_per_group",
        "block",
        "x",
        "x_pitch",
        "weight",
        "weight_pitch",
    ),
    *("scale", "scale_pitch", "zero", "zero_pitch", "bias", "out"),
)


class WeightOnlyProduct(NamedTuple):
    """What a kernel of this family is compiled for.

    Attributes:
        form: "int8" or "int4_words".
        slab: columns of a slab.
        scale, bias: dtypes; bias None where there is none.
        zero: whether there are zero points.
        grouped: whether a row has several scales.
        out: a float dtype.
        few: whether x has few rows.
    """

    form: str
    slab: int
    scale: str
    bias: str | None
    zero: bool
    grouped: bool
    out: str
    few: bool

    @property
    def slabs(self) -> int:
        """Slabs of a block."""
        return 4 if self.form == "int4_words" else 1

    @property
    def scales_at_once(self) -> bool:
        """Whether codes become floats with their scale; else the sums get it, at the end."""
        return self.grouped or self.form == "int4_words"


def weight_only_product(what: WeightOnlyProduct, instructions: Instructions) -> Code:
    """The kernel; arguments as FIELDS: x float32 in the columns of the slabs, `blocks` a row of the weight."""
    code = Code(FIELDS)
    kernel = _Kernel(code, what, instructions)
    rows, features, block = (code.arguments[name] for name in ("rows", "features", "block"))
    with code.pieces((features + (CHUNK - 1)) / CHUNK) as number:
        first = number * CHUNK
        width = (features - first).minimum(CHUNK)
        kernel.read_constants(first, width)
        start = code.variable(code.integer(0))
        with code.range(0, (rows + block - 1) / block):
            end = (start.value + block).minimum(rows)
            with code.range(0, width, _TILE) as feature:
                if what.few:
                    kernel.multiply_in_registers(first + feature, feature, end)
                else:
                    kernel.multiply_unpacked(first + feature, feature, start.value, end)
            with code.range(start.value, end) as row:
                kernel.finish_row(row, row - start.value, first, width)
            start.set(end)
    return code


class _Kernel:
    """One kernel in the making, its scratch memory, and its arguments by name."""

    def __init__(self, code: Code, what: WeightOnlyProduct, instructions: Instructions) -> None:
        self.code, self.what, self.at = code, what, code.arguments
        self.instructions, self.lanes = instructions, instructions.lanes
        self.floats = vector(F32, self.lanes)
        self.sums = code.scratch(4 * CHUNK * (FEW if what.few else MOST_BLOCK))
        self.scales, self.bias = code.scratch(4 * CHUNK), code.scratch(4 * CHUNK)
        if not what.few:
            self.part = code.scratch(_TILE * _PART_PITCH)
            self.waiting = code.scratch(4 * self.lanes * _TILE * MOST_BLOCK)

    def read_constants(self, first: Value, width: Value) -> None:
        """The scales and the bias of a chunk's features, as float32."""
        code, what, at = self.code, self.what, self.at
        if not what.scales_at_once:
            copy_floats(code, what.scale, at["scale"] + first * SIZES[what.scale], self.scales, width)
        if what.bias is not None:
            copy_floats(code, what.bias, at["bias"] + first * SIZES[what.bias], self.bias, width)

    # --- codes to floats -------------------------------------------------------------------------------------------

    def features(self, first: Value) -> list[Value]:
        """A tile's features; those behind the last are the last again."""
        last = self.at["features"] - 1
        return [(first + j).minimum(last) for j in range(_TILE)]

    def walk(self) -> tuple[Variable, Variable]:
        """(group, slabs that are left of it), at the first slab of a row."""
        return self.code.variable(self.code.integer(0)), self.code.variable(self.at["slabs_per_group"] + 0)

    def groups_of_block(self, walk: tuple[Variable, Variable]) -> list[Value]:
        """The group of each slab of the next block. Slabs behind the last group are padding, and count to it."""
        group, left = walk
        if not self.what.grouped:
            return [self.code.integer(0)] * self.what.slabs
        found = []
        for _ in range(self.what.slabs):
            found.append(group.value)
            remaining = left.value - 1
            ends = remaining.equals(0)
            following = (group.value + 1).minimum(self.at["groups"] - 1)
            group.set(ends.where(following, group.value))
            left.set(ends.where(self.at["slabs_per_group"], remaining))
        return found

    def floats_of_block(
        self, weight: Value, feature: Value, groups: Sequence[Value], use: Callable[[int, Value], None]
    ) -> None:
        """use(column, floats) for each vector of the block at an address, columns ascending."""
        code, what, lanes = self.code, self.what, self.lanes
        if what.form == "int8":
            for column in range(0, what.slab, lanes):
                codes = code.load(vector(I8, lanes), weight + column).cast(I32)
                use(column, self._scaled(codes, 0, feature, groups[0]))
            return
        words = [
            code.load(vector(I16, lanes), weight + 2 * column).widen(I32)
            for column in range(0, what.slab, lanes)
        ]
        for slab, group in enumerate(groups):
            look_up = self._nibbles(feature, group)
            for place, word in enumerate(words):
                use(slab * what.slab + place * lanes, look_up(word >> 4 * slab if slab else word))

    def _nibbles(self, feature: Value, group: Value) -> Callable[[Value], Value]:
        """From numbers whose low four bits are codes + 8 to floats."""
        code = self.code
        if self.instructions is not AVX512_VNNI:
            return lambda numbers: self._scaled(numbers & 15, 8, feature, group)
        table = self._scaled(code.places(16), 8, feature, group)
        name = "llvm.x86.avx512.permvar.sf.512"
        return lambda numbers: code.intrinsic(name, self.floats, table, numbers)

    def _scaled(self, codes: Value, offset: int, feature: Value, group: Value) -> Value:
        """(codes - offset - zero) · scale, or without the scale where it comes later."""
        code, what, at, lanes = self.code, self.what, self.at, self.lanes
        if what.zero:
            zero = code.load(I8, at["zero"] + group * at["zero_pitch"] + feature).cast(I32)
            codes = codes - code.spread(zero + offset, lanes)
        elif offset:
            codes = codes - offset
        values = codes.cast(F32)
        if not what.scales_at_once:
            return values
        address = at["scale"] + group * at["scale_pitch"] + feature * SIZES[what.scale]
        return values * code.spread(load_floats(code, what.scale, address, 1)[0], lanes)

    # --- products --------------------------------------------------------------------------------------------------

    def multiply_in_registers(self, first: Value, place: Value, rows: Value) -> None:
        """sums of all of up to FEW rows with a tile."""
        for count in range(1, FEW + 1):
            with self.code.when(rows.equals(count)):
                self._multiply_few(first, place, count)

    def _multiply_few(self, first: Value, place: Value, rows: int) -> None:
        code, at = self.code, self.at
        features = self.features(first)
        weights = [at["weight"] + feature * at["weight_pitch"] for feature in features]
        zero = code.constant(self.floats, 0.0)
        totals = [[code.variable(zero) for _ in range(_TILE)] for _ in range(rows)]
        walk = self.walk()
        x = at["x"]

        def multiply(block: Value) -> None:
            groups = self.groups_of_block(walk)
            for j, (weight, feature) in enumerate(zip(weights, features, strict=True)):

                def use(column: int, floats: Value, j: int = j) -> None:
                    for i in range(rows):
                        place = x + at["x_pitch"] * i + block * (4 * self._block_columns) + 4 * column
                        totals[i][j].set(code.fma(code.load(self.floats, place), floats, totals[i][j].value))

                self.floats_of_block(weight + block * self._block_bytes, feature, groups, use)

        # Whole cache lines at a time, so that each is asked for once: the next tile's.
        blocks_of_line = max(1, 64 // self._block_bytes)
        whole = at["blocks"] & -blocks_of_line
        with code.range(0, whole, blocks_of_line) as block:
            for line in range(0, max(64, self._block_bytes), 64):
                for weight in weights:
                    code.prefetch(weight + block * self._block_bytes + at["weight_pitch"] * _TILE + line)
            for step in range(blocks_of_line):
                multiply(block + step)
        if blocks_of_line > 1:
            with code.range(whole, at["blocks"]) as block:
                multiply(block)
        for i in range(rows):
            found = sum_lanes(code, [total.value for total in totals[i]])
            code.store(found, self.sums + place * 4 + 4 * CHUNK * i)

    def multiply_unpacked(self, first: Value, place: Value, start: Value, end: Value) -> None:
        """sums of rows start … end with a tile."""
        code, at = self.code, self.at
        features = self.features(first)
        walk = self.walk()
        blocks_of_part = PART // self._block_columns
        with code.range(0, at["blocks"], blocks_of_part) as block:
            count = (at["blocks"] - block).minimum(blocks_of_part)
            with code.range(0, count) as step:
                offset = (block + step) * self._block_bytes
                target = self.part + step * (4 * self._block_columns)
                groups = self.groups_of_block(walk)
                for j, feature in enumerate(features):
                    weight = at["weight"] + feature * at["weight_pitch"] + offset
                    code.prefetch(weight + at["weight_pitch"] * _TILE)

                    def use(column: int, floats: Value, j: int = j) -> None:
                        code.store(floats, target + (_PART_PITCH * j + 4 * column))

                    self.floats_of_block(weight, feature, groups, use)
            x = at["x"] + block * (4 * self._block_columns)
            self._multiply_part(x, count * self._block_columns, block.equals(0), start, end)
        with code.range(0, end - start) as row:
            waiting = self.waiting + row * (4 * self.lanes * _TILE)
            vectors = [code.load(self.floats, waiting + 4 * self.lanes * j) for j in range(_TILE)]
            code.store(sum_lanes(code, vectors), self.sums + place * 4 + row * (4 * CHUNK))

    def _multiply_part(self, x: Value, columns: Value, is_first: Value, start: Value, end: Value) -> None:
        """What waits of rows start … end += their part of K, at x, times the unpacked part."""
        code = self.code
        most = 3 if self.instructions is AVX2 else 6
        count = end - start
        tiles = (count + (most - 1)) / most
        even = (count + tiles - 1) / tiles  # tiles of about one height
        row = code.variable(start)
        with code.range(0, (count + even - 1) / even):
            height = (end - row.value).minimum(even)
            waiting = self.waiting + (row.value - start) * (4 * self.lanes * _TILE)
            for rows in range(1, most + 1):
                with code.when(height.equals(rows)):
                    self._tile(x + row.value * self.at["x_pitch"], columns, rows, is_first, waiting)
            row.set(row.value + height)

    def _tile(self, x: Value, columns: Value, rows: int, is_first: Value, waiting: Value) -> None:
        code, lanes = self.code, self.lanes
        zero = code.constant(self.floats, 0.0)
        totals = [[code.variable(zero) for _ in range(_TILE)] for _ in range(rows)]
        places = [[waiting + 4 * lanes * (_TILE * i + j) for j in range(_TILE)] for i in range(rows)]
        with code.choose(is_first) as (first, later):
            with first:
                pass
            with later:
                for i in range(rows):
                    for j in range(_TILE):
                        totals[i][j].set(code.load(self.floats, places[i][j]))
        with code.range(0, columns, lanes) as k:
            values = [code.load(self.floats, x + self.at["x_pitch"] * i + k * 4) for i in range(rows)]
            for j in range(_TILE):
                weight = code.load(self.floats, self.part + k * 4 + _PART_PITCH * j)
                for i in range(rows):
                    totals[i][j].set(code.fma(values[i], weight, totals[i][j].value))
        for i in range(rows):
            for j in range(_TILE):
                code.store(totals[i][j].value, places[i][j])

    # --- what becomes of the sums ----------------------------------------------------------------------------------

    def finish_row(self, row: Value, line: Value, first: Value, width: Value) -> None:
        """One row's sums [width] → out."""
        code, what, at, lanes = self.code, self.what, self.at, self.lanes
        size = SIZES[what.out]
        target = at["out"] + (row * at["features"] + first) * size
        with code.range(0, width, lanes) as n:
            value = code.load(self.floats, self.sums + line * (4 * CHUNK) + n * 4)
            if not what.scales_at_once:
                value = value * code.load(self.floats, self.scales + n * 4)
            if what.bias is not None:
                value = value + code.load(self.floats, self.bias + n * 4)
            left = width - n
            with code.choose(left >= lanes) as (whole, part):
                with whole:
                    store_values(code, what.out, value, target + n * size)
                with part:
                    store_values(code, what.out, value, target + n * size, left)

    @property
    def _block_columns(self) -> int:
        return self.what.slab * self.what.slabs

    @property
    def _block_bytes(self) -> int:
        return self.what.slab * (2 if self.what.form == "int4_words" else 1)
