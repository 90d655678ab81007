"""`tritonq demo`: every scheme measured on the model that ships with the package."""

from pathlib import Path
from typing import Annotated

import typer

from tritonq.cli.options import JsonFile


def demo(
    json_file: JsonFile = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: png, svg or pdf.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; a GPU is used where there is one.")] = None,
) -> None:
    """Quantize a small language model in every way, and measure what each costs."""
    from tritonq.demo import show

    show.demo(json_file, plot_file, device)
