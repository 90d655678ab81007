"""Writes a result file completely or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def check_target(file: Path | None) -> None:
    """Raise a ValueError, before any work is done, if `file` cannot be written. None passes."""
    if file is not None and not file.absolute().parent.is_dir():
        raise ValueError(f"the folder of {str(file)!r} does not exist")
    if file is not None and file.is_dir():
        raise ValueError(f"{str(file)!r} must be a file, found a directory")


def write_json(file: Path, fields: dict[str, Any]) -> None:
    """Write a dictionary as JSON, completely or not at all."""
    write_whole(file, (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode())


def write_whole(file: Path, content: bytes) -> None:
    """Write a new file beside `file`, then rename it: the old content stays until the new content is complete."""
    if file.exists() and not file.is_file():  # a pipe or a terminal cannot be replaced by a rename
        file.write_bytes(content)
        return
    beside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        beside.write_bytes(content)
        os.replace(beside, file)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
