"""Rows of x in the columns of a weight's slabs: each group moves to where the slabs have it, zeros are the padding.

widen_rows      floats, as float32        spread_codes      int8 codes, and the sum of each group's
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tritonq.cpu.code import F32, I8, I32, Code, Value, vector
from tritonq.cpu.elements import SIZES, load_floats
from tritonq.cpu.processor import Instructions

#: padded_group and out_columns are multiples of 16.
FIELDS = (
    "rows",
    "columns",
    "groups",
    "group",
    "padded_group",
    "x",
    "x_pitch",
    "out",
    "out_pitch",
    "out_columns",
)


class Widening(NamedTuple):
    """The dtype of x."""

    x: str


class Spreading(NamedTuple):
    """int8 codes have no variants."""


def widen_rows(what: Widening, instructions: Instructions) -> Code:
    """The kernel: floats of a dtype → float32."""
    code, lanes = Code(FIELDS), instructions.lanes

    def read(address: Value, count: Value | None) -> Value:
        return load_floats(code, what.x, address, lanes, count)

    with code.pieces(code.arguments["rows"]) as row:
        _spread(code, row, vector(F32, lanes), SIZES[what.x], 4, read, lambda *_: None)
    return code


def spread_codes(what: Spreading, instructions: Instructions) -> Code:
    """The kernel: int8 codes as they are, and at `sums` int32 [rows, groups]."""
    code, kind = Code((*FIELDS, "sums")), vector(I8, 16)
    at = code.arguments
    total = code.variable(code.constant(vector(I32, 16), 0))

    def read(address: Value, count: Value | None) -> Value:
        found = code.load(kind, address) if count is None else code.load_first(kind, address, count)
        total.set(total.value + found.cast(I32))
        return found

    with code.pieces(at["rows"]) as row:

        def finish(group: Value, row: Value = row) -> None:
            code.store(code.sum(total.value), at["sums"] + (row * at["groups"] + group) * 4)
            total.set(total.value * 0)

        _spread(code, row, kind, 1, 1, read, finish)
    return code


def _spread(
    code: Code,
    row: Value,
    kind: Any,
    size: int,
    out_size: int,
    read: Callable[[Value, Value | None], Value],
    finish: Callable[[Value], None],
) -> None:
    """One row, in vectors of a kind: read(address, count) each, finish(group) behind each group."""
    at, lanes = code.arguments, kind.count
    zero = code.constant(kind, 0)
    x, out = at["x"] + row * at["x_pitch"], at["out"] + row * at["out_pitch"]
    with code.range(0, at["groups"]) as group:
        first = group * at["group"]
        source, target = x + first * size, out + group * at["padded_group"] * out_size
        count = (at["columns"] - first).minimum(at["group"])
        whole = count & -lanes
        with code.range(0, whole, lanes) as k:
            code.store(read(source + k * size, None), target + k * out_size)
        with code.when(count > whole):
            code.store(read(source + whole * size, count - whole), target + whole * out_size)
        with code.range((count + (lanes - 1)) & -lanes, at["padded_group"], lanes) as k:
            code.store(zero, target + k * out_size)
        finish(group)
    with code.range(at["groups"] * at["padded_group"], at["out_columns"], lanes) as k:
        code.store(zero, out + k * out_size)
