"""`tritonq convert DIR -o DIR`: a GPTQ or AWQ checkpoint in compressed-tensors' layout."""

from pathlib import Path
from typing import Annotated

import typer

from tritonq import checkpoint
from tritonq.cli.options import JsonFile
from tritonq.streaming.workspace import check_empty
from tritonq.util.json_file import check_target, write_json


def convert(
    source: Annotated[Path, typer.Argument(help="A GPTQ or AWQ checkpoint: safetensors files and a config.")],
    target: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the new one goes; empty or new.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Write a GPTQ or AWQ checkpoint again in compressed-tensors' layout: the same codes, scales and zero points."""
    check_target(json_file)
    check_empty(target)
    checkpoint.convert(source, target)
    found = checkpoint.info(target)
    if json_file is not None:
        write_json(json_file, found.to_dict())
    typer.echo(str(found))
