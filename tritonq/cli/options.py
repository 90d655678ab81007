"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the same as JSON.")]
