"""Chooses the layers to spare for a budget: the 0/1 knapsack problem, solved exactly.

Sparing layer i costs b_i bytes and lowers the summed error by g_i. There are two kinds of budgets:

    size    Σ b_i ≤ the bytes left          maximize Σ g_i
    error   Σ g_i ≥ the error to remove     minimize Σ b_i

One table answers both: best[i, c] is the largest gain with the first i layers for at most c units of cost (Bellman,
1957). A unit is the greatest common divisor of all b_i. Layers of one model have few shapes, so the table is small and
the answer optimal. If the table needed more than 65,536 columns, the unit is made larger and costs are rounded up. The
answer then still keeps the budget, but may miss the optimum by a unit per layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tritonq.analysis.layer_effects import LayerAnalysis
from tritonq.select.select import DEFAULT_KEY

LARGEST_TABLE = 65_536
#: Sums of floats that should be equal may differ by this fraction.
_ROUNDING = 1e-9


class Knapsack:
    """The table for items with gains and costs, both > 0."""

    def __init__(self, gains: Sequence[float], costs: Sequence[int]) -> None:
        self.unit = max(math.gcd(*costs), -(-sum(costs) // LARGEST_TABLE), 1)
        self.costs = [-(-cost // self.unit) for cost in costs]  # in units, rounded up
        self.best = torch.zeros(sum(self.costs) + 1, dtype=torch.float64)
        self.taken = []  # one mask per item: for each number of units, True if the best choice so far takes the item
        for gain, cost in zip(gains, self.costs, strict=True):
            taking = torch.full_like(self.best, -math.inf)
            taking[cost:] = self.best[: len(self.best) - cost] + gain
            self.taken.append(taking > self.best)
            self.best = torch.maximum(self.best, taking)

    def within(self, cost: int) -> list[int]:
        """The items with the largest gain for at most this cost."""
        return self._items(min(cost // self.unit, len(self.best) - 1))

    def reaching(self, gain: float) -> list[int]:
        """The items with the smallest cost for at least this gain; all items if it cannot be reached."""
        enough = self.best >= gain - _ROUNDING * abs(gain)
        return self._items(int(enough.int().argmax()) if enough.any() else len(self.best) - 1)

    def _items(self, units: int) -> list[int]:
        """The items that make up `best` at this number of units."""
        found = []
        for index in reversed(range(len(self.costs))):
            if self.taken[index][units]:
                found.append(index)
                units -= self.costs[index]
        return found[::-1]


def layers_below(rows: Sequence[LayerAnalysis], sqnr_db: float) -> list[str]:
    """See Analysis.layers_below."""
    found = [(row.quantized.output_sqnr, row.name) for row in rows]
    below = [(sqnr, name) for sqnr, name in found if sqnr is not None and sqnr < sqnr_db]
    return [name for _, name in sorted(below, key=lambda pair: pair[0])]


def mixed_precision(
    rows: Sequence[LayerAnalysis],
    config: Any,
    higher: Any,
    *,
    sqnr: float | None,
    error: float | None,
    size: int | None,
) -> dict[Any, Any]:
    """See Analysis.mixed_precision."""
    budgets = {"sqnr": sqnr, "error": error, "size": size}
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise ValueError(f"mixed_precision needs one of sqnr, error and size, found {found}")
    ((name, value),) = given.items()
    if type(value) not in (int, float) or math.isnan(value):
        raise TypeError(f"mixed_precision: {name} must be a number, found {value!r}")
    silent = [row for row in rows if not row.reached and _is_static(row.quantized.config)]
    if sqnr is not None:
        chosen = set(layers_below(rows, sqnr))
    else:
        chosen = _cheapest(rows, error, size, silent)
    spared = [row.name for row in rows if row.name in chosen]
    names = [row.name for row in rows]
    table: dict[Any, Any] = {_exactly(name, names): higher for name in spared}
    for row in silent:
        table[_exactly(row.name, names)] = None if _is_static(row.higher.config) else higher
    rest = config if isinstance(config, Mapping) else {DEFAULT_KEY: config}
    return {**table, **{key: value for key, value in rest.items() if key not in table}}


def _cheapest(
    rows: Sequence[LayerAnalysis], error: float | None, size: int | None, silent: list[LayerAnalysis]
) -> set[str]:
    """The names of the layers that a budget of errors or of bytes spares."""
    bytes_needed = sum(row.quantized.weight_bytes for row in rows)
    for row in silent:
        spared_bytes = row.float_bytes if _is_static(row.higher.config) else row.higher.weight_bytes
        bytes_needed += spared_bytes - row.quantized.weight_bytes
    total = 0.0
    gains: dict[str, float] = {}  # of the layers that err less when spared
    costs: dict[str, int] = {}
    for row in rows:
        before, after = row.quantized.error, row.higher.error
        if before is not None and after is not None:
            total += before
            if before > after:
                gains[row.name] = before - after
                costs[row.name] = row.higher.weight_bytes - row.quantized.weight_bytes
    least = total - sum(gains.values())
    bytes_needed += sum(cost for cost in costs.values() if cost < 0)
    if size is not None and size < bytes_needed:
        raise ValueError(f"mixed_precision: size must be at least {bytes_needed:,} bytes, found {size:,}")
    if error is not None and error < least - _ROUNDING * total:
        raise ValueError(f"mixed_precision: error must be at least {least:.4g}, found {error:.4g}")
    too_much = math.inf if error is None else total - error
    chosen = set()
    # Always spare layers that save bytes. Then spare free ones, the worst first, while the error is too large.
    for name in sorted(gains, key=lambda name: (costs[name] >= 0, -gains[name])):
        if costs[name] < 0 or (costs[name] == 0 and too_much > 0):
            chosen.add(name)
            too_much -= gains[name]
    names = [name for name in gains if costs[name] > 0]
    if not names or too_much <= 0:
        return chosen
    prices = [costs[name] for name in names]
    knapsack = Knapsack([gains[name] for name in names], prices)
    if size is None:
        items = knapsack.reaching(too_much)
    else:
        items = knapsack.within(int(min(size - bytes_needed, sum(prices))))
    return chosen | {names[index] for index in items}


def _is_static(config: Any) -> bool:
    return config is not None and config.static


def _exactly(name: str, names: list[str]) -> str:
    """A pattern that matches one layer: its name, unless that could be another's last part or a class."""
    unclear = name == "Linear" or any(name == other.rpartition(".")[2] for other in names if other != name)
    return f"re:{re.escape(name)}$" if unclear else name
