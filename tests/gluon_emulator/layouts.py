"""Layouts of the results of reshape, permute, join, split, …, asked of Triton itself.

The emulated builder hands out a layout as the name and the arguments of the builder method that would make it. Where a
result's layout must be inferred, that is replayed on a real builder, which infers as it does when it compiles. The
values do not depend on layouts, but Gluon's front end refuses operands whose layouts differ.
"""

from __future__ import annotations

import atexit
import functools
from typing import Any, NamedTuple


class Layout(NamedTuple):
    """A layout as the call that makes it."""

    method: str
    arguments: tuple[Any, ...]

    def on(self, builder: Any) -> Any:
        """Make it with a real builder."""
        return getattr(builder, self.method)(*(_thawed(argument, builder) for argument in self.arguments))


def layout(method: str, *arguments: Any) -> Layout:
    """`builder.method(*arguments)`, to be called later."""
    return Layout(method, tuple(_frozen(argument) for argument in arguments))


@functools.cache
def inferred_layout(operation: str, source: Layout, shape: tuple[int, ...], *arguments: Any) -> Any:
    """The Gluon layout of the result of `operation` on a tensor [shape] with layout `source`."""
    builder = _builder()
    type_ = builder.get_distributed_ty(builder.get_int8_ty(), list(shape), source.on(builder))
    value = builder.create_poison(type_)
    if operation == "create_join":
        result = builder.create_join(value, value)
    else:
        result = getattr(builder, operation)(value, *(_thawed(argument, builder) for argument in arguments))
    return builder.get_gluon_layout_from_tensor(result[0] if isinstance(result, (tuple, list)) else result)


@functools.cache
def inferred_shared_layout(
    operation: str, source: Layout, bits: int, shape: tuple[int, ...], *arguments: Any
) -> Any:
    """The Gluon layout of the result of `operation` on shared memory [shape] of `bits`-bit elements."""
    builder = _builder()
    element = {
        8: builder.get_int8_ty,
        16: builder.get_half_ty,
        32: builder.get_float_ty,
        64: builder.get_double_ty,
    }
    type_ = builder.get_shared_mem_desc_ty(element[bits](), list(shape), source.on(builder), list(shape))
    result = getattr(builder, operation)(
        builder.create_local_alloc(type_), *(_thawed(argument, builder) for argument in arguments)
    )
    return builder.get_gluon_layout_from_memdesc(result)


def conversion_is_trivial(source: Layout, target: Layout, shape: tuple[int, ...], bits: int) -> bool:
    """Whether `convert_layout` moves no data."""
    builder = _builder()
    element = {
        1: builder.get_int1_ty,
        8: builder.get_int8_ty,
        16: builder.get_half_ty,
        32: builder.get_float_ty,
    }
    made = element.get(bits, builder.get_double_ty)()
    value = builder.create_poison(builder.get_distributed_ty(made, list(shape), source.on(builder)))
    return builder.is_convert_layout_trivial(
        builder.get_distributed_ty(made, list(shape), target.on(builder)), value
    )


@functools.cache
def _builder() -> Any:
    """A real builder in an empty function, which is never compiled."""
    from triton._C.libtriton import gluon_ir, ir, nvidia

    context = ir.context()
    ir.load_dialects(context)
    nvidia.load_dialects(context)
    builder = gluon_ir.GluonOpBuilder(context)
    module = builder.create_module()
    module.set_attr("ttg.target", builder.get_string_attr("cuda:90"))
    module.set_attr("ttg.num-warps", builder.get_int32_attr(4))
    module.set_attr("ttg.num-ctas", builder.get_int32_attr(1))
    module.set_attr("ttg.threads-per-warp", builder.get_int32_attr(32))
    function = builder.get_or_insert_function(module, "f", builder.get_function_ty([], []), "public", False)
    module.push_back(function)
    builder.set_insertion_point_to_start(function.add_entry_block())
    _ALIVE.extend((context, module, function))
    return builder


#: What a builder points into but does not keep alive.
_ALIVE: list[Any] = []


@atexit.register
def _release() -> None:
    _builder.cache_clear()
    while _ALIVE:
        _ALIVE.pop()


def _frozen(argument: Any) -> Any:
    if isinstance(argument, Layout):
        return argument
    return tuple(_frozen(item) for item in argument) if isinstance(argument, (list, tuple)) else argument


def _thawed(argument: Any, builder: Any) -> Any:
    if isinstance(argument, Layout):
        return argument.on(builder)
    return [_thawed(item, builder) for item in argument] if isinstance(argument, tuple) else argument
