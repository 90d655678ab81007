"""What a launcher must know of the GPU it launches on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor

#: True when kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1 before triton is imported).
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU as the configuration tables see it.

    Attributes:
        backend: "cuda", "hip" or "interpreter".
        arch: compute capability times ten (90) on CUDA, 0 elsewhere.
        multiprocessors: SMs or compute units.
        shared_memory: bytes that one block may use.
        name: as its driver says, which a tuned file is found by; "" for a GPU that is not here.
    """

    backend: str
    arch: int
    multiprocessors: int
    shared_memory: int
    name: str = ""


# torch.cuda's functions for these make objects, and check each time that CUDA is initialized.
#: index of a GPU → handle of the current stream there.
current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)
#: index of the current GPU; -1 where torch was built without any.
current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", lambda: -1)

INTERPRETER = Target("interpreter", 0, 4, 64 * 1024)
_pretended: Target | None = None


def target_of(x: Any) -> Target:
    """The target that a tensor lies on.

    Raises:
        ValueError: for a tensor that is not on a GPU, unless kernels are interpreted.
    """
    if x.is_cuda:
        return gpu_target(x.get_device())
    if _pretended is not None and x.device.type in ("meta", "cpu"):
        return _pretended
    if INTERPRETED and x.device.type == "cpu":
        return INTERPRETER
    raise ValueError(f"Triton kernels need tensors on a GPU, found device {x.device}")


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.get_device())
    return contextlib.nullcontext()


def operand_dtype(x: Any) -> triton.language.dtype:
    """The dtype of the matrix instruction's operands: x's own; the interpreter has no bfloat16 arithmetic."""
    if INTERPRETED:
        return triton.language.float32
    return _TRITON_DTYPES[x.dtype]


_TRITON_DTYPES = {
    torch.float32: triton.language.float32,
    torch.float16: triton.language.float16,
    torch.bfloat16: triton.language.bfloat16,
}


@functools.cache
def gpu_target(index: int) -> Target:
    """The target that a GPU of this machine is."""
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Target("hip", 0, properties.multi_processor_count, 64 * 1024, properties.name)
    shared = getattr(properties, "shared_memory_per_block_optin", 96 * 1024)
    arch = 10 * properties.major + properties.minor
    return Target("cuda", arch, properties.multi_processor_count, shared, properties.name)


@contextlib.contextmanager
def pretended(target: Target) -> Iterator[None]:
    """Meanwhile tensors that lie on no GPU lie on `target`: what a launcher would do there, without it."""
    global _pretended
    before, _pretended = _pretended, target
    try:
        yield
    finally:
        _pretended = before
