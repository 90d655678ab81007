"""Launching: arguments as Triton's own launch would take them, and the programs of the grid."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.experimental.gluon.language.nvidia.hopper import tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language import core as tl

from tritonq.kernels.launch.launch import launching

from .builder import AssemblyTwins, Builder
from .copies import Descriptor
from .errors import UnfinishedError
from .global_memory import GlobalMemory
from .interpreter import Interpreter
from .language import original_language
from .partitions import Partition, Program
from .registers import Registers
from .schedule import Schedule
from .semantic import PartitionTask, Semantic

#: What a launch says beside a kernel's own parameters. Only these three mean something here.
_OPTIONS = {"num_warps": 4, "launch_pdl": False, "num_ctas": 1}
_IGNORED_OPTIONS = ("num_stages", "maxnreg", "enable_fp_fusion", "warmup", "debug")
_DTYPES = {
    torch.bool: tl.int1,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
    torch.int16: tl.int16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@original_language()
def emulate(
    kernel: Any,
    grid: Any,
    *args: Any,
    seed: int = 0,
    concurrent: bool = False,
    early: Collection[str | Tensor] = (),
    twins: AssemblyTwins | None = None,
    **constants_and_options: Any,
) -> None:
    """Run a Gluon kernel on the CPU.

    Args:
        kernel: a `@gluon.jit` function.
        grid: up to three numbers of programs, or a function of the constants that returns them.
        args: as for a launch: CPU tensors, TensorDescriptors, numbers, None.
        seed: draws the schedule; the same seed runs the same schedule.
        concurrent: run the programs of the grid side by side instead of one after the other.
        early: what may be read before `gdc_wait` when launched with `launch_pdl`: names of parameters, or tensors.
        twins: part of an assembly's text → what it computes, on torch tensors; others run in assembly.py.

    Raises:
        EmulationError: where the kernel breaks the rules of its hardware.
    """
    options = {**_OPTIONS, **{k: v for k, v in constants_and_options.items() if k in _OPTIONS}}
    others = {**_OPTIONS, **dict.fromkeys(_IGNORED_OPTIONS)}
    constants = {k: v for k, v in constants_and_options.items() if k in kernel.arg_names or k not in others}
    if options["num_ctas"] != 1:
        raise NotImplementedError("the Gluon emulator knows no clusters")
    bound = kernel.signature.bind(*args, **constants)
    bound.apply_defaults()
    sizes = grid(dict(bound.arguments)) if callable(grid) else grid
    width, height, depth = (*((sizes,) if isinstance(sizes, int) else sizes), 1, 1)[:3]

    schedule, memory = Schedule(seed), GlobalMemory(early)
    builder = Builder(schedule, memory, (width, height, depth), twins or {})
    interpreter = Interpreter(Semantic(builder))
    values = {
        parameter.name: tl.constexpr(bound.arguments[parameter.name])
        if parameter.is_constexpr
        else _argument(bound.arguments[parameter.name], parameter, memory, interpreter)
        for parameter in kernel.params
    }
    tasks = []
    for ids in schedule.shuffled(
        [(x, y, z) for x in range(width) for y in range(height) for z in range(depth)]
    ):
        program = Program(schedule, ids, bool(options["launch_pdl"]))
        partition = Partition(program, f"program {ids}", options["num_warps"])
        tasks.append(PartitionTask(partition, interpreter, kernel, (), values))
    for group in [tasks] if concurrent else [[task] for task in tasks]:
        schedule.run(group)
        for task in group:
            if task.partition.program.loads:
                raise UnfinishedError(f"{task.name} ends while TMA loads are under way")


@contextlib.contextmanager
def emulated_launches(**options: Any) -> Iterator[list[Any]]:
    """Meanwhile every launch of a Gluon kernel is emulated; yields those kernels, in the order of their launches.

    Other kernels are launched as they always are. `options` are those of `emulate`.
    """
    emulated: list[Any] = []

    def instead(kernel: Any, grid: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        if isinstance(kernel, GluonJITFunction):
            emulated.append(kernel)
            emulate(kernel, grid, *arguments, **constants, **options)
        else:
            kernel[grid](*arguments, **constants)

    with launching(instead):
        yield emulated


def _argument(value: Any, parameter: Any, memory: GlobalMemory, interpreter: Interpreter) -> Any:
    """A kernel's value of an argument."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{parameter.name} must be a CPU tensor, found one on {value.device}")
        memory.add(parameter.name, value)
        address = Registers(torch.tensor(value.data_ptr()), None, value.dtype)
        return tl.tensor(address, tl.pointer_type(_DTYPES[value.dtype]))
    if isinstance(value, TensorDescriptor):
        return _descriptor(value, parameter, memory, interpreter)
    if isinstance(value, (tuple, list)):
        return tl.tuple([_argument(item, parameter, memory, interpreter) for item in value])
    if isinstance(value, (bool, float)):
        return interpreter.semantic.to_tensor(value)
    if isinstance(value, int):
        is_specialized = value == 1 and not parameter.do_not_specialize
        return tl.constexpr(1) if is_specialized else interpreter.semantic.to_tensor(value)
    return tl.constexpr(value)


def _descriptor(
    value: TensorDescriptor, parameter: Any, memory: GlobalMemory, interpreter: Interpreter
) -> Any:
    base = value.base
    memory.add(parameter.name, base)
    tensor = memory.view(base.data_ptr(), base.dtype, list(value.shape), list(value.strides))
    fill = float("nan") if value.padding == "nan" else 0
    handle = Descriptor(base.data_ptr(), tensor, tuple(value.block_shape), fill)
    shape = [interpreter.semantic.make_scalar(size, tl.int32) for size in value.shape]
    strides = [interpreter.semantic.make_scalar(stride, tl.int64) for stride in value.strides]
    block = gl.block_type(_DTYPES[base.dtype], list(value.block_shape))
    return tma.tensor_descriptor(handle, shape, strides, block, value.layout)
