"""The result of `analyze`: rows, a table, JSON, a picture, and a mixed-precision config."""

from __future__ import annotations

import dataclasses
import math
from os import PathLike
from pathlib import Path
from typing import Any

from tritonq.analysis import budget
from tritonq.analysis.layer_effects import Effect, LayerAnalysis
from tritonq.analysis.plot import plot
from tritonq.util.json_file import check_target, write_json
from tritonq.util.table import aligned


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The result of `analyze`; `str()` prints a table, worst layer first.

    Attributes:
        rows: the layers in the model's order.
        config, higher: the arguments of `analyze`.
        batches: the number of batches.
        metric: of the float model; None without a metric.
    """

    rows: tuple[LayerAnalysis, ...]
    config: Any
    higher: Any
    batches: int
    metric: float | None

    @property
    def weight_bytes(self) -> int:
        """Bytes of these layers' weights with `config`."""
        return sum(row.quantized.weight_bytes for row in self.rows)

    @property
    def higher_bytes(self) -> int:
        """Bytes of these layers' weights if all were spared."""
        return sum(row.higher.weight_bytes for row in self.rows)

    def worst_first(self) -> list[LayerAnalysis]:
        """The rows by decreasing error; layers that the data did not reach come last."""
        return sorted(
            self.rows,
            key=lambda row: -math.inf if row.quantized.error is None else row.quantized.error,
            reverse=True,
        )

    def layers_below(self, sqnr_db: float) -> list[str]:
        """The layers whose output has a smaller SQNR than this, worst first."""
        return budget.layers_below(self.rows, sqnr_db)

    def mixed_precision(
        self, *, sqnr: float | None = None, error: float | None = None, size: int | None = None
    ) -> dict[Any, Any]:
        """A config for `quantize_` that spares the most sensitive layers. Give exactly one of the arguments.

        Args:
            sqnr: spare every layer whose output has a smaller SQNR than this (dB).
            error: the fewest bytes with at most this error, summed over all layers (`Effect.error`; small, independent
                errors of layers add up). If sparing costs no bytes (static layers made dynamic), the fewest layers.
            size: the least summed error with at most this many bytes for the weights of these layers.

        Returns:
            {name of a spared layer: higher or None, …, "_default": config}. Pass the same `ignore` and `filter_fn` to
            `quantize_`. A layer that the data never reached gets `config`, or is spared if `config` is static, because
            it could not be calibrated.

        Raises:
            TypeError, ValueError: not exactly one argument, or a budget that cannot be met; the message says which can.
        """
        return budget.mixed_precision(self.rows, self.config, self.higher, sqnr=sqnr, error=error, size=size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; null if nothing was measured, and for an infinite SQNR (error 0)."""
        return {
            "layers": [_fields(row) for row in self.rows],
            "weight_bytes": self.weight_bytes,
            "higher_bytes": self.higher_bytes,
            "float_bytes": sum(row.float_bytes for row in self.rows),
            "batches": self.batches,
            "metric": self.metric,
        }

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write `to_dict()`, completely or not at all.

        Raises:
            ValueError: the folder does not exist.
        """
        check_target(Path(path))
        write_json(Path(path), self.to_dict())

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the SQNRs: a row of dots per layer, or, for many layers in blocks, a line per kind of layer over depth.

        Args:
            path: its suffix sets the format: .png, .svg or .pdf.

        Raises:
            ValueError: another suffix, or a folder that does not exist.
        """
        plot(self.rows, Path(path))

    def __str__(self) -> str:
        columns = [column for column in COLUMNS if any(column.value(row) for row in self.rows)]
        rows = self.worst_first()
        table = [["layer", "scheme"] + [column.heading for column in columns]]
        table += [
            [row.name, row.quantized.scheme] + [column.value(row) for column in columns] for row in rows
        ]
        header, *lines = aligned(table[0], table[1:], numbers=len(columns))
        rule = "-" * max(map(len, (header, *lines)))
        saved = sum(row.float_bytes for row in rows)
        drawn = [header, rule, *lines, rule]
        drawn.append(f"{len(rows)} layers, {self.weight_bytes:,} bytes of {saved:,}; batches: {self.batches}")
        if self.metric is not None:
            drawn[-1] += f", metric of the float model {self.metric:.6g}"
        silent = [row.name for row in rows if not row.reached]
        if silent:
            drawn.append(f"not reached by the data: {', '.join(silent)}")
        return "\n".join(drawn)


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the table: its heading, its value and its format. A column without values is omitted."""

    heading: str
    path: str
    form: str

    def value(self, row: LayerAnalysis) -> str:
        found: Any = row
        for part in self.path.split("."):
            found = getattr(found, part)
        return "" if found is None else format(found, self.form)


COLUMNS = (
    Column("bytes", "quantized.weight_bytes", ","),
    Column("float", "float_bytes", ","),
    Column("weight dB", "quantized.weight_sqnr", ".1f"),
    Column("input dB", "quantized.input_sqnr", ".1f"),
    Column("output dB", "quantized.output_sqnr", ".1f"),
    Column("model dB", "quantized.model_sqnr", ".1f"),
    Column("metric", "quantized.metric_change", "+.2e"),
    Column("spared dB", "higher.output_sqnr", ".1f"),
    Column("outliers", "outlier_ratio", ".1f"),
    Column("channels", "channel_ratio", ".1f"),
)


def _fields(row: LayerAnalysis) -> dict[str, Any]:
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    for name in ("quantized", "higher"):
        effect: Effect = fields[name]
        numbers = {field.name: getattr(effect, field.name) for field in dataclasses.fields(effect)}
        del numbers["config"]
        fields[name] = _finite({"scheme": effect.scheme, **numbers, "error": effect.error})
    return _finite(fields)


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }
