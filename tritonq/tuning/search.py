"""Searches a faster configuration: compiles, checks and times candidates in rounds, and keeps the best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tritonq.kernels.config import choose, tuned_file
from tritonq.kernels.config.candidates import first_round, next_round
from tritonq.kernels.config.choose import Explanation
from tritonq.kernels.config.problem import Problem
from tritonq.kernels.config.tile import TileConfig
from tritonq.kernels.launch.target import Target
from tritonq.tuning.worker import WorkerError
from tritonq.tuning.workload import Workload, explained
from tritonq.util.json_file import write_json

#: A new configuration must take at most this part of the old one's time. Two runs of one kernel differ by 1 %.
_WORTH_IT = 0.98
#: Rounds after the first.
_MOST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Tools:
    """The tools of a search.

    Attributes:
        compile_all: (workload, configs) → for each, the reason why it does not compile, or None.
        measure: (workload, config) → µs; raises WorkerError if the result is wrong, or the kernel crashes or hangs.
    """

    compile_all: Callable[[Workload, Sequence[TileConfig]], Iterable[str | None]]
    measure: Callable[[Workload, TileConfig], float]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result for one workload.

    Attributes:
        workload: the product that was measured.
        before: the configuration before the search.
        entry: for the tuned file; None if the configuration before the search does not run correctly.
        measured: the number of configurations timed.
        dropped: configurations that were wrong, crashed or hung, with the reasons.
        uncompiled: configurations that do not compile here, with the reasons.
    """

    workload: Workload
    before: Explanation
    entry: tuned_file.Entry | None
    measured: int
    dropped: tuple[tuple[TileConfig, str], ...]
    uncompiled: tuple[tuple[TileConfig, str], ...]

    @property
    def speedup(self) -> float | None:
        """Time before ÷ time now."""
        return None if self.entry is None else self.entry.before_microseconds / self.entry.microseconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "workload": dataclasses.asdict(self.workload),
            "source_before": self.before.source,
            "entry": None if self.entry is None else self.entry.to_dict(),
            "speedup": self.speedup,
            "measured": self.measured,
            "dropped": [_failure(*failure) for failure in self.dropped],
            "uncompiled": [_failure(*failure) for failure in self.uncompiled],
        }


def _failure(config: TileConfig, reason: str) -> dict[str, Any]:
    return {"config": dataclasses.asdict(config), "reason": reason}


class TunedFile:
    """The tuned file of a GPU during a search: rewritten with every entry, so an interrupt loses none.

    Args:
        target: the GPU.
        measured: a description of the measurement, for people.
        again: also measure problems that have an entry, and overwrite a file that cannot be used here.

    Raises:
        ValueError: the existing file cannot be used here.
    """

    def __init__(self, target: Target, measured: dict[str, Any], again: bool = False) -> None:
        self.path, self._target, self._measured = tuned_file.path_of(target), target, measured
        try:
            self._entries = tuned_file.read(self.path, target)
        except ValueError as error:
            if not again:
                raise ValueError(f"{self.path} cannot be continued: {error}; --again replaces it") from None
            self._entries = {}
            self._write()
        #: With `again`, an old entry stays in the file until its new entry replaces it.
        self._finished = set() if again else set(self._entries)

    def __contains__(self, problem: Problem) -> bool:
        return tuned_file.key_of(problem) in self._finished

    def keep(self, entry: tuned_file.Entry) -> None:
        """Add an entry, or replace the one of the same problem."""
        self._entries[tuned_file.key_of(entry.problem)] = entry
        self._finished.add(tuned_file.key_of(entry.problem))
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = [one.to_dict() for one in self._entries.values()]
        write_json(
            self.path,
            {**tuned_file.header_of(self._target), "measured": self._measured, "entries": entries},
        )
        choose.forget()


def tune(
    workloads: Iterable[Workload], target: Target, tools: Tools, file: TunedFile | None
) -> Iterator[Result]:
    """Search for each workload, and keep each result at once. Workloads that `file` already has are skipped.

    Args:
        workloads: of several in one bucket of M only the first is used.
        target: the GPU that `tools` measure on.
        file: None writes nothing.
    """
    done: set[tuned_file.Key] = set()
    for workload in workloads:
        before = explained(workload, target)
        key = tuned_file.key_of(before.problem)
        if key in done or (file is not None and before.problem in file):
            continue
        done.add(key)
        result = search(workload, before, tools)
        if file is not None and result.entry is not None:
            file.keep(result.entry)
        yield result


def search(workload: Workload, before: Explanation, tools: Tools) -> Result:
    """Try the candidates for one workload."""
    problem, target = before.problem, before.target
    times: dict[TileConfig, float] = {}
    dropped: dict[TileConfig, str] = {}
    uncompiled: dict[TileConfig, str] = {}

    def attempt(configs: Sequence[TileConfig]) -> None:
        new = [
            config for config in configs if not any(config in seen for seen in (times, dropped, uncompiled))
        ]
        for config, obstacle in zip(new, tools.compile_all(workload, new), strict=True):
            if obstacle is not None:
                uncompiled[config] = obstacle
        for config in new:
            if config not in uncompiled:
                try:
                    times[config] = tools.measure(workload, config)
                except WorkerError as error:
                    dropped[config] = str(error)

    def result(entry: tuned_file.Entry | None) -> Result:
        failures = tuple(dropped.items()), tuple(uncompiled.items())
        return Result(workload, before, entry, len(times), *failures)

    attempt([before.config])
    if before.config not in times:
        return result(None)
    attempt(first_round(problem, target))
    for _ in range(_MOST_ROUNDS):
        best = min(times, key=times.__getitem__)
        attempt(next_round(problem, target, best))
        if min(times, key=times.__getitem__) == best:
            break
    best = min(times, key=times.__getitem__)
    if best != before.config:
        # The fastest of many candidates is partly luck, so it must be faster a second time.
        times[best] = max(times[best], tools.measure(workload, best))
        if times[best] > _WORTH_IT * times[before.config]:
            best = before.config
    entry = tuned_file.Entry(
        Problem(problem.variant, problem.bucket, problem.features, problem.columns),
        best,
        times[best],
        workload.rows,
        before.config,
        times[before.config],
    )
    return result(entry)
