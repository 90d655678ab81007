"""`tritonq tune`: measures the fastest configuration of each kernel on this GPU, and keeps it for later runs."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from tritonq.cli.options import JsonFile
from tritonq.tuning.schemes import SCHEMES
from tritonq.util.json_file import check_target

_MOST_ROWS = 1 << 17


def tune(
    schemes: Annotated[
        list[str] | None,
        typer.Option("--schemes", metavar="SCHEME", help=f"{', '.join(SCHEMES)}; can be repeated."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The Linears of a model directory or a config.json.")
    ] = None,
    shapes: Annotated[
        list[str] | None, typer.Option("--shapes", metavar="NxK", help="Weights; can be repeated.")
    ] = None,
    rows: Annotated[
        list[int] | None,
        typer.Option("--m", min=1, max=_MOST_ROWS, metavar="M", help="Rows of the input; can be repeated."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of activations: bfloat16 or float16.")] = "bfloat16",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, but keep nothing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also measure what is already in the file.")] = False,
    list_only: Annotated[
        bool, typer.Option("--list", help="Measure nothing; list what would run now, and why.")
    ] = False,
    target_name: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="With --list: sm_80, sm_90, gfx942 …"),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure which kernel configurations are fastest on this GPU, and keep them for every later run."""
    check_target(json_file)
    if importlib.util.find_spec("triton") is None:
        raise ValueError("tritonq tune needs Triton, which is not installed")
    from tritonq.tuning import command

    workloads = command.workloads_of(schemes, model, shapes, rows, dtype)
    if list_only:
        command.list_configurations(workloads, target_name, json_file)
    elif target_name is not None:
        raise ValueError("--target cannot be measured on: use it with --list")
    elif not command.measure(workloads, dry_run, again, json_file):
        raise typer.Exit(1)
