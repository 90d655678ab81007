"""`tritonq demo`: measures every scheme on the model that ships with the package."""

from pathlib import Path
from typing import Annotated

import typer

from tritonq.cli.options import JsonFile


def demo(
    json_file: JsonFile = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture: png, svg or pdf.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: a GPU if there is one.")] = None,
) -> None:
    """Quantize a small language model with every scheme, and measure what each costs."""
    from tritonq.demo import show

    show.demo(json_file, plot_file, device)
