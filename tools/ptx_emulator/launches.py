"""Redirects the library's launches to the emulator: another process compiles them, and this one runs them."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .compiler import Compiler
from .copies import TensorMap
from .global_memory import GlobalMemory, Region
from .machine import Machine
from .specialization import Launch, described, launch_of

_SWIZZLES = {0: 0, 1: 32, 2: 64, 3: 128}


@functools.cache
def compiler(triton: str | None) -> Compiler:
    """The one of this process for a Triton, ended with it."""
    made = Compiler(triton)
    atexit.register(made.close)
    return made


@dataclasses.dataclass
class Emulated:
    """What has been executed: kernels by name, the IR of those in Gluon, how many instructions."""

    kernels: list[str] = dataclasses.field(default_factory=list)
    gluon_ir: list[str] = dataclasses.field(default_factory=list)
    instructions: int = 0


def compiled_for(launch: Launch, architecture: int = 90, triton: str | None = None) -> dict[str, Any]:
    """{ptx, ttgir, shared, tensor_maps} of a launch.

    Args:
        launch: as recorded.
        architecture: compute capability times ten.
        triton: the folder of the Triton that compiles; TRITONQ_PTX_TRITON by default, or the one of this environment.
    """
    triton = triton or os.environ.get("TRITONQ_PTX_TRITON")
    return compiler(triton).compile(described(launch), architecture)


def execute(
    launch: Launch, made: dict[str, Any], grid: tuple[int, ...], seed: int = 0, early: tuple[str, ...] = ()
) -> int:
    """Execute a compiled launch on CPU tensors; returns how many instructions that took.

    Args:
        launch: as recorded.
        made: of it, by `compiled_for`.
        grid: of programs.
        seed: of the order of events.
        early: parameters whose memory may be read before the kernel in front has ended.
    """
    values: list[Any] = []
    regions: list[Region] = []
    maps, flags = iter(made["tensor_maps"]), [0] if made["triton"].startswith("3.6") else [0, 0]
    for name, value in launch.arguments.items():
        if isinstance(value, torch.Tensor):
            values.append(value.data_ptr())
            regions += _region(name, value)
        elif hasattr(value, "block_shape"):
            # Without a copy engine Triton takes a descriptor apart, with flags that are off (3.6 has one, later two).
            shape, tile = [*value.shape, *value.strides], next(maps, None)
            values += (
                [value.base.data_ptr(), *shape, *flags] if tile is None else [_tensor_map(name, value, tile)]
            )
            values += shape
            regions += _region(name, value.base)
        elif not _is_constant(launch, name, value):
            values.append(_bits(value))
    dependent = bool(launch.options.get("launch_pdl"))
    memory = GlobalMemory(regions, early if dependent else None)
    machine = Machine(made["ptx"], values, memory, grid, made["shared"], dependent)
    machine.run(seed)
    return machine.executed


def _is_constant(launch: Launch, name: str, value: Any) -> bool:
    if value is None or (type(value) is int and value == 1):
        return True
    annotation = launch.kernel.fn.__annotations__.get(name)
    return annotation is not None and "constexpr" in str(annotation)


def _bits(value: Any) -> int:
    return int(np.float32(value).view(np.uint32)) if isinstance(value, float) else int(value)


def _region(name: str, tensor: torch.Tensor) -> list[Region]:
    if tensor.numel() == 0:
        return []
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return [Region(name, tensor.data_ptr(), (last + 1) * tensor.element_size())]


def _tensor_map(name: str, descriptor: Any, shape: dict[str, Any]) -> TensorMap:
    size = shape["element_size"]
    return TensorMap(
        name,
        descriptor.base.data_ptr(),
        tuple(descriptor.shape),
        descriptor.strides[0] * size,
        size,
        tuple(shape["box"]),
        _SWIZZLES[shape["swizzle"]],
    )


@contextlib.contextmanager
def emulated_launches(
    architecture: int = 90, seed: int = 0, early: tuple[str, ...] = ()
) -> Iterator[Emulated]:
    """Meanwhile the library's launches are emulated."""
    from tritonq.kernels.launch.launch import launching

    done = Emulated()

    def instead(
        kernel: Any, grid: tuple[int, ...], positional: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        launch = launch_of(kernel, positional, keywords)
        made = compiled_for(launch, architecture)
        if made["is_gluon"]:
            done.gluon_ir.append(made["ttgir"])
        done.instructions += execute(launch, made, grid, seed, early)
        done.kernels.append(kernel.fn.__name__)

    with launching(instead):
        yield done
