"""Checks of products: each family in small shapes, on each path of this GPU, and in production shapes.

Small shapes end before a pipeline wraps around. Only large shapes show what a kernel does when it reuses a slot, or
computes another tile after the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from tritonq.doctor.checks import Outcome, compared
from tritonq.kernels.config.candidates import first_round, next_round
from tritonq.kernels.config.tile import APART, TileConfig
from tritonq.kernels.launch.target import Target
from tritonq.tuning.schemes import SCHEMES
from tritonq.tuning.workload import Workload, explained, product

#: (N, K, M): unaligned rows; decoding, with K split; many rows.
SHAPES = ((130, 314, 33), (384, 1024, 1), (384, 1024, 300))
#: More steps of K than a ring has slots; then also more tiles than programs, with one row and with many.
LARGE_SHAPES = ((512, 4096, 300), (40000, 2048, 1), (40000, 2048, 300))
#: Paths whose programs compute several tiles. Every tile shape is checked.
_PERSISTENT = ("descriptors", "hopper")


@dataclasses.dataclass(frozen=True)
class ProductCheck:
    """A product with one configuration."""

    workload: Workload
    config: TileConfig

    @property
    def name(self) -> str:
        """The workload."""
        return str(self.workload)

    @property
    def path(self) -> str:
        """The path of the configuration, its tile shape if there is one, and whether K is split."""
        config = self.config
        if config == APART:
            return config.path
        splits = "" if config.splits == 1 else f", {config.splits} splits"
        return f"{config.path} {config.block_n}x{config.block_m}{splits}"

    def run(self, device: str, repeats: int) -> Outcome:
        """Compare with the reference, computed on the same device."""
        operands = product(self.workload, device)
        expected = operands.expected()
        return compared(lambda: (operands.run(config=self.config),), (expected,), operands.exact, repeats)


def product_checks(
    target: Target,
    dtype: str = "bfloat16",
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    large_shapes: Sequence[tuple[int, int, int]] = LARGE_SHAPES,
) -> Iterator[ProductCheck]:
    """Each product with its usual configuration, with other splits of K, and on the other paths that can run it.

    In large shapes: with its usual configuration, and with every tile without splits on the persistent paths.
    """
    for scheme in SCHEMES:
        for shape in shapes:
            workload = Workload(scheme, *shape, dtype)
            chosen = explained(workload, target)
            yield ProductCheck(workload, chosen.config)
            near = next_round(chosen.problem, target, chosen.config)
            yield from (
                ProductCheck(workload, config) for config in near if config.splits > chosen.config.splits
            )
            others: dict[str, TileConfig] = {}
            for config in first_round(chosen.problem, target):
                if config.path != chosen.config.path:
                    others.setdefault(config.path, config)
            yield from (ProductCheck(workload, config) for config in others.values())
        for shape in large_shapes:
            workload = Workload(scheme, *shape, dtype)
            chosen = explained(workload, target)
            tiles = {_tile(chosen.config): chosen.config}
            for config in first_round(chosen.problem, target):
                if config.path in _PERSISTENT and config.splits == 1:
                    tiles.setdefault(_tile(config), config)
            yield from (ProductCheck(workload, config) for config in tiles.values())


def _tile(config: TileConfig) -> tuple[str, int, int, bool]:
    return config.path, config.block_n, config.block_m, config.splits > 1
