"""The configurations in the package: those measured to be better than the rule.

A family's rule (its `choose_config`) covers every GPU and every problem. This table has a row only where a measurement
found something faster; the row names the measurement. Rows are found by compute capability, path, kernel, class of the
weight's shape and bucket of M (problem.py). The path is the rule's, which knows what this Triton and the operands
allow. A GPU without rows uses the rule.

All rows so far are starting points. They were measured on an H100 80GB HBM3 (132 multiprocessors, torch 2.11, Triton
3.6.0, CUDA graphs over rotating weights) with prototypes of these kernels. `tritonq tune` measures these kernels on
your GPU.
"""

from __future__ import annotations

import dataclasses

from ..launch.target import Target
from .problem import Problem, WeightOnly
from .tile import TileConfig

_PROTOTYPES = (
    "starting point: measured on an H100 80GB HBM3, torch 2.11, Triton 3.6.0, with prototypes of the kernels"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One configuration, and the problems it is for.

    Attributes:
        arch: compute capability times ten.
        kernel: as `kernel_of`.
        shape_class: as `Problem.shape_class`.
        bucket: of M.
        config: the configuration.
        source: the GPU, the versions and the program of the measurement.
    """

    arch: int
    kernel: str
    shape_class: tuple[float, bool]
    bucket: int
    config: TileConfig
    source: str = _PROTOTYPES


_NARROW, _NARROW_AND_DEEP = (0.5, False), (0.5, True)  # o_proj and down_proj of Llama-3-8B

ROWS = (
    # o_proj: 9.3 and 14.7 µs. The rule splits K by 8 at M = 32, and takes tiles twice as wide at M = 128.
    Row(90, "int4 groups, 16 bit", _NARROW, 32, TileConfig(64, 32, 256, 4, 4, 3)),
    Row(90, "int4 groups, 16 bit", _NARROW, 128, TileConfig(64, 64, 256, 2, 4, 3)),
    # o_proj and down_proj: 9.1 and 23.7 µs at M = 1. The rule splits K by 8.
    Row(90, "int8 rows, 16 bit", _NARROW, 8, TileConfig(64, 8, 128, 4, 4, 3)),
    Row(90, "int8 rows, 16 bit", _NARROW_AND_DEEP, 8, TileConfig(64, 8, 128, 4, 4, 3)),
)


def shipped(problem: Problem, target: Target, path: str) -> Row | None:
    """The row for a problem on a path, or None."""
    return _BY_KEY.get((target.arch, path, kernel_of(problem), problem.shape_class(target), problem.bucket))


def kernel_of(problem: Problem) -> str:
    """The kernel that a problem needs, in words: the family, or for weight-only products "int4 groups, 16 bit" …"""
    variant = problem.variant
    if not isinstance(variant, WeightOnly):
        return problem.family
    weight = "int4" if variant.slabs == 4 else "int8"
    scales = "groups" if variant.group_size < problem.columns else "rows"
    return f"{weight} {scales}, {'32' if variant.dtype == 'torch.float32' else '16'} bit"


_BY_KEY = {(row.arch, row.config.path, row.kernel, row.shape_class, row.bucket): row for row in ROWS}
