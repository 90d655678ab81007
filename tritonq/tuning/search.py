"""The search for a faster configuration: rounds over candidates, each compiled, checked and timed; what is kept."""

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

#: What was there stays unless another takes this much less time: two runs of one kernel differ by 1 %.
_WORTH_IT = 0.98
#: After the first.
_MOST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a search works with.

    Attributes:
        compile_all: (workload, configs) → for each why it does not compile, or None.
        measure: (workload, config) → µs; raises WorkerError where it is wrong, crashes or does not end.
    """

    compile_all: Callable[[Workload, Sequence[TileConfig]], Iterable[str | None]]
    measure: Callable[[Workload, TileConfig], float]


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one workload.

    Attributes:
        workload: what was measured.
        before: what it ran with so far.
        entry: for the tuned file; None where what ran so far does not run right.
        measured: how many configurations were timed.
        dropped: those that were wrong, crashed or did not end, and why.
        uncompiled: those that do not compile here, and why.
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
    """The tuned file of a GPU while it grows: written anew with every entry, beside it and renamed.

    Args:
        target: the GPU.
        measured: what describes the measurement, for people.
        again: measure what is in it as well, and write over a file that is of no use here.

    Raises:
        ValueError: the file that is there is of no use here.
    """

    def __init__(self, target: Target, measured: dict[str, Any], again: bool = False) -> None:
        self.path, self._target, self._measured = tuned_file.path_of(target), target, measured
        try:
            self._entries = tuned_file.read(self.path, target)
        except ValueError as error:
            if not again:
                raise ValueError(
                    f"{self.path} cannot be gone on with: {error}; --again writes it anew"
                ) from None
            self._entries = {}
            self._write()
        #: What is measured anew is in the file until its new entry is.
        self._finished = set() if again else set(self._entries)

    def __contains__(self, problem: Problem) -> bool:
        return tuned_file.key_of(problem) in self._finished

    def keep(self, entry: tuned_file.Entry) -> None:
        """One more entry, or another for the same problem."""
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
    """Search for each workload and keep what was found, as it is found; what `file` has already is passed over.

    Args:
        workloads: may hold several of one bucket of M; the first counts.
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
        # The fastest of many is partly luck: it must be faster once more.
        times[best] = max(times[best], tools.measure(workload, best))
        if times[best] > _WORTH_IT * times[before.config]:
            best = before.config
    entry = tuned_file.Entry(
        Problem(problem.family, problem.variant, problem.bucket, problem.features, problem.columns),
        best,
        times[best],
        workload.rows,
        before.config,
        times[before.config],
    )
    return result(entry)
