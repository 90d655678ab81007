"""One measurement."""

from __future__ import annotations

import dataclasses

DECODE, PREFILL = "decode", "prefill"
MEASURED, WRONG, FAILED = "measured", "WRONG", "failed"


@dataclasses.dataclass(frozen=True)
class Cell:
    """What was run.

    Attributes:
        model: "8b" …
        decoder: "lean" or "transformers".
        by, scheme: see `Contender`.
        way: "eager", "graph" or "compile".
        phase: "decode", one token a sequence; or "prefill", a whole prompt, to the first token.
        batch: sequences.
        tokens: positions that were filled before a decoding run began, or the prompt's length.
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
    """What came out.

    Attributes:
        cell: what was run.
        status: MEASURED; WRONG, and no time; FAILED, and why.
        milliseconds: of a decoding step, or to the first token; the median.
        linear_milliseconds: of a decoding step, what all Linears take alone, in a CUDA graph where there are any.
        tokens_per_second: of all sequences together; prompt tokens for a prefill.
        peak_gib: of GPU memory while the row was measured, weights, cache and prompt included, building not.
        weight_gib: parameters and buffers.
        error: relative, of the logits. Of an eager row: against the float32 reference on the model's own codes. Of
            others: against the eager row's.
        reason: why it failed, or in what way it is wrong.
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
    """As the table prints it."""
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
