"""Draws a run: speed-up over float by M, achieved shares of bandwidth and peak by M, and a roofline.

speedup_SHAPE.svg     float's time ÷ each contender's; recorded ones dashed
achieved_SHAPE.svg    tritonq's share of the bandwidth measured in the run, and of the peak
roofline.svg          tritonq's operations per second over operations per byte, below the machine's ceilings
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.linear import tables
from benchmarks.linear.contender import FLOAT, LINEAR, OURS
from benchmarks.linear.results import Results
from benchmarks.linear.rows import RECORDED, Row
from tritonq.util.json_file import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = {
    "w8a8": "#0072B2",
    "w8a8_static": "#56B4E9",
    "w4a16": "#D55E00",
    "w8a16": "#009E73",
    "w4a8": "#CC79A7",
    FLOAT: "#222222",
}
_MARKERS = "osD^vP*X"


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Draw all figures into `folder`; returns the files."""
    figures = {"roofline": draw_roofline(results)}
    for name, _, _ in results.shapes():
        rows = [row for row in results.timed() if row.shape == name]
        if any(row.by == FLOAT for row in rows):
            figures[f"speedup_{name}"] = draw_speedup(results, name, rows)
        if any(row.of_peak is not None for row in rows):
            figures[f"achieved_{name}"] = draw_achieved(results, name, rows)
    files = []
    for name, figure in figures.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        files.append(folder / f"{name}.svg")
        write_whole(files[-1], drawn.getvalue())
    return files


def draw_speedup(results: Results, name: str, rows: Sequence[Row]) -> Figure:
    """Speed-ups of whole layers; 1 is the float layer."""
    figure, (axes,) = _figure(1)
    floats = results.float_rows()
    layers = [row for row in rows if row.measures == LINEAR and row.by != FLOAT and row.cell in floats]
    per_scheme: dict[str, int] = {}
    for (by, scheme, _), group in tables.by_contender(layers).items():
        group = sorted(group, key=lambda row: row.M)
        is_ours = by == OURS
        marker = _MARKERS[0 if is_ours else 1 + per_scheme.setdefault(scheme, 0) % (len(_MARKERS) - 1)]
        per_scheme[scheme] = per_scheme.get(scheme, 0) + (not is_ours)
        is_recorded = any(row.status == RECORDED for row in group)
        axes.plot(
            [row.M for row in group],
            [(floats[row.cell].microseconds or 0) / (row.microseconds or 1) for row in group],
            color=_COLORS.get(scheme, "#999999"),
            marker=marker,
            markersize=5,
            linewidth=2.2 if is_ours else 0.9,
            linestyle="--" if is_recorded else "-",
            label=f"{scheme} {by}{tables.RECORDED_MARK if is_recorded else ''}",
        )
    axes.axhline(1, color=_COLORS[FLOAT], linewidth=1)
    axes.set_title(f"{name}: times as fast as {results.float_name}{_where(results)}", loc="left")
    _by_rows(axes, rows)
    if any(row.status == RECORDED for row in layers):
        axes.set_xlabel(f"M          dashed, {tables.RECORDED_LEGEND}")
    return _with_legend(figure, axes)


def draw_achieved(results: Results, name: str, rows: Sequence[Row]) -> Figure:
    """Achieved shares of tritonq's rows, and of float for comparison."""
    figure, (bandwidth, peak) = _figure(2)
    shares: tuple[tuple[Any, Callable[[Row], float | None], str], ...] = (
        (bandwidth, lambda row: row.of_bandwidth, "share of the bandwidth measured here"),
        (peak, lambda row: row.of_peak, "share of the peak"),
    )
    for axes, share, title in shares:
        for (_, scheme, measures), group in tables.by_contender(_ours(rows)).items():
            points = sorted((row.M, share(row)) for row in group)
            axes.plot(
                *zip(*points, strict=True),
                color=_COLORS.get(scheme, "#999999"),
                marker="o" if measures == LINEAR else "s",
                markersize=4,
                linestyle="-" if measures == LINEAR else ":",
                label=results.float_name if scheme == FLOAT else f"{scheme} {measures}",
            )
        axes.set_ylim(0, None)
        axes.set_title(f"{name}: {title}", loc="left")
        _by_rows(axes, rows)
    return _with_legend(figure, bandwidth)


def draw_roofline(results: Results) -> Figure:
    """The roofline, with logarithmic axes: the sloping line is the bandwidth, the horizontal ones are peaks."""
    figure, (axes,) = _figure(1)
    ceilings = results.ceilings
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in _ours(results.timed()):
        if row.teraoperations_per_second and row.terabytes_per_second:
            point = (
                row.teraoperations_per_second / row.terabytes_per_second,
                row.teraoperations_per_second,
            )
            groups.setdefault((row.scheme, row.measures), []).append(point)
    for (scheme, measures), points in groups.items():
        axes.plot(
            *zip(*points, strict=True),
            linestyle="",
            color=_COLORS.get(scheme, "#999999"),
            marker="o" if measures == LINEAR else "s",
            markersize=4,
            label=results.float_name if scheme == FLOAT else f"{scheme} {measures}",
        )
    intensities = [x for points in groups.values() for x, _ in points] or [1.0]
    left, right = min(intensities) / 2, max(*intensities, ceilings.peak("w8a8") / ceilings.bandwidth) * 2
    for scheme, label in ((FLOAT, results.dtype), ("w8a8", "int8")):
        peak = ceilings.peak(scheme)
        ridge = min(max(peak / ceilings.bandwidth, left), right)
        axes.plot([left, ridge, right], [left * ceilings.bandwidth, peak, peak], color="#999999", linewidth=1)
        axes.annotate(f"{label} {peak:.4g} TOP/s", (right, peak), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"{ceilings.bandwidth:.3g} TB/s", (left, left * ceilings.bandwidth), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TOP/s")
    axes.set_title(f"Achieved{_where(results)}", loc="left")
    return _with_legend(figure, axes)


def _ours(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.by in (OURS, FLOAT)]


def _where(results: Results) -> str:
    return f", {results.machine.get('device')}" + ("" if results.on_gpu else ", on a CPU")


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained", facecolor="white")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, list(axes)


def _by_rows(axes: Any, rows: Sequence[Row]) -> None:
    batch_sizes = sorted({row.M for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batch_sizes, [str(m) for m in batch_sizes], rotation=45 if len(batch_sizes) > 8 else 0)
    axes.minorticks_off()
    axes.set_xlabel("M")


def _with_legend(figure: Figure, axes: Any) -> Figure:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure
