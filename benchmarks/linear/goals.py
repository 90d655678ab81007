"""The goals for the kernels on an H100, as data, and whether a run meets them.

A goal compares tritonq's rows of one scheme with a number, or with another row of the same cell. Goals for whole models
(tokens per second, memory) are in benchmarks/llm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from benchmarks.linear.compare import geometric_mean, pairs
from benchmarks.linear.contender import FLOAT, INT8_TO_INT8, LINEAR, MATMUL, OURS
from benchmarks.linear.results import Results
from benchmarks.linear.rows import RECORDED, Row

#: The goals apply only to this GPU.
GPU = "NVIDIA H100 80GB HBM3"
MET, SHORT, NOT_MEASURED = "met", "short", "not measured"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One cell of a goal: the measured and the wanted value, and whether more is better."""

    where: str
    found: float
    wanted: float
    unit: str
    more_is_better: bool
    is_recorded: bool = False

    @property
    def is_met(self) -> bool:
        """Reached or surpassed."""
        return self.found >= self.wanted if self.more_is_better else self.found <= self.wanted

    @property
    def short_percent(self) -> float:
        """The shortfall in percent of the wanted value; negative if it is surpassed."""
        difference = self.found / self.wanted - 1
        return -100 * difference if self.more_is_better else 100 * difference


Judge = Callable[[Results], Iterator[Finding]]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal as a sentence, and the function that checks it in a run."""

    text: str
    judge: Judge

    def findings(self, results: Results) -> list[Finding]:
        """One for each cell of the run, the one furthest from its goal first."""
        return sorted(self.judge(results), key=lambda finding: -finding.short_percent)


def status(findings: list[Finding]) -> str:
    """MET if all are met, SHORT if one is not."""
    if not findings:
        return NOT_MEASURED
    return MET if all(finding.is_met for finding in findings) else SHORT


@dataclasses.dataclass(frozen=True)
class Ours:
    """tritonq's cells for a goal: scheme, what is timed, shapes (none: KERNEL_SHAPES), a range of M."""

    scheme: str
    measures: str = LINEAR
    shapes: tuple[str, ...] = ()
    least: int = 1
    most: int = 1 << 30

    def rows(self, results: Results) -> list[Row]:
        """The rows that have a time."""
        sizes = [KERNEL_SHAPES[name] for name in self.shapes or KERNEL_SHAPES]
        return [
            row
            for row in results.timed()
            if (row.by, row.scheme, row.measures) == (OURS, self.scheme, self.measures)
            and (row.N, row.K) in sizes
            and self.least <= row.M <= self.most
        ]


#: "All cells" in the goals means these layers, on which peers were first measured.
KERNEL_SHAPES = {"8b.o": (4096, 4096), "8b.down": (4096, 14336), "8b.gate_up": (28672, 4096)}


def _where(row: Row) -> str:
    return f"{row.scheme} {row.shape} M = {row.M}"


def at_most(ours: Ours, microseconds: float) -> Judge:
    """A goal for the time of a call."""

    def judge(results: Results) -> Iterator[Finding]:
        for row in ours.rows(results):
            assert row.microseconds is not None
            yield Finding(_where(row), row.microseconds, microseconds, "µs", False)

    return judge


def eager_at_most(ours: Ours, microseconds: float) -> Judge:
    """A goal for the host's time of a call."""

    def judge(results: Results) -> Iterator[Finding]:
        for row in ours.rows(results):
            if row.eager_microseconds is not None:
                yield Finding(_where(row), row.eager_microseconds, microseconds, "µs of CPU", False)

    return judge


def operations_at_least(ours: Ours, teraoperations: float) -> Judge:
    """A goal for the achieved operations per second."""

    def judge(results: Results) -> Iterator[Finding]:
        for row in ours.rows(results):
            if row.teraoperations_per_second is not None:
                yield Finding(_where(row), row.teraoperations_per_second, teraoperations, "TOP/s", True)

    return judge


def times_as_fast(ours: Ours, by: str, scheme: str, measures: str, ratio: float) -> Judge:
    """A goal for another row's time ÷ tritonq's."""

    def judge(results: Results) -> Iterator[Finding]:
        others = {
            row.cell: row
            for row in results.timed()
            if (row.by, row.scheme, row.measures) == (by, scheme, measures)
        }
        for row in ours.rows(results):
            other = others.get(row.cell)
            if other is not None:
                assert row.microseconds is not None
                assert other.microseconds is not None
                found = other.microseconds / row.microseconds
                yield Finding(_where(row), found, ratio, "×", True, other.status == RECORDED)

    return judge


def best_peer(ours: Ours) -> Judge:
    """The goal to be no slower than the fastest peer of the same scheme."""

    def judge(results: Results) -> Iterator[Finding]:
        rows = set(ours.rows(results))
        for pair in pairs(results, [ours.scheme]):
            if pair.ours in rows:
                where = f"{_where(pair.ours)} ({pair.peer.by})"
                yield Finding(where, pair.ratio, 1.0, "×", True, pair.is_recorded)

    return judge


def mean_at_least(schemes: tuple[str, ...], ratio: float) -> Judge:
    """A goal for the geometric mean of best peer ÷ tritonq over all cells of the run."""

    def judge(results: Results) -> Iterator[Finding]:
        found = pairs(results, schemes)
        mean = geometric_mean([pair.ratio for pair in found])
        if mean is not None:
            any_recorded = any(pair.is_recorded for pair in found)
            yield Finding(f"{len(found)} cells", mean, ratio, "×", True, any_recorded)

    return judge


_PRODUCT = Ours("w8a8", MATMUL, ("8b.gate_up", "8b.down"), least=1024)
_W4_PREFILL = Ours("w4a16", least=512)

GOALS = (
    Goal("int8 product with scales, M ≥ 1024: ≥ 1500 TOP/s", operations_at_least(_PRODUCT, 1500)),
    Goal("the same: ≥ 1.6 × torch._int_mm", times_as_fast(_PRODUCT, "int_mm", "w8a8", MATMUL, 1.6)),
    Goal("the same: ≥ 1.9 × bf16", times_as_fast(_PRODUCT, FLOAT, FLOAT, LINEAR, 1.9)),
    Goal(
        "W8A8, M = 4096, gate_up: ≤ 680 µs", at_most(Ours("w8a8", LINEAR, ("8b.gate_up",), 4096, 4096), 680)
    ),
    Goal("W8A8, M = 4096, down: ≤ 330 µs", at_most(Ours("w8a8", LINEAR, ("8b.down",), 4096, 4096), 330)),
    Goal("W8A8, M 1 … 64: ≤ best peer", best_peer(Ours("w8a8", most=64))),
    Goal("W8A8, M = 16, gate_up: ≤ 45 µs", at_most(Ours("w8a8", LINEAR, ("8b.gate_up",), 16, 16), 45)),
    Goal(
        "static, int8 in and out: faster than dynamic",
        times_as_fast(Ours("w8a8_static", INT8_TO_INT8), OURS, "w8a8", LINEAR, 1.0),
    ),
    Goal("W8A8, M = 1: ≤ 20 µs of CPU a call", eager_at_most(Ours("w8a8", most=1), 20)),
    Goal("W8A8, geometric mean of best peer ÷ ours: ≥ 1.2", mean_at_least(("w8a8",), 1.2)),
    Goal("W4A16, M = 1, gate_up: ≤ 25 µs", at_most(Ours("w4a16", LINEAR, ("8b.gate_up",), most=1), 25)),
    Goal("W4A16, M = 1, down: ≤ 15.5 µs", at_most(Ours("w4a16", LINEAR, ("8b.down",), most=1), 15.5)),
    Goal("W4A16, M = 1, o: ≤ 7.5 µs", at_most(Ours("w4a16", LINEAR, ("8b.o",), most=1), 7.5)),
    Goal("W4A16, M 1 … 256: ≤ best peer", best_peer(Ours("w4a16", most=256))),
    Goal("W4A16, M ≥ 512: ≥ 0.97 × bf16", times_as_fast(_W4_PREFILL, FLOAT, FLOAT, LINEAR, 0.97)),
    Goal(
        "W4A16: no cell slower than bf16 by more than 5 %",
        times_as_fast(Ours("w4a16"), FLOAT, FLOAT, LINEAR, 1 / 1.05),
    ),
    Goal("W8A16: ≤ best peer", best_peer(Ours("w8a16"))),
    Goal(
        "W4A8, M = 4096, gate_up: ≤ 660 µs", at_most(Ours("w4a8", LINEAR, ("8b.gate_up",), 4096, 4096), 660)
    ),
    Goal("W4A8, M = 4096, down: ≤ 320 µs", at_most(Ours("w4a8", LINEAR, ("8b.down",), 4096, 4096), 320)),
    Goal("W4A8, M 1 … 64: ≤ best peer", best_peer(Ours("w4a8", most=64))),
    Goal(
        "W4A16, W8A16, W4A8, geometric mean of best peer ÷ ours: ≥ 1.1",
        mean_at_least(("w4a16", "w8a16", "w4a8"), 1.1),
    ),
)
