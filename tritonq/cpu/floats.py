"""Rows of x as float32, in the columns of a weight's slabs."""

from __future__ import annotations

from typing import NamedTuple

from tritonq.cpu.code import F32, Code, Value, vector
from tritonq.cpu.elements import SIZES, load_floats
from tritonq.cpu.processor import Instructions

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


def widen_rows(what: Widening, instructions: Instructions) -> Code:
    """The kernel: each group of `group` columns moves to the next multiple of `padded_group`; zeros in between.

    padded_group and out_columns are multiples of 16.
    """
    code = Code(FIELDS)
    at, lanes = code.arguments, instructions.lanes
    zero = code.constant(vector(F32, lanes), 0.0)
    with code.pieces(at["rows"]) as row:
        x, out = at["x"] + row * at["x_pitch"], at["out"] + row * at["out_pitch"]
        with code.range(0, at["groups"]) as group:
            first, place = group * at["group"], group * at["padded_group"]
            count = (at["columns"] - first).minimum(at["group"])
            whole = count & -lanes
            source, target = x + first * SIZES[what.x], out + place * 4

            def values(k: Value, left: Value | None = None, source: Value = source) -> Value:
                return load_floats(code, what.x, source + k * SIZES[what.x], lanes, left)

            with code.range(0, whole, lanes) as k:
                code.store(values(k), target + k * 4)
            with code.when(count > whole):
                code.store(values(whole, count - whole), target + whole * 4)
            filled = (count + (lanes - 1)) & -lanes
            with code.range(filled, at["padded_group"], lanes) as k:
                code.store(zero, target + k * 4)
        with code.range(at["groups"] * at["padded_group"], at["out_columns"], lanes) as k:
            code.store(zero, out + k * 4)
    return code
