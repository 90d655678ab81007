"""A run as text: one table per shape, one line per contender, one column per M."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.linear.compare import geometric_mean, pairs
from benchmarks.linear.contender import FLOAT, LINEAR, OURS
from benchmarks.linear.goals import GOALS, Finding, status
from benchmarks.linear.results import Results
from benchmarks.linear.rows import FAILED, RECORDED, WRONG, Row
from tritonq.util.table import aligned

#: Marks every number that this run did not measure.
RECORDED_MARK = "ʳ"
RECORDED_LEGEND = f"{RECORDED_MARK} recorded earlier on the same GPU model, not measured in this run"
_SCHEMES = ("w8a8", "w8a8_static", "w4a16", "w8a16", "w4a8")
#: A time is unsteady if its quartiles are further apart than this share of the median: clocks changed, or another
#: program ran on the GPU.
_UNSTEADY = 0.1
_WORDS = {WRONG: "WRONG", FAILED: "failed"}

Value = Callable[[Row], float | None]


def shape_table(results: Results, rows: Sequence[Row]) -> list[str]:
    """The table of one shape: µs by M, the host's cost and the largest error."""
    batch_sizes = sorted({row.M for row in rows})
    header = ["scheme", "timed", "by", *map(str, batch_sizes), "host µs", "error"]
    lines = []
    for named, group in by_contender(rows).items():
        eager = [row.eager_microseconds for row in group if row.eager_microseconds is not None]
        errors = [row.error for row in group if row.error is not None]
        lines.append(
            [
                *names(results, *named),
                *(cell(group, m, lambda row: row.microseconds, "{:.1f}") for m in batch_sizes),
                f"{min(eager):.1f}" if eager else "",
                f"{max(errors):.1e}" if errors else "",
            ]
        )
    first = rows[0]
    title = f"{first.shape}   N = {first.N}, K = {first.K}   µs by M"
    return [title, *aligned(header, lines, len(header) - 3)]


def by_contender(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """(by, scheme, measures) → its rows; schemes in a fixed order, tritonq first in each."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.by, row.scheme, row.measures), []).append(row)
    order = (FLOAT, *_SCHEMES)
    ranked = sorted(
        found,
        key=lambda named: (order.index(named[1]) if named[1] in order else len(order), named[0] != OURS),
    )
    return {named: found[named] for named in ranked}


def names(results: Results, by: str, scheme: str, measures: str) -> list[str]:
    """The names in a line: scheme, what is timed, contender."""
    if by == FLOAT:
        return ["", "", results.float_name]
    return [scheme, "" if measures == LINEAR else measures, by]


def cell(rows: Sequence[Row], m: int, value: Value, form: str) -> str:
    """The cell at M = m: a number with its mark, WRONG, failed, or empty."""
    for row in rows:
        if row.M == m:
            number = value(row)
            if row.status in _WORDS:
                return _WORDS[row.status]
            if number is None:
                return ""
            return form.format(number) + (RECORDED_MARK if row.status == RECORDED else "")
    return ""


def problems(results: Results) -> list[str]:
    """One line for each wrong or failed result, each absent peer, each unsteady time."""
    lines = [
        f"{_WORDS[row.status]}: {row.by} {row.scheme} {row.shape} M = {row.M}: {row.message}"
        for row in results.rows
        if row.status in _WORDS
    ]
    reasons: dict[str, list[str]] = {}
    for by, why in results.absent.items():
        reasons.setdefault(why, []).append(by)
    lines += [f"absent: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return lines + [
        f"unsteady: {row.by} {row.scheme} {row.shape} M = {row.M}: half of the repeats outside "
        f"{row.low:.1f} … {row.high:.1f} µs"
        for row in results.rows
        if results.on_gpu and _is_unsteady(row)
    ]


def _is_unsteady(row: Row) -> bool:
    if row.microseconds is None or row.low is None or row.high is None:
        return False
    return (row.high - row.low) / row.microseconds > _UNSTEADY


def mean_table(results: Results) -> list[list[str]]:
    """[scheme, cells, recorded cells, geometric mean of best peer ÷ tritonq], and a last line for all."""
    lines = []
    for label, schemes in (*((scheme, (scheme,)) for scheme in _SCHEMES), ("all", _SCHEMES)):
        found = pairs(results, schemes)
        mean = geometric_mean([pair.ratio for pair in found])
        if mean is not None:
            recorded = sum(pair.is_recorded for pair in found)
            mark = RECORDED_MARK if recorded else ""
            lines.append([label, str(len(found)), str(recorded), f"{mean:.2f}{mark}"])
    return lines


MEAN_HEADER = ["scheme", "cells", "peers recorded", "best peer ÷ ours"]
GOAL_HEADER = ["goal", "", "cells met", "furthest from it", "found", "short by"]


def goal_table(results: Results) -> list[list[str]]:
    """One line per goal: whether it is met, in how many cells, and the cell furthest from it."""
    lines = []
    for goal in GOALS:
        findings = goal.findings(results)
        met = sum(finding.is_met for finding in findings)
        cells = f"{met} of {len(findings)}" if findings else ""
        lines.append([goal.text, status(findings), cells, *_worst(findings)])
    return lines


def _worst(findings: list[Finding]) -> list[str]:
    if not findings:
        return ["", "", ""]
    worst = findings[0]
    mark = RECORDED_MARK if worst.is_recorded else ""
    short = "" if worst.is_met else f"{worst.short_percent:.1f} %"
    return [worst.where, f"{worst.found:.4g}{mark} {worst.unit}", short]


def summary(results: Results, with_goals: bool) -> list[str]:
    """The text after the tables: problems, means, goals and the mark, each after an empty line."""
    means = mean_table(results)
    parts = [
        problems(results),
        aligned(MEAN_HEADER, means, 3) if means else [],
        aligned(GOAL_HEADER, goal_table(results), 0) if with_goals else [],
        [RECORDED_LEGEND] if any(row.status == RECORDED for row in results.rows) else [],
    ]
    return [line for part in parts if part for line in ("", *part)]


def machine_lines(results: Results) -> list[str]:
    """The machine of the run."""
    words = [
        f"{key.replace('_', ' ')} {value}" for key, value in results.machine.items() if value is not None
    ]
    ceilings = results.ceilings
    lines = [
        ", ".join([*words, f"dtype {results.dtype}"]),
        f"measured here: reading {ceilings.read:.3g} TB/s, copying {ceilings.copy:.3g} TB/s, "
        f"product {ceilings.float_product:.4g} TOP/s in {results.dtype}, {ceilings.int8_product:.4g} in int8",
    ]
    if not results.on_gpu:
        lines.append("No GPU: tritonq's backend for CPUs is measured, and its contenders in turn.")
    return lines
