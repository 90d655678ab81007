"""Describes as JSON what Triton specialises a kernel on, so that another process or Triton can compile it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

import torch

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclasses.dataclass
class Launch:
    """`kernel[grid](*arguments, **keywords)`: all of the kernel's parameters by name, and launch options apart."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


def launch_of(kernel: Any, positional: tuple[Any, ...], keywords: dict[str, Any]) -> Launch:
    """From what `tritonq.kernels.launch.launch` is given."""
    parameters = inspect.signature(kernel.fn).parameters
    given = dict(zip(parameters, positional, strict=False)) | keywords
    arguments = {name: given.get(name, parameter.default) for name, parameter in parameters.items()}
    return Launch(kernel, arguments, {key: value for key, value in keywords.items() if key not in parameters})


def described(launch: Launch) -> dict[str, Any]:
    """A launch without its memory."""
    function = launch.kernel.fn
    return {
        "module": function.__module__,
        "kernel": function.__qualname__,
        "arguments": {name: _described(value) for name, value in launch.arguments.items()},
        "options": launch.options,
    }


def _described(value: Any) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        aligned = value.is_meta or value.data_ptr() % 16 == 0
        return {"pointer": _POINTERS[value.dtype], "aligned": aligned}
    if hasattr(value, "block_shape"):
        layout = getattr(value, "layout", None)
        return {
            "tile": list(value.block_shape),
            "element": _POINTERS[value.base.dtype].removeprefix("*"),
            "layout": None
            if layout is None
            else [layout.swizzle_byte_width, layout.element_bitwidth, layout.rank],
        }
    if type(value).__name__ == "dtype":
        return {"dtype": value.name}
    value = getattr(value, "value", value)  # of a constexpr
    assert value is None or isinstance(value, (bool, int, float, str)), f"{value!r} as an argument"
    return {"value": value}


def source_of(description: dict[str, Any]) -> Any:
    """What `triton.compile` takes, in the process that compiles."""
    from triton import language
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(description["module"]), description["kernel"])
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        argument = description["arguments"][parameter.name]
        value = argument.get("value", argument)
        if "pointer" in argument:
            signature[parameter.name] = argument["pointer"]
            if argument["aligned"]:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif "tile" in argument:
            signature[parameter.name] = _tile_type(argument)
        elif "dtype" in argument:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = language.dtype(argument["dtype"])
        elif parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    return ASTSource(kernel, signature, constants, attributes)


def _tile_type(argument: dict[str, Any]) -> str:
    tile = f"tensordesc<{argument['element']}{argument['tile']}".replace(" ", "")
    if argument["layout"] is None:
        return f"{tile}>"
    from triton.experimental.gluon import language as gl

    return f"{tile},{gl.NVMMASharedLayout(*argument['layout'])!r}>"
