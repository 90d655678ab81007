"""The common part of the benchmarks' command lines: the machine in the first line, `--json FILE`, the exit code."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from tritonq.util.json_file import check_target, write_json


def parser_of(module: str, documentation: str) -> argparse.ArgumentParser:
    """A parser of `python3 -m <module>` with the option --json."""
    parser = argparse.ArgumentParser(
        prog=f"python3 -m {module}", description=documentation.partition("\n")[0]
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; a file that cannot be written is an error before anything is measured."""
    options = parser.parse_args(arguments)
    try:
        check_target(options.json)
    except ValueError as error:
        parser.error(str(error))
    return options


class Report:
    """One run: prints the machine, collects rows, writes them.

    Args:
        file: the JSON file, or None.
        device: of the measurement.
        fields: fields common to all rows.
    """

    def __init__(self, file: Path | None, device: torch.device, **fields: Any) -> None:
        self.file, self.machine, self.fields = file, describe(device), fields
        self.rows: list[Any] = []
        print(", ".join(f"{key} {value}" for key, value in self.machine.items() if value is not None))

    def add(self, row: Any, line: str) -> None:
        """Add a row, a dataclass, and print its line."""
        print(line, flush=True)
        self.rows.append(row)

    def finish(self, is_wrong: bool) -> int:
        """Write the JSON; returns the exit code."""
        self.write()
        return int(is_wrong)

    def write(self) -> None:
        """Write the JSON with the rows so far."""
        if self.file is not None:
            rows = [dataclasses.asdict(row) for row in self.rows]
            write_json(self.file, {"machine": self.machine, **self.fields, "rows": rows})
