"""The part of the builder that makes tensors and moves their elements: constants, shapes, layouts, reductions."""

from __future__ import annotations

import math
from typing import Any

import torch

from . import layouts
from .layouts import Layout, layout
from .registers import Registers, Type, integer


class ShapeOperations:
    """Types, constants and operations that change a tensor's shape or layout."""

    #: How many warps run what is being built.
    num_warps: int

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("create_", "get_")):
            raise NotImplementedError(f"the Gluon emulator does not know the operation {name}")
        raise AttributeError(name)

    # Types

    def get_ptr_ty(self, pointee: Type, address_space: int) -> Type:
        return Type(torch.int64, pointee=pointee.dtype)

    def get_distributed_ty(self, element: Type, shape: list[int], layout_: Layout) -> Type:
        return Type(element.dtype, tuple(shape), layout_, element.pointee)

    get_block_ty = get_distributed_ty

    def get_auto_layout(self) -> Layout:
        return layout("get_auto_layout")

    def get_coalesced_layout(self) -> Layout:
        return layout("get_coalesced_layout")

    def get_blocked_layout(self, sizes: Any, threads: Any, warps: Any, order: Any, *rest: Any) -> Layout:
        self._check_warps(math.prod(warps), "BlockedLayout")
        return layout("get_blocked_layout", sizes, threads, warps, order, *rest)

    def get_slice_layout(self, dim: int, parent: Layout) -> Layout:
        return layout("get_slice_layout", dim, parent)

    def get_mma_layout(
        self, version: Any, warps: Any, cga_layout: Any, instruction: Any, *rest: Any
    ) -> Layout:
        self._check_warps(math.prod(warps), "NVMMADistributedLayout")
        return layout("get_mma_layout", version, warps, cga_layout, instruction, *rest)

    def get_dot_operand_layout(self, operand: int, parent: Layout, k_width: int) -> Layout:
        return layout("get_dot_operand_layout", operand, parent, k_width)

    def get_distributed_linear_layout(
        self, registers: Any, lanes: Any, warps: Any, blocks: Any, shape: Any
    ) -> Layout:
        self._check_warps(2 ** len(warps), "DistributedLinearLayout")
        return layout("get_distributed_linear_layout", registers, lanes, warps, blocks, shape)

    def _check_warps(self, warps: int, name: str) -> None:
        if warps != self.num_warps:
            raise ValueError(f"a {name} of {warps} warps where {self.num_warps} run")

    def get_gluon_layout_from_tensor(self, value: Registers) -> Any:
        """The layout of a result, as `_with_inferred_layout` left it."""
        return value.gluon_layout

    # Constants

    def get_int1(self, value: bool) -> Registers:
        return Registers(torch.tensor(bool(value)))

    def get_null_value(self, type_: Type) -> Registers:
        return Registers(torch.zeros(type_.shape, dtype=type_.dtype), type_.layout)

    def get_all_ones_value(self, type_: Type) -> Registers:
        ones = True if type_.dtype == torch.bool else -1
        return Registers(torch.full(type_.shape, ones, dtype=type_.dtype), type_.layout)

    def create_make_range(self, type_: Type, start: int, end: int) -> Registers:
        return Registers(torch.arange(start, end, dtype=torch.int32), type_.layout)

    def create_splat(self, type_: Type, value: Registers) -> Registers:
        return value.like(value.data.expand(type_.shape), type_.layout)

    def create_unsplat(self, value: Registers) -> Registers:
        return value.like(value.data.reshape(()))

    # Shapes

    def create_expand_dims(self, value: Registers, axis: int) -> Registers:
        return self._with_inferred_layout("create_expand_dims", value, value.data.unsqueeze(axis), axis)

    def create_broadcast(self, value: Registers, type_: Type) -> Registers:
        return value.like(value.data.expand(type_.shape), type_.layout)

    def create_reshape(self, value: Registers, shape: list[int], may_reorder: bool) -> Registers:
        result = value.data.reshape(shape)
        return self._with_inferred_layout("create_reshape", value, result, tuple(shape), may_reorder)

    def create_trans(self, value: Registers, order: list[int]) -> Registers:
        return self._with_inferred_layout("create_trans", value, value.data.permute(*order), tuple(order))

    def create_join(self, a: Registers, b: Registers) -> Registers:
        return self._with_inferred_layout("create_join", a, torch.stack([a.data, b.data], dim=-1))

    def create_split(self, value: Registers) -> tuple[Registers, Registers]:
        first, second = (
            self._with_inferred_layout("create_split", value, part) for part in value.data.unbind(-1)
        )
        return first, second

    def create_gather(self, source: Registers, index: Registers, axis: int) -> Registers:
        return source.like(source.data.gather(axis, index.data.to(torch.int64)), index.layout)

    def create_convert_layout(self, type_: Type, value: Registers) -> Registers:
        return value.like(value.data, type_.layout)

    def create_set_auto_layout(self, layout_: Layout, value: Registers) -> Registers:
        return value.like(value.data, layout_)

    def is_convert_layout_trivial(self, type_: Type, value: Registers) -> bool:
        assert value.layout is not None
        assert type_.layout is not None
        bits = 1 if type_.dtype == torch.bool else 8 * type_.dtype.itemsize
        return layouts.conversion_is_trivial(value.layout, type_.layout, type_.shape, bits)

    def _with_inferred_layout(
        self, operation: str, source: Registers, value: torch.Tensor, *arguments: Any
    ) -> Registers:
        assert source.layout is not None
        found = layouts.inferred_layout(operation, source.layout, tuple(source.data.shape), *arguments)
        result = source.like(value, found._to_ir(self))
        result.gluon_layout = found
        return result

    # Hints and messages

    def create_assert(self, condition: Registers, message: str, *mask: Any) -> None:
        if not bool(condition.data.all()):
            raise AssertionError(message)

    def create_assume(self, condition: Registers) -> None:
        self.create_assert(condition, "assume: the condition does not hold")

    def create_print(self, prefix: str, hexadecimal: bool, values: list[Registers], is_signed: Any) -> None:
        print(prefix, *(value.data for value in values))

    # What the front end does around a combine function

    def get_insertion_point(self) -> None: ...

    def get_insertion_block(self) -> None: ...

    def get_loc(self) -> None: ...

    def set_loc(self, location: None) -> None: ...

    def restore_insertion_point(self, point: None) -> None: ...

    def set_insertion_point_to_end(self, block: None) -> None: ...

    def create_block_with_parent(self, region: Fold, types: Any) -> Fold:
        return region

    def create_reduce_ret(self, *results: Registers) -> None:
        self._folded = list(results)

    create_scan_ret = create_reduce_ret

    def folded(self, make_region: Any, left: list[Registers], right: list[Registers]) -> list[Registers]:
        """A combine function applied to two lists of tensors."""
        make_region(Fold(left + right))
        return self._folded


class Fold:
    """Stands for the operation, region and block into which the front end would build a combine function."""

    def __init__(self, arguments: list[Registers]) -> None:
        self._arguments = arguments

    def get_region(self, index: int) -> Fold:
        return self

    def arg(self, index: int) -> Registers:
        return self._arguments[index]


_INTEGERS = {"int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}
_SCALARS = {
    **_INTEGERS,
    "void": torch.uint8,
    "int1": torch.bool,
    "half": torch.float16,
    "bf16": torch.bfloat16,
    "float": torch.float32,
    "double": torch.float64,
}
_FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def _wrapped(value: int, dtype: torch.dtype) -> Registers:
    bits = 8 * dtype.itemsize
    low = value & ((1 << bits) - 1)
    return Registers(torch.tensor(low - (1 << bits) if low >> (bits - 1) else low, dtype=dtype))


for _name, _dtype in _SCALARS.items():
    setattr(ShapeOperations, f"get_{_name}_ty", lambda self, dtype=_dtype: Type(dtype))
for _name, _dtype in _INTEGERS.items():
    setattr(ShapeOperations, f"get_u{_name}_ty", lambda self, dtype=_dtype: Type(dtype))
    for _prefix in ("", "u"):
        setattr(
            ShapeOperations, f"get_{_prefix}{_name}", lambda self, value, dtype=_dtype: _wrapped(value, dtype)
        )
for _name, _dtype in _FLOATS.items():
    setattr(
        ShapeOperations,
        f"get_{_name}",
        lambda self, value, dtype=_dtype: Registers(torch.tensor(value, dtype=dtype)),
    )


def integers(handles: list[Registers]) -> list[int]:
    """The values of scalars."""
    return [integer(handle) for handle in handles]
