"""Draws an Analysis.

Up to 40 layers get one row each, with a dot for the SQNR of weight, input and output. More layers in blocks, as in
transformers, are drawn over depth: one line per kind of layer ("self_attn.q_proj"), one panel each for weight, input
and output. More layers without blocks get rows on a taller picture.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonq.analysis.layer_effects import LayerAnalysis
from tritonq.util.json_file import check_target, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
MOST_ROWS = 40
MOST_LINES = 12
#: Okabe and Ito's colours without the light ones; colour-blind readers can tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
MARKERS = "os^Dv<>P*Xhp"
SIDES: dict[str, Callable[[LayerAnalysis], float | None]] = {
    "weight": lambda row: row.quantized.weight_sqnr,
    "input": lambda row: row.quantized.input_sqnr,
    "output": lambda row: row.quantized.output_sqnr,
    "model's output": lambda row: row.quantized.model_sqnr,
}


def plot(rows: Sequence[LayerAnalysis], path: Path) -> None:
    """See Analysis.plot."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"plot needs a file that ends in {', '.join(FORMATS)}, found {str(path)!r}")
    check_target(path)
    drawn = io.BytesIO()
    draw(rows).savefig(drawn, format=path.suffix[1:].lower(), dpi=150)
    write_whole(path, drawn.getvalue())


def draw(rows: Sequence[LayerAnalysis]) -> Figure:
    """The picture as a matplotlib figure."""
    sides = {
        side: [_finite(value(row)) for row in rows]
        for side, value in SIDES.items()
        if any(value(row) is not None for row in rows)
    }
    depths = [_depth(row.name) for row in rows]
    kinds = list(dict.fromkeys(kind for kind, _ in depths))
    if len(rows) <= MOST_ROWS or len(kinds) > MOST_LINES:
        return _draw_rows(rows, sides)
    return _draw_lines(depths, kinds, sides)


def _draw_rows(rows: Sequence[LayerAnalysis], sides: dict[str, list[float]]) -> Figure:
    from matplotlib.figure import Figure

    names = [row.name for row in rows]
    figure = Figure(figsize=(9, 1.4 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    for index, (side, values) in enumerate(sides.items()):
        axes.plot(values, names, MARKERS[index], color=COLORS[index], markersize=6, label=side)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", alpha=0.3)
    _finish(axes, axes.set_xlabel)
    figure.legend(loc="outside upper center", ncols=len(sides), frameon=False)
    return figure


def _draw_lines(depths: list[tuple[str, int]], kinds: list[str], sides: dict[str, list[float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 2.4 * len(sides)), layout="constrained")
    panels = figure.subplots(len(sides), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (side, values) in zip(panels, sides.items(), strict=True):
        for index, kind in enumerate(kinds):
            points = [(depth, values[row]) for row, (own, depth) in enumerate(depths) if own == kind]
            panel.plot(
                *zip(*sorted(points), strict=True),
                color=COLORS[index % len(COLORS)],
                marker=MARKERS[index],
                markersize=4,
                linewidth=1.2,
                label=kind,
            )
        _finish(panel, panel.set_ylabel)
        panel.set_title(side, loc="left", fontsize="medium")
    panels[-1].set_xlabel("block")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
    return figure


def _finish(axes: Any, label: Callable[[str], Any]) -> None:
    label("signal to quantization noise, dB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def _depth(name: str) -> tuple[str, int]:
    """(the name after the first number, the number): "model.layers.3.self_attn.q_proj" → ("self_attn.q_proj", 3)."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    return (found[2], int(found[1])) if found else (name, 0)


def _finite(value: float | None) -> float:
    """The value, or NaN, which leaves a gap, if nothing was measured or nothing was lost."""
    return math.nan if value is None or math.isinf(value) else value
