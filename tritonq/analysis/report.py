"""What `analyze` found: rows, a table, JSON, a picture, and the mixed-precision config that follows from them."""

from __future__ import annotations

import dataclasses
import math
from os import PathLike
from pathlib import Path
from typing import Any

from tritonq.analysis import budget
from tritonq.numerics.config import QuantConfig
from tritonq.util.json_file import check_target, write_json
from tritonq.util.table import aligned


@dataclasses.dataclass(frozen=True)
class Effect:
    """What one config does to one layer.

    Attributes:
        config: None for float.
        weight_bytes: what the weight then takes, scales, zero points and sums included, bias not.
        weight_sqnr: signal to quantization noise of the weight, dB.
        input_sqnr: of the input as the scheme quantizes it; None where activations stay float.
        output_sqnr: of the layer's output, with weight and input quantized.
        model_sqnr: of the model's output, with this layer alone quantized; None unless `end_to_end`.
        metric_change: the metric with this layer alone quantized, less that of the float model; None without one.

    A layer that the data never reached has the weight's SQNR alone.
    """

    config: QuantConfig | None
    weight_bytes: int
    weight_sqnr: float | None = None
    input_sqnr: float | None = None
    output_sqnr: float | None = None
    model_sqnr: float | None = None
    metric_change: float | None = None

    @property
    def scheme(self) -> str:
        """A preset's name such as "w4a16", or "float"."""
        return "float" if self.config is None else self.config.scheme

    @property
    def error(self) -> float | None:
        """What budgets count: the metric's change, else noise / signal of the model's output, else of the layer's.

        0 for float, None for a layer that was not reached.
        """
        if self.config is None:
            return 0.0
        if self.metric_change is not None:
            return self.metric_change
        sqnr = self.output_sqnr if self.model_sqnr is None else self.model_sqnr
        return None if sqnr is None else 10 ** (-sqnr / 10)


@dataclasses.dataclass(frozen=True)
class LayerAnalysis:
    """One Linear.

    Attributes:
        name: in the model; a module with several names is listed once, under the first.
        in_features, out_features: K and N.
        float_bytes: what the weight takes as it is.
        input_amax: the largest |x| that came in; this and the ratios are None where nothing came in.
        outlier_ratio: input_amax over the root mean square of the input. A grid of 255 steps over the whole range has
            an SQNR of about 53 dB less 20 · log10 of it.
        channel_ratio: the input column with the largest |x| over the median of the columns. Where it is large, a
            few channels cost all others their precision, and scaling them down beforehand helps (SmoothQuant).
        quantized: what the analysed config does.
        higher: what the config for spared layers does.
    """

    name: str
    in_features: int
    out_features: int
    float_bytes: int
    input_amax: float | None
    outlier_ratio: float | None
    channel_ratio: float | None
    quantized: Effect
    higher: Effect

    @property
    def reached(self) -> bool:
        """Whether the data came through this layer."""
        return self.input_amax is not None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What `analyze` returns; `str()` draws a table, worst layer first.

    Attributes:
        rows: the layers in the model's order.
        config, higher: as given to `analyze`.
        batches: how many were run.
        metric: of the float model, None where none was asked for.
    """

    rows: tuple[LayerAnalysis, ...]
    config: Any
    higher: Any
    batches: int
    metric: float | None

    @property
    def weight_bytes(self) -> int:
        """Bytes of these layers' weights as `config` has them."""
        return sum(row.quantized.weight_bytes for row in self.rows)

    @property
    def higher_bytes(self) -> int:
        """The same if all were spared."""
        return sum(row.higher.weight_bytes for row in self.rows)

    def worst_first(self) -> list[LayerAnalysis]:
        """By falling error; layers that were not reached come last."""
        return sorted(
            self.rows,
            key=lambda row: -math.inf if row.quantized.error is None else row.quantized.error,
            reverse=True,
        )

    def layers_below(self, sqnr_db: float) -> list[str]:
        """The layers whose output has a smaller SQNR than this, worst first."""
        found = [(row.quantized.output_sqnr, row.name) for row in self.rows]
        below = [(sqnr, name) for sqnr, name in found if sqnr is not None and sqnr < sqnr_db]
        return [name for _, name in sorted(below, key=lambda pair: pair[0])]

    def mixed_precision(
        self, *, sqnr: float | None = None, error: float | None = None, size: int | None = None
    ) -> dict[Any, Any]:
        """A config for `quantize_` that spares the layers for which it pays most: exactly one of

        Args:
            sqnr: every layer whose output has a smaller SQNR than this (dB) is spared.
            error: the fewest bytes with errors of at most this much, summed over all layers (`Effect.error`: errors
                of layers add up as far as they are small and independent). Where sparing costs no bytes (static
                layers made dynamic), the fewest layers.
            size: the least summed error with at most so many bytes for the weights of these layers.

        Returns:
            {name of a spared layer: higher or None, …, "_default": config}; give `quantize_` the same `ignore` and
            `filter_fn`. A layer that the data never reached stays as `config` has it, unless that is static: there
            is nothing to calibrate it with.

        Raises:
            TypeError, ValueError: not exactly one of them, or one that cannot be met, saying what can.
        """
        return budget.mixed_precision(self, sqnr, error, size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; null where nothing was measured, and for the SQNR of what lost nothing (error 0)."""
        return {
            "layers": [_fields(row) for row in self.rows],
            "weight_bytes": self.weight_bytes,
            "higher_bytes": self.higher_bytes,
            "float_bytes": sum(row.float_bytes for row in self.rows),
            "batches": self.batches,
            "metric": self.metric,
        }

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write `to_dict()`, as a whole or not at all.

        Raises:
            ValueError: the folder does not exist.
        """
        check_target(Path(path))
        write_json(Path(path), self.to_dict())

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the SQNRs: a row of dots a layer, or, for many layers in blocks, a line a kind of layer over depth.

        Args:
            path: its suffix picks the format: .png, .svg or .pdf.

        Raises:
            ValueError: another suffix, or a folder that does not exist.
        """
        from tritonq.analysis.plot import plot

        plot(self, Path(path))

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
    """One column of the table: a heading, and where its number is, drawn with a format; left out where all are None."""

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
