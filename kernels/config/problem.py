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

import triton

from ..launch.target import Target

#: Upper bounds of M.
BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
#: Upper bounds of tiles per multiprocessor.
FILLS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_ROWS_OF_A_TILE = 64


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything that decides which configurations of a kernel family are valid and fast.

    Attributes:
        family: the kernel family: "int8", "int8_gated", "weight_only", "int4_int8", "weight_only_gradient"; with float
            activations that are quantized per token "int8_dynamic", "int4_int8_dynamic".
        variant: everything else that matters: operand dtypes, layout, groups, alignment, epilogue.
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
    """The bucket of M = rows."""
    return next((bound for bound in BUCKETS if rows <= bound), BUCKETS[-1])
