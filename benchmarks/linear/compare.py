"""Compares tritonq with its peers: the best peer of each cell, and the geometric mean over all cells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from benchmarks.linear.contender import FLOAT, LINEAR, OURS
from benchmarks.linear.results import Results
from benchmarks.linear.rows import RECORDED, Row


@dataclasses.dataclass(frozen=True)
class Pair:
    """One cell of one scheme: tritonq's row, and the fastest peer's."""

    ours: Row
    peer: Row

    @property
    def ratio(self) -> float:
        """The peer's time ÷ tritonq's: above 1 tritonq is faster."""
        return _microseconds(self.peer) / _microseconds(self.ours)

    @property
    def is_recorded(self) -> bool:
        """The peer was measured earlier."""
        return self.peer.status == RECORDED


def pairs(results: Results, schemes: Iterable[str]) -> list[Pair]:
    """Every cell of these schemes with a time of tritonq and of at least one peer, whole layers only."""
    schemes = tuple(schemes)
    rows = [row for row in results.timed() if row.measures == LINEAR and row.scheme in schemes]
    best: dict[tuple[str, tuple[int, int, int]], Row] = {}
    for row in rows:
        key = (row.scheme, row.cell)
        if row.by not in (OURS, FLOAT) and (key not in best or _microseconds(row) < _microseconds(best[key])):
            best[key] = row
    ours = [row for row in rows if row.by == OURS and (row.scheme, row.cell) in best]
    return [Pair(row, best[row.scheme, row.cell]) for row in ours]


def geometric_mean(ratios: Sequence[float]) -> float | None:
    """exp of the mean logarithm; None if there are no ratios."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def _microseconds(row: Row) -> float:
    assert row.microseconds is not None
    return row.microseconds
