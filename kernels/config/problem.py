"""What a configuration is chosen for, and the classes that tables sort it into.

A tuned file holds one configuration per weight shape and bucket of M; the shipped table one per *class* of weight
shapes and bucket of M. Both are defined here and nowhere else:

    bucket of M     the smallest of 8, 16, 32 … 8192 that is ≥ M; larger M go with 8192. Below 8 nothing changes: the
                    narrowest matrix instruction has 8 columns
    shape class     (fill, deep): fill is the smallest of 1/8, 1/4, 1/2, 1, 2, 4 that is ≥ the tiles of 64 weight
                    rows per multiprocessor, since that decides into how many parts K is worth splitting; more go
                    with 4. deep is K ≥ 2 N: much to split
"""

from __future__ import annotations

import dataclasses

import triton

from ..launch.target import Target

#: Upper bounds of M.
BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
#: Upper bounds of tiles per multiprocessor.
FILLS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_ROWS_OF_A_TILE = 64


@dataclasses.dataclass(frozen=True)
class Problem:
    """What decides which configurations of a kernel family are valid, and which is fast.

    Attributes:
        family: the kernel family: "int8", "int8_gated", "weight_only", "int4_int8", "weight_only_gradient"; of
            float activations that are quantized per token "int8_dynamic", "int4_int8_dynamic".
        variant: all else that a configuration must suit: operand dtypes, layout, groups, alignment, epilogue.
        rows, features, columns: M, N and K.
    """

    family: str
    variant: tuple[str | int | bool, ...]
    rows: int
    features: int
    columns: int

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
    """The bucket that M falls into."""
    return next((bound for bound in BUCKETS if rows <= bound), BUCKETS[-1])
