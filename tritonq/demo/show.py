"""`tritonq demo`: shows the demo's report as a table, as JSON, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tritonq.demo.measure import FLOAT, DemoReport, SchemeResult, run_demo
from tritonq.util.json_file import check_target, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADINGS = (
    "scheme",
    "MB",
    "of fp32",
    "of fp16",
    "save s",
    "load s",
    "bits/byte",
    "change",
    "logits error",
    "tokens/s",
    "backend",
)
#: The same headings in two tables, for a terminal of 80 columns.
SIZE_HEADINGS = HEADINGS[:6]
QUALITY_HEADINGS = ("scheme", *HEADINGS[6:])
PLOT_FORMATS = (".png", ".svg", ".pdf")
_MEGABYTE = 1e6
_WIDEST = 1000


def demo(json_file: Path | None = None, plot_file: Path | None = None, device: str | None = None) -> None:
    """Measure with a progress bar, print the table, and write the requested files.

    Raises:
        ValueError: before the measurement, for an unknown device or picture format.
    """
    from rich.console import Console
    from rich.progress import Progress

    check_device(device)
    if plot_file is not None and plot_file.suffix.lower() not in PLOT_FORMATS:
        raise ValueError(
            f"--plot needs a file that ends in {', '.join(PLOT_FORMATS)}, found {str(plot_file)!r}"
        )
    for file in (json_file, plot_file):
        check_target(file)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Loading", total=None)

        def progress(scheme: str, done: int, total: int) -> None:
            bar.update(task, description=f"Evaluating {scheme}", completed=done, total=total)

        report = run_demo(device, progress)
    print_report(report, Console())
    if json_file is not None:
        write_json(json_file, report.to_dict())
    if plot_file is not None:
        plot(report, plot_file)


def check_device(device: str | None) -> None:
    """Raise a ValueError unless `device` is None, "cpu", or "cuda" on a machine with a GPU."""
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device must be cuda or cpu, found {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda needs a GPU that torch can use, found none: omit --device to use the CPU"
        )


def cells(row: SchemeResult) -> tuple[str, ...]:
    """The cells of one row, in the order of HEADINGS."""
    return (
        row.scheme,
        f"{row.weight_bytes / _MEGABYTE:.2f}",
        f"{row.ratio_to_fp32:.2f}",
        f"{row.ratio_to_fp16:.2f}",
        f"{row.save_seconds:.3f}",
        f"{row.load_seconds:.3f}",
        f"{row.bits_per_byte:.4f}",
        f"{row.change:+.4f}",
        f"{row.logits_error:.1e}",
        f"{row.tokens_per_second:,.0f}",
        row.backend,
    )


def caption(report: DemoReport) -> str:
    """The machine and versions of the measurement, in one line."""
    triton = f", Triton {report.triton_version}" if report.triton_version else ""
    return (
        f"{report.parameters / 1e6:.1f} M parameters in {report.dtype} on {report.device}; "
        f"{report.heldout_bytes:,} bytes of held-out text; torch {report.torch_version}{triton}, "
        f"tritonq {report.tritonq_version}; {report.seconds:.0f} s in all"
    )


def print_report(report: DemoReport, console: Console) -> None:
    """Print one table. If the terminal is too narrow, print two with half of the columns: numbers are never cut."""
    tables = [rich_table(report)]
    if console.is_terminal and width_of(tables[0], console) > console.width:
        tables = [rich_table(report, headings) for headings in (SIZE_HEADINGS, QUALITY_HEADINGS)]
        tables[0].caption, tables[1].title = None, None
    # Without a terminal, or on an even narrower one, lines become as long as the tables need.
    console.width = max([console.width, *(width_of(table, console) for table in tables)])
    for table in tables:
        console.print(table)


def width_of(table: Table, console: Console) -> int:
    """The width of a table if nothing in it is cut."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum


def rich_table(report: DemoReport, headings: Sequence[str] = HEADINGS) -> Table:
    """The report as a table for a terminal."""
    from rich.table import Table

    table = Table(title="What quantization costs", caption=caption(report))
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading in ("scheme", "backend") else "right", no_wrap=True
        )
    for row in report.rows:
        values = dict(zip(HEADINGS, cells(row), strict=True))
        table.add_row(
            *(values[heading] for heading in headings), style="bold" if row.scheme == FLOAT else None
        )
    return table


def markdown(report: DemoReport) -> str:
    """The report as a table in Markdown."""
    lines = [HEADINGS, tuple("---" if heading in ("scheme", "backend") else "---:" for heading in HEADINGS)]
    lines += [cells(row) for row in report.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption(report)}\n"


def plot(report: DemoReport, path: Path) -> None:
    """Draw size and loss of quality; the suffix of `path` sets the format (png, svg, pdf)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    sizes, losses = figure.subplots(1, 2, sharey=True)
    names = [row.scheme for row in report.rows]
    colors = ["#8c8c8c" if row.scheme == FLOAT else "#2a6fbb" for row in report.rows]
    bars = sizes.barh(names, [row.weight_bytes / _MEGABYTE for row in report.rows], color=colors)
    sizes.bar_label(bars, [f" {row.ratio_to_fp16:.2f} × fp16" for row in report.rows])
    sizes.set_xlabel("size of the model, MB")
    sizes.margins(x=0.3)
    bars = losses.barh(names, [max(row.change, 0.0) for row in report.rows], color=colors)
    losses.bar_label(bars, [f" {row.change:+.4f}" for row in report.rows])
    losses.set_xlabel("bits per byte lost on held-out text")
    losses.margins(x=0.3)
    sizes.invert_yaxis()  # shared: the float model on top of both
    for axes in (sizes, losses):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"What quantization costs ({report.device})")
    figure.savefig(path, dpi=150)
