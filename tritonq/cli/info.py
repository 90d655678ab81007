"""`tritonq info DIR`: describes a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from tritonq import checkpoint
from tritonq.cli.options import JsonFile
from tritonq.util.json_file import check_target, write_json


def info(
    directory: Annotated[Path, typer.Argument(help="A checkpoint: safetensors files and a config.json.")],
    json_file: JsonFile = None,
) -> None:
    """Describe a checkpoint directory."""
    check_target(json_file)
    found = checkpoint.info(directory)
    if json_file is not None:
        write_json(json_file, found.to_dict())
    typer.echo(str(found))
