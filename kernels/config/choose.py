"""Chooses the configuration of a problem without measuring. The first source with a configuration that fits
(limits.py) decides:

    1.  the caller, by an argument of every launcher
    2.  the tuned file of this GPU, measured here by `tritonq tune` (tuned_file.py)
    3.  the table in the package, measured elsewhere (shipped.py)
    4.  the family's rule over M, N, K, the multiprocessors and the shared memory; it always has one

The choice is made once per problem and remembered. Only the chosen configuration is compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from ..launch import plans
from ..launch.target import Target
from . import tuned_file
from .limits import why_not
from .problem import Problem
from .shipped import shipped
from .tile import TileConfig

#: With more problems than this, all are forgotten: the number of input rows is unbounded.
_REMEMBERED = 1 << 14
_chosen: dict[tuple[Problem, Target], TileConfig] = {}
_listener: list[Explanation] | None = None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A configuration, and why it was chosen.

    Attributes:
        problem, target: the question.
        config: the answer.
        source: "tuned", "table" or "rule".
        origin: the tuned file, or the measurement of the table's row; "" for a rule.
        passed_over: for each earlier source that had a configuration, a sentence why it does not fit.
    """

    problem: Problem
    target: Target
    config: TileConfig
    source: str
    origin: str = ""
    passed_over: tuple[str, ...] = ()


def configured(problem: Problem, target: Target, rule: Callable[[], TileConfig]) -> TileConfig:
    """The configuration of a problem on a target: remembered, or chosen now; `rule` is the last source."""
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
    """Choose, with reasons and without remembering the choice."""
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
    """Inside the block: collect the choices that launchers make, each problem once. Earlier choices return after it."""
    global _chosen, _listener
    before = _chosen, _listener
    _chosen, _listener = {}, []
    try:
        with plans.set_aside():
            yield _listener
    finally:
        _chosen, _listener = before


def forget() -> None:
    """Forget all choices and the tuned file. Call it after the file was written."""
    _chosen.clear()
    plans.forget()
    tuned_file.forget()
