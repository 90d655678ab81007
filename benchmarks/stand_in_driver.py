"""A stand-in for a GPU: Triton's real launcher, linked to a CUDA driver whose functions do nothing.

It measures the host's cost of a launch, up to the call of the driver, on a machine without a GPU. Kernels are compiled
for compute capability 9.0 but never run. Tensors are on the CPU; results have no meaning. It needs a C compiler, and a
process in which Triton has not looked for a driver yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

_SOURCE = Path(__file__).with_suffix(".c")
#: backend, compute capability, multiprocessors, shared memory per block; the same as in stand_in_driver.c.
_TARGET = ("cuda", 90, 132, 227 * 1024)


@contextlib.contextmanager
def stand_in_gpu() -> Iterator[None]:
    """Inside this context operators treat CPU tensors as GPU tensors, and kernel launches do nothing."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        subprocess.run(
            ["cc", "-O2", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, _SOURCE],
            check=True,
        )
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # found by its name from now on
        _keep_freed_memory()
        with mock.patch.dict(os.environ, {"TRITON_LIBCUDA_PATH": folder}), contextlib.ExitStack() as patches:
            _activate(_driver())
            for patch in _patches():
                patches.enter_context(patch)
            yield


def _keep_freed_memory() -> None:
    """Make the C library reuse freed memory, like a GPU's allocator, instead of mapping and unmapping large blocks."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
    c_library = ctypes.CDLL(None)
    c_library.mallopt(mmap_threshold, 32 << 20)
    c_library.mallopt(trim_threshold, 512 << 20)


def _driver() -> Any:
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

    class StandInDriver(CudaDriver):
        """Triton's driver, but without asking torch for a device."""

        def __init__(self) -> None:
            self.utils = CudaUtils()
            self.launcher_cls = CudaLauncher
            self.get_device_capability = lambda device: (9, 0)
            self.get_current_stream = {0: 0}.__getitem__
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None

    return StandInDriver()


def _activate(driver: Any) -> None:
    from triton.runtime import driver as drivers

    drivers.set_active(driver)


def _patches() -> Iterator[Any]:
    """Patches for tritonq's questions about the device, with the stand-in's answers."""
    import tritonq.kernels
    import tritonq.ops
    from tritonq.kernels.launch.target import Target

    target = Target(*_TARGET)
    answers = {
        "uses_kernels": lambda x: True,
        "on_gpu": lambda x: True,
        "current_device": lambda: -1,
        "current_stream": lambda device: 0,
        "target_of": lambda x: target,
    }
    counters = torch.zeros(1 << 16, dtype=torch.int32)
    answers["zeroed_counters"] = lambda device, count: counters
    for package in (tritonq.kernels, tritonq.ops):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):  # pkgutil does not look into folders without __init__.py
            parts = path.relative_to(root).with_suffix("").parts
            module = importlib.import_module(".".join([package.__name__, *parts]).removesuffix(".__init__"))
            for name, answer in answers.items():
                if hasattr(module, name):
                    yield mock.patch.object(module, name, answer)
