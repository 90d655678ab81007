"""The tuned file of a GPU: configurations that `tritonq tune` measured here, read when the first one is needed.

    $TRITONQ_TUNED_DIR, else $XDG_CACHE_HOME/tritonq, else ~/.cache/tritonq
        NVIDIA_H100_80GB_HBM3.json              one file per name of a GPU

    {"format": 2,
     "gpu":      {"name", "backend", "arch", "multiprocessors", "shared_memory"},
     "triton":   "3.7",  "kernels": "<hash of the kernels' sources>",
     "measured": {a description of the measurement, for people},
     "entries":  [{"family", "variant", "bucket", "features", "columns", "config", "microseconds", …}]}

A damaged file, or one of another GPU, other kernels or another Triton, is ignored as a whole, with one warning. Numbers
are checked twice: each against its bounds here, and against the problem by limits.py.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import stat
import typing
import warnings
from pathlib import Path
from typing import Any

import triton

from ..launch.target import Target
from .limits import why_not_numbers
from .problem import BUCKETS, FAMILIES, Problem, Variant
from .tile import TileConfig

FORMAT = 2
DIRECTORY_VARIABLE = "TRITONQ_TUNED_DIR"
_LARGEST_BYTES = 1 << 24
_LONGEST_NAME = 100

#: (variant, bucket of M, N, K).
Key = tuple[Variant, int, int, int]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One measured problem.

    Attributes:
        problem: its M is a bucket.
        config: the fastest configuration found.
        microseconds: its time.
        measured_rows: the measured M.
        before: the configuration before the search.
        before_microseconds: its time, in the same measurement.
    """

    problem: Problem
    config: TileConfig
    microseconds: float
    measured_rows: int
    before: TileConfig
    before_microseconds: float

    def to_dict(self) -> dict[str, Any]:
        """The entry as it is in the file."""
        fields = dataclasses.asdict(self)
        problem = fields.pop("problem")
        del problem["rows"]
        return {"family": self.problem.family, **problem, "bucket": self.problem.bucket, **fields}


def tuned(problem: Problem, target: Target) -> TileConfig | None:
    """The configuration for a problem in the target's tuned file, or None."""
    if not target.name:
        return None
    entry = _entries(path_of(target), target).get(key_of(problem))
    return None if entry is None else entry.config


def key_of(problem: Problem) -> Key:
    """The key of a problem's entry."""
    return problem.variant, problem.bucket, problem.features, problem.columns


def path_of(target: Target) -> Path:
    """The path of a GPU's tuned file, which need not exist."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    if given:
        directory = Path(given)
    else:
        cache = os.environ.get("XDG_CACHE_HOME")
        directory = Path(cache or os.path.expanduser("~/.cache")) / "tritonq"
    return directory / (re.sub(r"[^\w.-]+", "_", target.name)[:_LONGEST_NAME] + ".json")


def header_of(target: Target) -> dict[str, Any]:
    """The header that a file for this GPU, these kernels and this Triton must have."""
    return {
        "format": FORMAT,
        "gpu": dataclasses.asdict(target),
        "triton": ".".join(triton.__version__.split(".")[:2]),
        "kernels": fingerprint(),
    }


@functools.cache
def fingerprint() -> str:
    """A hash of the kernels' sources. Configurations measured with other sources may be slow or wrong."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read(file: Path, target: Target) -> dict[Key, Entry]:
    """The entries of a tuned file; none if there is no file.

    Raises:
        ValueError: the file cannot be used here; the message is one sentence.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_BYTES:
            raise ValueError(f"it must be a file of at most {_LARGEST_BYTES:,} bytes")
        fields = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("it holds no dictionary")
    for name, wanted in header_of(target).items():
        if fields.get(name) != wanted:
            raise ValueError(_DIFFERENCES[name])
    entries = fields.get("entries")
    if not isinstance(entries, list):
        raise ValueError("it holds no list of entries")
    try:
        read_entries = [_entry(entry) for entry in entries]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"an entry is damaged: {str(error)[:200]}") from None
    return {key_of(entry.problem): entry for entry in read_entries}


def forget() -> None:
    """Read the file again for the next problem."""
    _entries.cache_clear()


@functools.lru_cache(maxsize=64)
def _entries(file: Path, target: Target) -> dict[Key, Entry]:
    try:
        return read(file, target)
    except ValueError as error:
        warnings.warn(
            f"{file} is ignored: {error}; run `tritonq tune` again or delete the file",
            stacklevel=2,
        )
        return {}


_DIFFERENCES = {
    "format": "it is of another version of tritonq",
    "gpu": "it was measured on another GPU",
    "triton": "it was measured with another version of Triton",
    "kernels": "it was measured with other kernels",
}


def _entry(fields: Any) -> Entry:
    if not isinstance(fields, dict):
        raise TypeError(f"it must be a dictionary, found {fields!r}")
    if (
        not isinstance(fields["family"], str)
        or fields["family"] not in FAMILIES
        or fields["bucket"] not in BUCKETS
    ):
        raise ValueError(f"family and bucket must be known, found {fields['family']!r}, {fields['bucket']!r}")
    sizes = [_positive(fields[name]) for name in ("bucket", "features", "columns")]
    times = [_time(fields[name]) for name in ("microseconds", "before_microseconds")]
    return Entry(
        Problem(_variant(FAMILIES[fields["family"]], fields["variant"]), *sizes),
        _config(fields["config"]),
        times[0],
        _positive(fields["measured_rows"]),
        _config(fields["before"]),
        times[1],
    )


def _variant(family: type[Variant], fields: Any) -> Variant:
    """A family's variant, each of its fields of the type that it has."""
    types = typing.get_type_hints(family)
    names = [field.name for field in dataclasses.fields(family)]
    if not isinstance(fields, dict) or set(fields) != set(names):
        raise ValueError(f"variant must have {sorted(names)}, found {fields!r}")
    for name, value in fields.items():
        if value not in typing.get_args(types[name]) and type(value) is not types[name]:
            raise ValueError(f"{name} of a variant must be {types[name]}, found {value!r}")
    return family(**fields)


def _config(fields: Any) -> TileConfig:
    """The TileConfig, with all numbers checked."""
    names = {field.name for field in dataclasses.fields(TileConfig)}
    if not isinstance(fields, dict) or set(fields) != names:
        raise ValueError(f"config must have {sorted(names)}, found {fields!r}")
    for name, value in fields.items():
        if name == "path":
            if not isinstance(value, str):
                raise ValueError(f"path must be a word, found {value!r}")
        elif not (name == "max_registers" and value is None):
            _positive(value)
    config = TileConfig(**fields)
    reason = why_not_numbers(config)
    if reason is not None:
        raise ValueError(reason)
    return config


def _positive(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ValueError(f"a size must be a positive integer, found {value!r}")
    return value


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise ValueError(f"a time must be a positive number, found {value!r}")
    return float(value)
