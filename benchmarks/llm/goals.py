"""The goals for a model of Llama-3-8B's shape on an H100, as data, and whether a run meets them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from benchmarks.linear.contender import FLOAT, OURS
from benchmarks.linear.goals import GPU, Finding, status
from benchmarks.llm.rows import DECODE, Cell, Row
from benchmarks.llm.sessions import LEAN, TRANSFORMERS
from benchmarks.llm.ways import COMPILE, GRAPH

_MODEL, _SCHEME = "8b", "w4a16"
Judge = Callable[[Sequence[Row]], Iterator[Finding]]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A goal as a sentence, and the function that checks it in a run's rows."""

    text: str
    judge: Judge


def _decoding(rows: Sequence[Row], decoder: str, ways: tuple[str, ...]) -> list[Row]:
    """The measured rows of w4a16 with one sequence."""
    return [
        row
        for row in rows
        if (row.cell.model, row.cell.by, row.cell.scheme) == (_MODEL, OURS, _SCHEME)
        and (row.cell.decoder, row.cell.phase, row.cell.batch) == (decoder, DECODE, 1)
        and row.cell.way in ways
        and row.tokens_per_second is not None
    ]


def _where(cell: Cell) -> str:
    return f"{cell.decoder}, {cell.way}, batch {cell.batch}"


def _best(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -(row.tokens_per_second or 0))[:1]


def speed(decoder: str, ways: tuple[str, ...], wanted: float) -> Judge:
    """A goal for the tokens per second of the best of some ways."""

    def judge(rows: Sequence[Row]) -> Iterator[Finding]:
        for row in _best(_decoding(rows, decoder, ways)):
            assert row.tokens_per_second is not None
            yield Finding(_where(row.cell), row.tokens_per_second, wanted, "tokens/s", True)

    return judge


def times_float(decoder: str, ways: tuple[str, ...], wanted: float) -> Judge:
    """A goal for tokens per second relative to the float model run in the same way, of the best of some ways."""

    def judge(rows: Sequence[Row]) -> Iterator[Finding]:
        speeds = {row.cell: row.tokens_per_second for row in rows if row.tokens_per_second is not None}
        for row in _best(_decoding(rows, decoder, ways)):
            plain = speeds.get(dataclasses.replace(row.cell, by=FLOAT, scheme=FLOAT))
            if plain is not None:
                assert row.tokens_per_second is not None
                yield Finding(_where(row.cell), row.tokens_per_second / plain, wanted, "×", True)

    return judge


def memory(decoder: str, ways: tuple[str, ...], wanted: float) -> Judge:
    """A goal for the peak GPU memory."""

    def judge(rows: Sequence[Row]) -> Iterator[Finding]:
        for row in _decoding(rows, decoder, ways):
            if row.peak_gib is not None:
                yield Finding(_where(row.cell), row.peak_gib, wanted, "GiB", False)

    return judge


GOALS = (
    Goal("w4a16, lean decoder, batch 1: ≥ 330 tokens/s", speed(LEAN, (GRAPH, COMPILE), 330)),
    Goal("the same: ≥ 2.2 × bf16 run the same way", times_float(LEAN, (GRAPH, COMPILE), 2.2)),
    Goal("w4a16, transformers' modules, CUDA graph: ≥ 190 tokens/s", speed(TRANSFORMERS, (GRAPH,), 190)),
    Goal("w4a16, lean decoder: peak memory ≤ 5.8 GiB", memory(LEAN, (GRAPH,), 5.8)),
    Goal("w4a16, transformers: peak memory ≤ 5.8 GiB", memory(TRANSFORMERS, (GRAPH,), 5.8)),
)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """One line per goal: met, short by how much, or not measured."""
    lines = []
    for goal in GOALS:
        findings = sorted(goal.judge(rows), key=lambda finding: -finding.short_percent)
        text = f"{status(findings):<13}{goal.text}"
        if findings:
            worst = findings[0]
            text += f": {worst.found:,.2f} {worst.unit} ({worst.where})"
            if not worst.is_met:
                text += f", {worst.short_percent:.0f} % short"
        lines.append(text)
    return [f"goals, stated for an {GPU}:", *lines]
