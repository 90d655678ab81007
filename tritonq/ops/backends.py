"""What computes on a device: the Triton kernels on a GPU, the engine on a CPU, the reference where neither is there."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch
from torch import Tensor

from tritonq.cpu.choose import engine
from tritonq.cpu.engine import Engine

#: Triton compiles int8 matrix products from here on.
OLDEST_CUDA_CAPABILITY = (8, 0)


def uses_kernels(x: Tensor) -> bool:
    """True where the Triton kernels compute; elsewhere the reference does."""
    return x.is_cuda and _kernels_run_on(x.get_device())


def cpu_engine(x: Tensor) -> Engine | None:
    """The engine that computes on a tensor of a CPU, None where the reference does."""
    return engine() if x.is_cpu else None


def backend(device: torch.device | str) -> str:
    """What computes on a device: "triton", "cpu" (the engine for CPUs) or "reference"."""
    device = torch.device(device)
    if device.type == "cpu" and engine() is not None:
        return "cpu"
    if device.type != "cuda":
        return "reference"
    index: int | None = device.index
    return (
        "triton" if _kernels_run_on(torch.cuda.current_device() if index is None else index) else "reference"
    )


@functools.cache
def _kernels_run_on(gpu: int) -> bool:
    """Whether Triton is installed and compiles int8 products for this GPU; where not, that is said once."""
    obstacle: str | None = None
    if importlib.util.find_spec("triton") is None:
        obstacle = "Triton is not installed"
    elif torch.version.cuda and torch.cuda.get_device_capability(gpu) < OLDEST_CUDA_CAPABILITY:
        major, minor = OLDEST_CUDA_CAPABILITY
        obstacle = f"its compute capability is below {major}.{minor}"
    if obstacle is not None:
        name = torch.cuda.get_device_name(gpu)
        warnings.warn(f"tritonq computes in plain, slower torch on {name}: {obstacle}", stacklevel=2)
    return obstacle is None
