"""Draws tokens per second as bars: one figure per decoder and phase."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.llm.rows import DECODE, Row
from benchmarks.llm.ways import COMPILE, EAGER, GRAPH
from tritonq.util.json_file import write_whole

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = {EAGER: "#999999", GRAPH: "#0072B2", COMPILE: "#D55E00"}


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw DECODER_PHASE_BATCH.svg into `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.tokens_per_second is not None:
            key = (row.cell.decoder, row.cell.phase, row.cell.batch)
            groups.setdefault(key, []).append(row)
    return [_draw(folder, *key, group) for key, group in groups.items()]


def _draw(folder: Path, decoder: str, phase: str, batch: int, rows: Sequence[Row]) -> Path:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(_name(row) for row in rows))
    ways = [way for way in _COLORS if any(row.cell.way == way for row in rows)]
    figure = Figure(figsize=(7, 0.6 + 0.22 * len(names) * (len(ways) + 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(ways)
    for place, way in enumerate(ways):
        found = {_name(row): row.tokens_per_second or 0 for row in rows if row.cell.way == way}
        offset = (place - (len(ways) - 1) / 2) * height
        where = [names.index(name) + offset for name in found]
        bars = axes.barh(where, list(found.values()), height, color=_COLORS[way], label=way)
        axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    what = (
        f"batch {batch}, {rows[0].cell.tokens} tokens before"
        if phase == DECODE
        else f"{rows[0].cell.tokens} tokens"
    )
    axes.set_title(f"{rows[0].cell.model}, {decoder}: {phase}, {what}")
    axes.set_xlabel("tokens per second")
    axes.margins(x=0.12)
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    file = folder / f"{decoder}_{phase}_{batch}.svg"
    write_whole(file, drawn.getvalue())
    return file


def _name(row: Row) -> str:
    return row.cell.scheme if row.cell.by in ("tritonq", "float") else row.cell.by
