"""The command `tritonq tune`: checks its arguments, lists or measures configurations, prints tables."""

from __future__ import annotations

import dataclasses
import datetime
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from tritonq.kernels.config.choose import Explanation
from tritonq.kernels.config.tile import APART, TileConfig
from tritonq.kernels.launch.target import Target, gpu_target
from tritonq.tuning.schemes import DYNAMIC, MOST_DYNAMIC_ROWS, SCHEMES, USUAL_SCHEMES
from tritonq.tuning.search import Result, Tools, TunedFile, tune
from tritonq.tuning.shapes import parse_shape, shapes_of_model, usual_shapes
from tritonq.tuning.workload import Workload, explained
from tritonq.util import machine
from tritonq.util.json_file import write_json
from tritonq.util.progress import track
from tritonq.util.table import aligned

_DEFAULT_ROWS = (1, 16, 64, 256, 1024, 4096)
#: The GPUs that --target can name, one of each architecture, with the numbers of its data sheet.
NAMED_TARGETS = {
    "sm_80": Target("cuda", 80, 108, 163 * 1024),
    "sm_86": Target("cuda", 86, 84, 99 * 1024),
    "sm_89": Target("cuda", 89, 128, 99 * 1024),
    "sm_90": Target("cuda", 90, 132, 227 * 1024),
    "sm_100": Target("cuda", 100, 148, 227 * 1024),
    "sm_120": Target("cuda", 120, 170, 99 * 1024),
    "gfx942": Target("hip", 0, 304, 64 * 1024),
}


def measure(workloads: list[Workload], dry_run: bool, again: bool, json_file: Path | None) -> bool:
    """Search, print the results, and keep them unless `dry_run`; False if a present configuration is wrong.

    An interrupt ends the search. The results so far are printed and kept, and the interrupt is raised again.
    """
    target = this_gpu("tritonq tune --list --target sm_90 shows what another GPU would run")
    measured_on = _measured_on()
    file = None if dry_run else TunedFile(target, measured_on, again)
    results: list[Result] = []
    try:
        with tools_for(target) as tools:
            for result in track(tune(workloads, target, tools, file), "tuning", total=len(workloads)):
                results.append(result)
    finally:
        if results:
            _show(results, None if file is None else file.path)
        if json_file is not None:
            write_json(
                json_file, {"measured": measured_on, "results": [result.to_dict() for result in results]}
            )
    if not results and file is not None:
        print(f"nothing to measure: {file.path} has all of it; --again measures it again")
    return all(result.entry is not None for result in results)


def this_gpu(otherwise: str) -> Target:
    """The current GPU. Without one: a ValueError that ends with `otherwise`, what to do instead."""
    if not torch.cuda.is_available():
        raise ValueError(f"tritonq tune measures on a GPU that torch can use, found none: {otherwise}")
    return gpu_target(torch.cuda.current_device())


def tools_for(target: Target) -> AbstractContextManager[Tools]:
    """The tools that measure on a GPU."""
    from tritonq.tuning.measure import gpu_tools

    return gpu_tools(target)


def workloads_of(
    schemes: list[str] | None,
    model: Path | None,
    shapes: list[str] | None,
    rows: list[int] | None,
    dtype: str,
) -> list[Workload]:
    """The products that the command line asks for, checked."""
    for scheme in schemes or ():
        if scheme not in SCHEMES:
            raise ValueError(f"--schemes must be of {', '.join(SCHEMES)}, found {scheme!r}")
    if dtype not in ("bfloat16", "float16"):
        raise ValueError(f"--dtype must be bfloat16 or float16, found {dtype!r}")
    wanted = [parse_shape(shape) for shape in shapes or ()]
    if model is not None:
        wanted += shapes_of_model(model)
    return [
        Workload(scheme, *shape, m, dtype)
        for scheme in schemes or USUAL_SCHEMES
        for shape in dict.fromkeys(wanted or usual_shapes())
        for m in sorted(set(rows or _DEFAULT_ROWS))
        if schemes or not scheme.endswith(DYNAMIC) or m <= MOST_DYNAMIC_ROWS
    ]


def _named(name: str) -> Target:
    if name not in NAMED_TARGETS:
        raise ValueError(f"--target must be one of {', '.join(NAMED_TARGETS)}, found {name!r}")
    return NAMED_TARGETS[name]


def _measured_on() -> dict[str, str | int | None]:
    today = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {**machine.versions(), **machine.gpu(torch.cuda.current_device()), "when": today}


def list_configurations(workloads: list[Workload], target_name: str | None, json_file: Path | None) -> None:
    """Print the configuration that each product would run with, and why."""
    target = this_gpu("--target names another") if target_name is None else _named(target_name)
    explanations = [(workload, explained(workload, target)) for workload in workloads]
    if json_file is not None:
        write_json(
            json_file,
            {
                "target": dataclasses.asdict(target),
                "problems": [
                    {"workload": dataclasses.asdict(workload), **_explanation(explanation)}
                    for workload, explanation in explanations
                ],
            },
        )
    rows = [
        (*_cells(workload), explanation.source, describe(explanation.config))
        for workload, explanation in explanations
    ]
    for line in aligned(("scheme", "N", "K", "M", "source", "configuration"), rows, numbers=0):
        print(line)
    origins = {explanation.origin for _, explanation in explanations if explanation.origin}
    notes = [f"from {origin}" for origin in sorted(origins)]
    notes += [f"not used: {workload}: {why}" for workload, e in explanations for why in e.passed_over]
    for note in notes:
        print(note)


def _explanation(explanation: Explanation) -> dict[str, object]:
    fields = dataclasses.asdict(explanation)
    return {name: fields[name] for name in ("problem", "config", "source", "origin", "passed_over")}


def _show(results: list[Result], path: Path | None) -> None:
    rows, dropped = [], []
    for result in results:
        entry, before = result.entry, result.before
        if entry is None:
            times = ("WRONG", "", "", describe(before.config))
        else:
            now = "as before" if entry.config == entry.before else describe(entry.config)
            gain = entry.before_microseconds / entry.microseconds
            times = (f"{entry.before_microseconds:.1f}", f"{entry.microseconds:.1f}", f"{gain:.2f}", now)
        rows.append((*_cells(result.workload), before.source, *times))
        failures = [*result.dropped, *(result.uncompiled if entry is None else ())]
        dropped += [f"dropped: {result.workload}: {describe(one)}: {reason}" for one, reason in failures]
    header = ("scheme", "N", "K", "M", "source", "µs before", "µs now", "gain", "configuration")
    for line in [*aligned(header, rows, numbers=0), *dropped]:
        print(line)
    if path is not None and path.exists():
        print(f"kept in {path}")


def _cells(workload: Workload) -> tuple[str, ...]:
    return workload.scheme, str(workload.features), str(workload.columns), str(workload.rows)


def describe(config: TileConfig) -> str:
    """A configuration in one line: "pointers 64×16×256, 4 splits, 4 warps, 3 stages"."""
    if config == APART:
        return "apart: x is quantized in a separate launch"
    registers = "" if config.max_registers is None else f", {config.max_registers} registers"
    splits = "" if config.splits == 1 else f", {config.splits} splits"
    return (
        f"{config.path} {config.block_n}×{config.block_m}×{config.block_k}{splits}, "
        f"{config.num_warps} warps, {config.num_stages} stages{registers}"
    )
