"""Which configuration a problem runs with, without trying any: a rule over its sizes and the GPU, asked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .target import Target
from .tiles import TileConfig

#: More problems than this at once (rows of the input differ freely), and all are forgotten.
_REMEMBERED = 1 << 14
_chosen: dict[tuple[Problem, Target], TileConfig] = {}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What decides which configurations of a kernel family are valid, and which is fast.

    Attributes:
        family: the kernel family: "int8", "int8_gated", "weight_only", "int4_int8", "weight_only_gradient".
        variant: all else that a configuration must suit: operand dtypes, layout, groups, alignment, epilogue.
        rows, features, columns: M, N and K.
    """

    family: str
    variant: tuple[str | int | bool, ...]
    rows: int
    features: int
    columns: int


def configured(problem: Problem, target: Target, rule: Callable[[], TileConfig]) -> TileConfig:
    """The configuration of a problem on a target; `rule` is asked the first time."""
    key = (problem, target)
    config = _chosen.get(key)
    if config is None:
        if len(_chosen) >= _REMEMBERED:
            _chosen.clear()
        config = _chosen[key] = rule()
    return config
