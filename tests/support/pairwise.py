"""Test cases that cover every pair of values, instead of every combination of all of them.

Most defects need one or two unlucky values together (an odd K with a strided input, a zero point with a split). All
combinations of nine factors would be 10^5 cases; a pairwise covering has little more than the two longest factors
multiplied: some thirty.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def pairwise(**factors: Sequence[Any]) -> list[Any]:
    """pytest.param({factor: value}) for each case, such that any two values of two factors meet. Deterministic."""
    names = list(factors)
    uncovered = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(len(factors[names[a]]))
        for j in range(len(factors[names[b]]))
    }
    cases: list[dict[str, Any]] = []
    while uncovered:
        chosen = dict(min(uncovered))
        for factor in range(len(names)):
            if factor not in chosen:
                # The value that covers most pairs with what is chosen; a different one first each time, on a tie.
                options = [
                    (i + len(cases)) % len(factors[names[factor]]) for i in range(len(factors[names[factor]]))
                ]
                chosen[factor] = max(options, key=lambda i: len(_pairs(chosen | {factor: i}) & uncovered))
        uncovered -= _pairs(chosen)
        cases.append({name: factors[name][chosen[index]] for index, name in enumerate(names)})
    return [pytest.param(case, id="-".join(map(_label, case.items()))) for case in cases]


def _pairs(chosen: dict[int, int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return set(itertools.combinations(sorted(chosen.items()), 2))


def _label(item: tuple[str, Any]) -> str:
    name, value = item
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return f"{name}={value}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{name}=" + "/".join(map(str, dataclasses.astuple(value)))
    return str(value).removeprefix("torch.")
