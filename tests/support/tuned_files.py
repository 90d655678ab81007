"""Problems, GPUs and tuned files for the tests of configurations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tritonq.kernels.config import tuned_file
from tritonq.kernels.config.problem import Int8, Problem
from tritonq.kernels.config.tile import TileConfig
from tritonq.kernels.launch.target import Target

H100 = Target("cuda", 90, 132, 227 * 1024, "NVIDIA H100 80GB HBM3")
TARGETS = {
    "sm_80": Target("cuda", 80, 108, 163 * 1024),
    "sm_89": Target("cuda", 89, 142, 99 * 1024),
    "sm_90": Target("cuda", 90, 132, 227 * 1024),
    "sm_100": Target("cuda", 100, 148, 227 * 1024),
    "sm_120": Target("cuda", 120, 170, 99 * 1024),
    "gfx942": Target("hip", 0, 304, 64 * 1024),
}
INT8 = Problem(Int8("short", addressable=True), 16, 4096, 4096)
RULE = TileConfig(64, 16, 256, 1, 4, 4)
TUNED = TileConfig(64, 16, 128, 2, 4, 5)


def entry(problem: Problem = INT8, config: TileConfig = TUNED) -> tuned_file.Entry:
    return tuned_file.Entry(problem, config, 10.0, problem.rows, RULE, 12.5)


def fields_of(*entries: tuned_file.Entry, target: Target = H100) -> dict[str, Any]:
    return {**tuned_file.header_of(target), "entries": [one.to_dict() for one in entries]}


def write(fields: dict[str, Any], target: Target = H100) -> Path:
    file = tuned_file.path_of(target)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(fields))
    return file


def with_rows(problem: Problem, rows: int) -> Problem:
    return dataclasses.replace(problem, rows=rows)
