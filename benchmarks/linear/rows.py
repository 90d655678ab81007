"""One cell: a contender, a shape and an M, with time, error, and the share of the machine's limits.

Bytes are those that any implementation of a scheme must move: codes and scales once, x and y once. Operations are
2 · M · N · K. So achieved rates can be compared between implementations.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from benchmarks.linear.ceilings import Ceilings
from benchmarks.linear.contender import FLOAT, INT8_TO_INT8, LINEAR, MATMUL
from tritonq.util.timing import Timing

MEASURED, RECORDED, WRONG, FAILED = "measured", "recorded", "wrong", "failed"
STATUSES = (MEASURED, RECORDED, WRONG, FAILED)
_MEASURES = (LINEAR, MATMUL, INT8_TO_INT8)
_GROUP_SIZE, _SCALE_BYTES = 128, 2


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell.

    Attributes:
        shape, N, K, M: the Linear and the rows of its input.
        by, scheme, measures: see Contender.
        status: measured, recorded (earlier, on the same GPU model), wrong (no time) or failed (no time).
        microseconds, low, high: the median and the quartiles of a call; a recorded one has no quartiles.
        eager_microseconds: the host's time of a call; None on a CPU and for recorded rows.
        error: relative, ‖y - expected‖ / ‖expected‖; None if it is not finite, or if there is no result.
        terabytes_per_second, teraoperations_per_second: achieved rates.
        of_bandwidth, of_peak: the share of the bandwidth measured in this run, and of the chip's peak.
        message: why it failed.
    """

    shape: str
    N: int
    K: int
    M: int
    by: str
    scheme: str
    measures: str
    status: str
    microseconds: float | None = None
    low: float | None = None
    high: float | None = None
    eager_microseconds: float | None = None
    error: float | None = None
    terabytes_per_second: float | None = None
    teraoperations_per_second: float | None = None
    of_bandwidth: float | None = None
    of_peak: float | None = None
    message: str | None = None

    @property
    def cell(self) -> tuple[int, int, int]:
        """The key by which rows are compared."""
        return self.N, self.K, self.M

    @classmethod
    def from_json(cls, fields: Any) -> Row:
        """A row of a results file.

        Raises:
            ValueError: `fields` are no row.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or not set(fields) <= names:
            raise ValueError(f"a row must have fields of {sorted(names)}, found {fields!r}")
        if not _REQUIRED <= set(fields) or not cls(**fields)._is_valid():
            raise ValueError(f"a row must name a cell, its status and its times, found {fields!r}")
        return cls(**fields)

    def _is_valid(self) -> bool:
        names: tuple[Any, ...] = (self.shape, self.by, self.scheme)
        optional = vars(self).keys() - _REQUIRED - {"message"}
        has_time = self.status in (MEASURED, RECORDED)
        return (
            all(isinstance(name, str) and _NAME.fullmatch(name) is not None for name in names)
            and all(type(size) is int and size > 0 for size in self.cell)
            and self.status in STATUSES
            and self.measures in _MEASURES
            and all(_is_number(getattr(self, name)) for name in optional)
            and (bool(self.microseconds) if has_time else self.microseconds is None)
        )


_REQUIRED = {field.name for field in dataclasses.fields(Row) if field.default is dataclasses.MISSING}
#: The names of shapes become file names of figures.
_NAME = re.compile(r"\w[\w.\-]*")


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value < math.inf)


def timed(row: Row, timing: Timing, eager: float | None, itemsize: int, ceilings: Ceilings) -> Row:
    """The row with its time and the rates that follow from it.

    Args:
        row: everything but the time.
        timing: of one call.
        eager: the host's time of one call.
        itemsize: bytes of a value of the input's dtype.
        ceilings: of the machine.
    """
    terabytes = moved_bytes(row, itemsize) / timing.median * 1e-6
    teraoperations = 2 * row.M * row.N * row.K / timing.median * 1e-6
    return dataclasses.replace(
        row,
        microseconds=timing.median,
        low=timing.low,
        high=timing.high,
        eager_microseconds=eager,
        terabytes_per_second=terabytes,
        teraoperations_per_second=teraoperations,
        of_bandwidth=terabytes / ceilings.bandwidth,
        of_peak=teraoperations / ceilings.peak(row.scheme),
    )


def moved_bytes(row: Row, itemsize: int) -> int:
    """Bytes of weight, scales, x and y."""
    weights = row.N * row.K
    if row.scheme == FLOAT:
        codes = itemsize * weights
    elif row.scheme.startswith("w4"):
        codes = weights // 2 + _SCALE_BYTES * (weights // _GROUP_SIZE)
    else:
        codes = weights + _SCALE_BYTES * row.N
    read = itemsize if row.measures == LINEAR else 1
    written = 1 if row.measures == INT8_TO_INT8 else itemsize
    return codes + read * row.M * row.K + written * row.M * row.N
