"""A problem: what a configuration is chosen for. Also the buckets and classes by which tables find it.

A tuned file has one configuration per weight shape and bucket of M. The shipped table has one per *class* of weight
shapes and bucket of M.

    bucket of M     the smallest of 8, 16, 32 … 8192 that is ≥ M; 8192 for larger M. There is none below 8, because the
                    narrowest matrix instruction has 8 columns
    shape class     (fill, deep). fill is the smallest of 1/8, 1/4, 1/2, 1, 2, 4 that is ≥ the number of tiles of 64
                    weight rows per multiprocessor, 4 for more; it decides how far splitting K helps. deep means K ≥ 2 N
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import triton

from ..launch.target import Target

#: Upper bounds of M.
BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
#: Upper bounds of tiles per multiprocessor.
FILLS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_ROWS_OF_A_TILE = 64


#: What follows an int8 product: scales, bias and relu; a smooth activation too; a residual or the weight's zero points.
Epilogue = Literal["short", "smooth", "long"]


@dataclasses.dataclass(frozen=True)
class Int8:
    """int8 x, int8 weight; addressable: the copy engine reaches both."""

    family: ClassVar[str] = "int8"
    epilogue: Epilogue
    addressable: bool


@dataclasses.dataclass(frozen=True)
class Int8Gated:
    """int8 x, two int8 weights; addressable: the copy engine reaches all three."""

    family: ClassVar[str] = "int8_gated"
    addressable: bool


@dataclasses.dataclass(frozen=True)
class Int8Dynamic:
    """float x that is quantized per token, int8 weight."""

    family: ClassVar[str] = "int8_dynamic"
    dtype: str
    symmetric: bool
    one_row: bool


@dataclasses.dataclass(frozen=True)
class Int4Int8:
    """int8 x, int4 weight; addressable: the copy engine reaches both, and groups are not padded."""

    family: ClassVar[str] = "int4_int8"
    group_size: int
    slab_width: int
    addressable: bool


@dataclasses.dataclass(frozen=True)
class Int4Int8Dynamic:
    """float x that is quantized per token, int4 weight."""

    family: ClassVar[str] = "int4_int8_dynamic"
    group_size: int
    slab_width: int
    dtype: str
    one_row: bool


@dataclasses.dataclass(frozen=True)
class WeightOnly:
    """float x, weight of 4 slabs a word (int4) or 1 (int8); suits_hopper: Hopper's kernel takes the operands."""

    family: ClassVar[str] = "weight_only"
    slabs: int
    group_size: int
    slab_width: int
    dtype: str
    suits_hopper: bool


@dataclasses.dataclass(frozen=True)
class WeightOnlyGradient:
    """float dy, weight in tiles of so many slabs."""

    family: ClassVar[str] = "weight_only_gradient"
    slabs: int
    slab_width: int
    dtype: str


Variant = Int8 | Int8Gated | Int8Dynamic | Int4Int8 | Int4Int8Dynamic | WeightOnly | WeightOnlyGradient
#: Name of a kernel family → what else a configuration of it must suit.
FAMILIES: dict[str, type[Variant]] = {
    variant.family: variant
    for variant in (Int8, Int8Gated, Int8Dynamic, Int4Int8, Int4Int8Dynamic, WeightOnly, WeightOnlyGradient)
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything that decides which configurations of a kernel family are valid and fast.

    Attributes:
        variant: of the family, all else that a configuration must suit: dtypes, layout, groups, alignment, epilogue.
        rows, features, columns: M, N and K.
    """

    variant: Variant
    rows: int
    features: int
    columns: int

    @property
    def family(self) -> str:
        """The kernel family."""
        return self.variant.family

    @property
    def bucket(self) -> int:
        """The bucket of M."""
        return bucket_of(self.rows)

    def shape_class(self, target: Target) -> tuple[float, bool]:
        """The class of the weight's shape on a GPU: (fill, deep)."""
        fill = triton.cdiv(self.features, _ROWS_OF_A_TILE) / target.multiprocessors
        bound = next((bound for bound in FILLS if fill <= bound), FILLS[-1])
        return bound, self.columns >= 2 * self.features


def bucket_of(rows: int) -> int:
    """The bucket of M = rows."""
    return next((bound for bound in BUCKETS if rows <= bound), BUCKETS[-1])
