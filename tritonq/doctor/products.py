"""Checks of products: each family, in an odd and in even shapes, on each path that this GPU has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from tritonq.doctor.checks import Outcome, compared
from tritonq.kernels.config.candidates import first_round, next_round
from tritonq.kernels.config.tile import TileConfig
from tritonq.kernels.launch.target import Target
from tritonq.tuning.schemes import SCHEMES
from tritonq.tuning.workload import Workload, explained, product

#: (N, K, M): rows that are not aligned; decoding, with K split; many rows.
SHAPES = ((130, 314, 33), (384, 1024, 1), (384, 1024, 300))


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
        """The configuration's, and whether K is split."""
        return (
            self.config.path
            if self.config.splits == 1
            else f"{self.config.path}, {self.config.splits} splits"
        )

    def run(self, device: str, repeats: int) -> Outcome:
        """Against the reference, computed on the same device."""
        operands = product(self.workload, device)
        expected = operands.expected()
        return compared(lambda: (operands.run(config=self.config),), (expected,), operands.exact, repeats)


def product_checks(
    target: Target, dtype: str = "bfloat16", shapes: Sequence[tuple[int, int, int]] = SHAPES
) -> Iterator[ProductCheck]:
    """Each product as it would run, with K split otherwise, and on the other paths that can run it."""
    for scheme in SCHEMES:
        for features, columns, rows in shapes:
            workload = Workload(scheme, features, columns, rows, dtype)
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
