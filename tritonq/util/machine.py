"""Describes the machine and the versions that a measurement was made with."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess

import torch


def versions() -> dict[str, str | None]:
    """Versions of Python, torch, Triton and tritonq; None if not installed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "tritonq": _version("tritonq"),
    }


def gpu(index: int) -> dict[str, str | int | None]:
    """Name, compute capability, multiprocessors, bytes of memory, and driver of a GPU."""
    properties = torch.cuda.get_device_properties(index)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "driver": driver(),
    }


def driver() -> str | None:
    """The version of NVIDIA's driver according to nvidia-smi; None without that tool."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip().partition("\n")[0] or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
