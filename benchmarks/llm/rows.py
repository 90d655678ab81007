"""One measurement."""

from __future__ import annotations

import dataclasses

DECODE, PREFILL = "decode", "prefill"
MEASURED, WRONG, FAILED = "measured", "WRONG", "failed"


@dataclasses.dataclass(frozen=True)
class Cell:
    """The key of a measurement.

    Attributes:
        model: "8b" …
        decoder: "lean" or "transformers".
        by, scheme: see `Contender`.
        way: "eager", "graph" or "compile".
        phase: "decode", one token per sequence; or "prefill", a whole prompt up to the first token.
        batch: the number of sequences.
        tokens: positions filled before decoding began, or the prompt's length.
    """

    model: str
    decoder: str
    by: str
    scheme: str
    way: str
    phase: str
    batch: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of a measurement.

    Attributes:
        cell: the key.
        status: MEASURED, WRONG (no time) or FAILED (no time).
        milliseconds: the median time of a decoding step, or to the first token.
        linear_milliseconds: the time of a decoding step's Linears alone, on a GPU in a CUDA graph.
        tokens_per_second: of all sequences together; for a prefill, prompt tokens.
        peak_gib: peak GPU memory of the measurement: weights, cache and prompt, without building the model.
        weight_gib: parameters and buffers.
        error: relative error of the logits: of an eager row compared with the float32 reference on the model's codes,
            of other rows compared with the eager row.
        reason: why it failed or is wrong.
    """

    cell: Cell
    status: str
    milliseconds: float | None = None
    linear_milliseconds: float | None = None
    tokens_per_second: float | None = None
    peak_gib: float | None = None
    weight_gib: float | None = None
    error: float | None = None
    reason: str = ""


HEADINGS = (
    f"{'decoder':<13}{'scheme':<13}{'way':<9}{'phase':<9}{'batch':>5} {'tokens':>6} "
    f"{'ms':>9} {'Linears':>9} {'tokens/s':>10} {'peak GiB':>9} {'error':>8}"
)


def line(row: Row) -> str:
    """The row as a line of the table."""
    cell = row.cell
    name = cell.scheme if cell.by in ("tritonq", "float") else cell.by
    place = f"{cell.decoder:<13}{name:<13}{cell.way:<9}{cell.phase:<9}{cell.batch:>5} {cell.tokens:>6} "
    if row.milliseconds is None:
        return f"{place}{row.status}: {row.reason}"
    linears = "" if row.linear_milliseconds is None else f"{row.linear_milliseconds:.3f}"
    peak = "" if row.peak_gib is None else f"{row.peak_gib:.2f}"
    error = "" if row.error is None else f"{row.error:.1e}"
    return (
        f"{place}{row.milliseconds:>9.3f} {linears:>9} {row.tokens_per_second:>10,.1f} {peak:>9} {error:>8}"
    )
