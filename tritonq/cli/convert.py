"""`tritonq convert DIR -o DIR`: rewrites a GPTQ or AWQ checkpoint in compressed-tensors' layout."""

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
        Path, typer.Option("--output", "-o", metavar="DIR", help="The new checkpoint; empty or new.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Rewrite a GPTQ or AWQ checkpoint in compressed-tensors' layout; codes, scales and zero points stay the same."""
    check_target(json_file)
    check_empty(target)
    checkpoint.convert(source, target)
    found = checkpoint.info(target)
    if json_file is not None:
        write_json(json_file, found.to_dict())
    typer.echo(str(found))
