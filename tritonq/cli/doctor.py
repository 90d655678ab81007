"""`tritonq doctor`: checks that everything computes correctly on this machine."""

from typing import Annotated

import typer

from tritonq.cli.options import JsonFile
from tritonq.util.json_file import check_target


def doctor(
    seconds: Annotated[
        float,
        typer.Option("--timeout", min=1, help="Seconds for one check; a longer one ends the run."),
    ] = 120,
    json_file: JsonFile = None,
) -> None:
    """Check every kernel on this machine against the reference, and say what will run; exit code 1 if any is wrong."""
    check_target(json_file)
    from tritonq.doctor import command

    if not command.examine(seconds, json_file):
        raise typer.Exit(1)
