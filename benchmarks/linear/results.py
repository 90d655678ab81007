"""A run as a file, which `--json` writes and `--from` reads: the machine, its ceilings, all cells."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.linear.ceilings import Ceilings
from benchmarks.linear.contender import FLOAT
from benchmarks.linear.rows import MEASURED, RECORDED, Row
from tritonq.util.json_file import write_json

_FORMAT = "tritonq benchmarks.linear 1"


@dataclasses.dataclass
class Results:
    """One run.

    Attributes:
        machine: see benchmarks/machine.py.
        dtype: of inputs and outputs.
        ceilings: of the machine.
        absent: peer → the reason why it did not take part.
        rows: the cells so far.
        complete: False during the run, and so in the file of an interrupted run.
    """

    machine: dict[str, Any]
    dtype: str
    ceilings: Ceilings
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: list[Row] = dataclasses.field(default_factory=list)
    complete: bool = False

    @property
    def on_gpu(self) -> bool:
        """False if the run was on a CPU, where it measures no GPU kernel."""
        return self.machine.get("multiprocessors") is not None

    @property
    def float_name(self) -> str:
        """The name of the float layer in tables."""
        return f"cuBLAS {self.dtype}" if self.on_gpu else f"torch {self.dtype}"

    def shapes(self) -> list[tuple[str, int, int]]:
        """(name, N, K), in the order of the run."""
        return list(dict.fromkeys((row.shape, row.N, row.K) for row in self.rows))

    def timed(self) -> list[Row]:
        """The cells that have a time."""
        return [row for row in self.rows if row.status in (MEASURED, RECORDED)]

    def float_rows(self) -> dict[tuple[int, int, int], Row]:
        """cell → the row of the float layer."""
        return {row.cell: row for row in self.timed() if row.by == FLOAT}

    def write(self, file: Path) -> None:
        """Write JSON, completely or not at all."""
        write_json(file, {"format": _FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, file: Path) -> Results:
        """Read a file of `write`.

        Raises:
            OSError: the file does not exist.
            ValueError: it is no results file.
        """
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{str(file)!r} must be JSON, found: {error}") from None
        found = document.get("format") if isinstance(document, dict) else None
        if found != _FORMAT:
            raise ValueError(f"{str(file)!r} must have the format {_FORMAT!r}, found {found!r}")
        kinds = {"machine": dict, "dtype": str, "absent": dict, "rows": list, "complete": bool}
        for field, kind in kinds.items():
            if not isinstance(document.get(field), kind):
                raise ValueError(
                    f"{str(file)!r}: {field} must be a {kind.__name__}, found {document.get(field)!r}"
                )
        if not all(isinstance(why, str) for why in document["absent"].values()):
            raise ValueError(f"{str(file)!r}: absent must hold reasons, found {document['absent']!r}")
        try:
            ceilings = Ceilings.from_json(document.get("ceilings"))
            rows = [Row.from_json(fields) for fields in document["rows"]]
        except ValueError as error:
            raise ValueError(f"{str(file)!r}: {error}") from None
        return cls(
            document["machine"], document["dtype"], ceilings, document["absent"], rows, document["complete"]
        )
