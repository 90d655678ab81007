"""What a timing was measured on: without it a number means nothing."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import torch

import tritonq


def describe(device: torch.device) -> dict[str, str | int | None]:
    """Device, versions, the commit, and the command that is running."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{platform.machine()} CPU",
        "multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count if gpu else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "tritonq": tritonq.__version__,
        "commit": _commit(),
        "command": " ".join(["python3", *sys.orig_argv[1:]]),
    }


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
