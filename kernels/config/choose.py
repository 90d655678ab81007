"""Which configuration a problem runs with, without trying any. The first of these that has one
which fits (limits.py):

    1.  the caller's own, an argument of every launcher
    2.  the tuned file of this GPU: measured here by `tritonq tune` (tuned_file.py)
    3.  the table that comes with the package: measured elsewhere (shipped.py)
    4.  the family's rule over M, N, K, the multiprocessors and the shared memory, which always has one

Each problem is asked once; nothing is measured, and nothing compiled but what runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from ..launch import replay
from ..launch.target import Target
from . import tuned_file
from .limits import why_not
from .problem import Problem
from .shipped import shipped
from .tile import TileConfig

__all__ = ["Explanation", "Problem", "asked", "configured", "explain", "forget"]

#: More problems than this at once (rows of the input differ freely), and all are forgotten.
_REMEMBERED = 1 << 14
_chosen: dict[tuple[Problem, Target], TileConfig] = {}
_listener: list[Explanation] | None = None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A configuration, and how it was found.

    Attributes:
        problem, target: what was asked.
        config: the answer.
        source: "tuned", "table" or "rule".
        origin: where the source has it from: the tuned file, the table's measurement; "" for a rule.
        passed_over: why sources before that one were not followed, a sentence each.
    """

    problem: Problem
    target: Target
    config: TileConfig
    source: str
    origin: str = ""
    passed_over: tuple[str, ...] = ()


def configured(problem: Problem, target: Target, rule: Callable[[], TileConfig]) -> TileConfig:
    """The configuration of a problem on a target; sources, and `rule` at last, are asked the first time."""
    key = (problem, target)
    config = _chosen.get(key)
    if config is None:
        if len(_chosen) >= _REMEMBERED:
            _chosen.clear()
        explanation = explain(problem, target, rule)
        if _listener is not None:
            _listener.append(explanation)
        config = _chosen[key] = explanation.config
    return config


def explain(problem: Problem, target: Target, rule: Callable[[], TileConfig]) -> Explanation:
    """The same with its reasons, and not remembered."""
    passed_over = []
    tuned = tuned_file.tuned(problem, target)
    if tuned is not None:
        reason = why_not(problem, target, tuned)
        if reason is None:
            return Explanation(problem, target, tuned, "tuned", str(tuned_file.path_of(target)))
        passed_over.append(f"tuned: {reason}")
    ruled = rule()
    row = shipped(problem, target, ruled.path)
    if row is not None:
        reason = why_not(problem, target, row.config)
        if reason is None:
            return Explanation(problem, target, row.config, "table", row.source, tuple(passed_over))
        passed_over.append(f"table: {reason}")
    return Explanation(problem, target, ruled, "rule", passed_over=tuple(passed_over))


@contextlib.contextmanager
def asked() -> Iterator[list[Explanation]]:
    """What launchers ask meanwhile, each problem once, in order; what was chosen before counts again afterwards."""
    global _chosen, _listener
    before = _chosen, _listener
    _chosen, _listener = {}, []
    try:
        with replay.set_aside():
            yield _listener
    finally:
        _chosen, _listener = before


def forget() -> None:
    """Ask again for each problem from now on, and read the tuned file again: after it was written."""
    _chosen.clear()
    replay.forget()
    tuned_file.forget()
