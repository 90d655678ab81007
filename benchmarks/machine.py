"""Describes the machine that a timing was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

import tritonq
from tritonq.cpu.choose import engine


def describe(device: torch.device) -> dict[str, str | float | None]:
    """The device, the versions, the commit, and the running command."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{platform.machine()} CPU",
        "multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count if gpu else None,
        **(_driver(device) if gpu else _processor()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "tritonq": tritonq.__version__,
        "commit": _commit(),
        "command": " ".join(["python3", *sys.orig_argv[1:]]),
    }


def _processor() -> dict[str, str | float | None]:
    """The processor's name, how many cores this process may use, and what computes on it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = engine()
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "backend": tritonq.backend("cpu") if found is None else f"cpu ({found.instructions.name})",
    }


#: Settings that a timing depends on, with their names in nvidia-smi.
_QUERIED = {"driver": "driver_version", "clock_limit": "clocks.max.sm", "power_limit": "power.limit"}


def _driver(device: torch.device) -> dict[str, str | None]:
    """The driver and its limits; without nvidia-smi only the version of CUDA or ROCm."""
    runtime = {"cuda": torch.version.cuda, "rocm": torch.version.hip}
    uuid = torch.cuda.get_device_properties(device).uuid
    query = ["nvidia-smi", f"--query-gpu={','.join(_QUERIED.values())}", "--format=csv,noheader"]
    try:
        result = subprocess.run([*query, f"--id=GPU-{uuid}"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return runtime
    return {**runtime, **dict(zip(_QUERIED, result.stdout.strip().split(", "), strict=False))}


def _commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
