"""The command `tritonq doctor`: prints the machine and the kernels that will run, checks them, prints a table."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tritonq import ops
from tritonq.doctor.checks import REPEATS, Check, Outcome, run_check
from tritonq.util import machine
from tritonq.util.json_file import write_json
from tritonq.util.progress import track
from tritonq.util.table import aligned

_MOST_PROCESSES = 8
NO_GPU = "no GPU that torch can use: everything is computed on the CPU, by the reference"


def examine(seconds: float, json_file: Path | None) -> bool:
    """Print and write the report; False if anything is wrong.

    Args:
        seconds: the time limit of a check on a GPU. A longer check ends the run, because all others would wait behind
            a kernel that hangs.
    """
    facts: dict[str, object] = {**machine.versions()}
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        facts |= machine.gpu(torch.cuda.current_device())
    for name, value in facts.items():
        print(f"{name}: {'not installed' if value is None else value}")
    uses_kernels = bool(gpus) and ops.backend("cuda") == "triton"
    for line in _kernel_lines(uses_kernels):
        print(line)
    checks, outcomes = on_gpu(seconds) if uses_kernels else on_cpu()
    print()
    for line in table(checks, outcomes):
        print(line)
    wrong = sum(outcome.wrong is not None for outcome in outcomes)
    not_run = sum(not outcome.ran for outcome in outcomes)
    print()
    found = f"{wrong} WRONG" if wrong else "all right"
    print(f"{len(checks)} checks, {found}{f', {not_run} not run: see what hangs' if not_run else ''}")
    if json_file is not None:
        rows = [
            {"name": check.name, "path": check.path, **dataclasses.asdict(outcome)}
            for check, outcome in zip(checks, outcomes, strict=True)
        ]
        write_json(json_file, {"machine": facts, "checks": rows})
    return wrong == 0


def on_cpu() -> tuple[list[Check], list[Outcome]]:
    """The CPU's checks, in this process."""
    from tritonq.doctor.cpu import cpu_checks

    checks: list[Check] = list(cpu_checks())
    return checks, [run_check(check, "cpu", repeats=2) for check in track(checks, "checking")]


def on_gpu(seconds: float) -> tuple[list[Check], list[Outcome]]:
    """All checks. Those of the GPU run in parallel processes, because most of the time is spent compiling."""
    from tritonq.doctor.chains import chain_checks
    from tritonq.doctor.operators import operator_checks
    from tritonq.doctor.products import product_checks
    from tritonq.kernels.launch.target import gpu_target

    target = gpu_target(torch.cuda.current_device())
    checks: list[Check] = [*product_checks(target), *chain_checks(), *operator_checks()]
    answers = in_processes(checks, seconds)
    of_cpu, outcomes_of_cpu = on_cpu()
    return [*of_cpu, *checks], [*outcomes_of_cpu, *track(answers, "checking", total=len(checks))]


def table(checks: Sequence[Check], outcomes: Sequence[Outcome]) -> list[str]:
    """One line per check, which also says what is wrong."""
    rows = [
        (
            check.name,
            check.path,
            "-" if outcome.difference is None else f"{outcome.difference:.2g}",
            f"WRONG: {outcome.wrong}" if outcome.wrong else "ok" if outcome.ran else "not run",
        )
        for check, outcome in zip(checks, outcomes, strict=True)
    ]
    return aligned(("checked", "computed by", "largest difference", ""), rows, numbers=0)


def in_processes(checks: Sequence[Check], seconds: float) -> Iterator[Outcome]:
    """Outcomes in order. A check that ends its process is wrong; after one that hangs, no other is begun."""
    from tritonq.tuning.worker import Workers

    count = min(_MOST_PROCESSES, os.cpu_count() or 1)
    with contextlib.closing(Workers(run_check, seconds, count, ends_at_no_answer=True)) as workers:
        yield from map(_outcome, workers.ask_all([(check, "cuda", REPEATS) for check in checks]))


def _outcome(answer: Any) -> Outcome:
    from tritonq.tuning.worker import NoAnswer, WorkerError

    if answer is None:
        return Outcome(None, None, ran=False)
    if isinstance(answer, NoAnswer):
        return Outcome(None, f"hangs: {answer}")
    return Outcome(None, str(answer)) if isinstance(answer, WorkerError) else answer


def _kernel_lines(uses_kernels: bool) -> Iterator[str]:
    """Lines about the available paths, the reasons for missing ones, and the state of the tuned file."""
    if not torch.cuda.is_available():
        yield NO_GPU
        from tritonq.reference.integers import int_mm_is_exact_and_fast

        exact = int_mm_is_exact_and_fast()
        yield f"int8 products: {'torch._int_mm' if exact else 'float32, in parts that are exact'}"
        return
    if not uses_kernels:
        why = "Triton is not installed" if importlib.util.find_spec("triton") is None else "see the warning"
        yield f"kernels: none, the reference computes: {why}"
        return
    from tritonq.kernels.config import tuned_file
    from tritonq.kernels.config.limits import missing_paths
    from tritonq.kernels.launch.target import gpu_target

    target = gpu_target(torch.cuda.current_device())
    for path, why_not in missing_paths(target).items():
        yield f"path {path}: {'yes' if why_not is None else f'no: {why_not}'}"
    file = tuned_file.path_of(target)
    try:
        entries = len(tuned_file.read(file, target))
    except ValueError as error:
        yield f"tuned file: {file}, ignored: {error}"
    else:
        yield f"tuned file: {f'{file}, {entries} entries' if entries else 'none; tritonq tune writes one'}"
