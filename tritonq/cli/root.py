"""`tritonq` without a command: help and version."""

from typing import Annotated

import typer

from tritonq.util.version import VERSION


def show_version(wanted: bool) -> None:
    """Print the version and exit, if `wanted`."""
    if wanted:
        typer.echo(f"tritonq {VERSION}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """INT8 and INT4 quantization of PyTorch Linear layers."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
