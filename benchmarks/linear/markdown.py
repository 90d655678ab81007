"""A run as Markdown, for documentation: time, speed-up and achieved rates by shape, means, goals."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.linear import tables
from benchmarks.linear.goals import GOALS
from benchmarks.linear.results import Results
from benchmarks.linear.rows import RECORDED, Row


def markdown(results: Results, with_goals: bool) -> str:
    """The whole page."""
    lines = ["# One Linear layer", "", *_paragraphs(tables.machine_lines(results))]
    if not results.complete:
        lines += ["**Incomplete**: the run was interrupted.", ""]
    if any(row.status == RECORDED for row in results.rows):
        lines += [f"{tables.RECORDED_LEGEND}.", ""]
    for name, features, columns in results.shapes():
        rows = [row for row in results.rows if row.shape == name]
        lines += [f"## {name} (N = {features}, K = {columns})", "", *_shape(results, rows)]
    means = tables.mean_table(results)
    if means:
        lines += ["## Geometric means", "", *_table(tables.MEAN_HEADER, means, 3), ""]
    if with_goals:
        lines += ["## Goals", "", *_table(tables.GOAL_HEADER, tables.goal_table(results), 0), ""]
        short = _short_cells(results)
        lines += ["Cells that fall short:", "", *short, ""] if short else []
    problems = tables.problems(results)
    if problems:
        lines += ["## Wrong, failed, absent, unsteady", "", *(f"- {problem}" for problem in problems), ""]
    return "\n".join(lines).rstrip() + "\n"


def _shape(results: Results, rows: Sequence[Row]) -> list[str]:
    floats = results.float_rows()

    def speedup(row: Row) -> float | None:
        reference = floats.get(row.cell)
        if row.microseconds is None or reference is None or reference.microseconds is None:
            return None
        return reference.microseconds / row.microseconds

    parts: tuple[tuple[str, tables.Value, str], ...] = (
        ("µs of one call, by M (median)", lambda row: row.microseconds, "{:.1f}"),
        (f"Times as fast as {results.float_name}", speedup, "{:.2f}"),
        ("Share of the bandwidth measured in this run", lambda row: row.of_bandwidth, "{:.0%}"),
        ("Share of the peak", lambda row: row.of_peak, "{:.0%}"),
    )
    batch_sizes = sorted({row.M for row in rows})
    lines = []
    for title, value, form in parts:
        body = [
            [
                *tables.names(results, *named),
                *(tables.cell(group, m, value, form) for m in batch_sizes),
            ]
            for named, group in tables.by_contender(rows).items()
        ]
        header = ["scheme", "timed", "by", *map(str, batch_sizes)]
        lines += [f"{title}:", "", *_table(header, body, len(batch_sizes)), ""]
    return lines


def _short_cells(results: Results) -> list[str]:
    return [
        f"- {goal.text}: {finding.where}: {finding.found:.4g} {finding.unit}, short by {finding.short_percent:.1f} %"
        + (f" {tables.RECORDED_MARK}" if finding.is_recorded else "")
        for goal in GOALS
        for finding in goal.findings(results)
        if not finding.is_met
    ]


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in (line, "")]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> list[str]:
    """A Markdown table whose last `numbers` columns are flush right."""
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    lines = [header, rule, *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
