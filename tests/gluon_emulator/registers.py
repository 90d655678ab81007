"""Tensors in registers: logical values, whatever their layout, and the operations on each element.

Integers are held signed, as in the compiler's representation: an operation, not a type, is unsigned. bfloat16 and
float16 are rounded after each operation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import UnfinishedError
from .layouts import Layout


class Pending(Protocol):
    """What a result waits for."""

    def is_over(self) -> bool:
        """Whether its issuer has waited for it."""

    def __str__(self) -> str: ...


@dataclasses.dataclass
class Type:
    """A type of the compiler's representation: of a scalar, or with a shape; pointers know what they point to."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    layout: Layout | None = None
    pointee: torch.dtype | None = None


@dataclasses.dataclass(eq=False)
class Registers:
    """A value: torch data, its layout, what it points to, and what must be waited for before it is read."""

    value: Tensor
    layout: Layout | None = None
    pointee: torch.dtype | None = None
    pending: Pending | None = None
    gluon_layout: Any = None  # the layout as the front end knows it, where it has just been inferred

    @property
    def data(self) -> Tensor:
        """The value, which must be there."""
        if self.pending is not None and not self.pending.is_over():
            raise UnfinishedError(f"the result of {self.pending} is used before a wait covers it")
        return self.value

    def like(self, value: Tensor, layout: Layout | None = None) -> Registers:
        """Another value of the same kind; the same layout unless another is given."""
        return Registers(value, layout or self.layout, self.pointee)


def integer(handle: Registers) -> int:
    """The value of a scalar."""
    return int(handle.data)


def _unsigned(x: Tensor) -> Tensor:
    """As a wider signed integer, or, of 64 bits, unchanged."""
    bits = 8 * x.dtype.itemsize
    return x.to(torch.int64) if bits == 64 or x.dtype == torch.bool else x.to(torch.int64) & ((1 << bits) - 1)


def _flipped(x: Tensor) -> Tensor:
    """Sign bit flipped: unsigned order becomes signed order."""
    return x if x.dtype == torch.bool else x ^ torch.iinfo(x.dtype).min


def _on_unsigned(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: operation(_unsigned(a), _unsigned(b)).to(a.dtype)


def _in_unsigned_order(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def compare(a: Tensor, b: Tensor) -> Tensor:
        result = operation(_flipped(a), _flipped(b))
        return result if result.dtype == torch.bool else _flipped(result)

    return compare


def _truncated_division(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="trunc")


def _logical_shift_right(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.int64:
        return torch.where(b == 0, a, (a >> b) & ~(torch.full_like(a, -1) << (64 - b)))
    return (_unsigned(a) >> b.to(torch.int64)).to(a.dtype)


def _high_half(a: Tensor, b: Tensor) -> Tensor:
    """The upper 32 bits of an unsigned product of 32-bit integers."""
    low, high = _unsigned(b) & 0xFFFF, _unsigned(b) >> 16
    middle = ((_unsigned(a) * low) >> 16) + _unsigned(a) * high
    return (middle >> 16).to(a.dtype)


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "create_add": torch.add,
    "create_sub": torch.sub,
    "create_mul": torch.mul,
    "create_sdiv": _truncated_division,
    "create_udiv": _on_unsigned(_truncated_division),
    "create_srem": torch.fmod,
    "create_urem": _on_unsigned(torch.fmod),
    "create_shl": torch.bitwise_left_shift,
    "create_ashr": torch.bitwise_right_shift,
    "create_lshr": _logical_shift_right,
    "create_umulhi": _high_half,
    "create_and": torch.bitwise_and,
    "create_or": torch.bitwise_or,
    "create_xor": torch.bitwise_xor,
    "create_minsi": torch.minimum,
    "create_maxsi": torch.maximum,
    "create_minui": _in_unsigned_order(torch.minimum),
    "create_maxui": _in_unsigned_order(torch.maximum),
    "create_icmpEQ": torch.eq,
    "create_icmpNE": torch.ne,
    "create_icmpSLT": torch.lt,
    "create_icmpSLE": torch.le,
    "create_icmpSGT": torch.gt,
    "create_icmpSGE": torch.ge,
    "create_icmpULT": _in_unsigned_order(torch.lt),
    "create_icmpULE": _in_unsigned_order(torch.le),
    "create_icmpUGT": _in_unsigned_order(torch.gt),
    "create_icmpUGE": _in_unsigned_order(torch.ge),
    "create_fadd": torch.add,
    "create_fsub": torch.sub,
    "create_fmul": torch.mul,
    "create_fdiv": torch.div,
    "create_precise_divf": torch.div,
    "create_approx_divf": torch.div,
    "create_frem": torch.fmod,
    "create_minimumf": torch.minimum,
    "create_maximumf": torch.maximum,
    "create_minnumf": torch.fmin,
    "create_maxnumf": torch.fmax,
    "create_fcmpOEQ": torch.eq,
    "create_fcmpUNE": torch.ne,
    "create_fcmpOLT": torch.lt,
    "create_fcmpOLE": torch.le,
    "create_fcmpOGT": torch.gt,
    "create_fcmpOGE": torch.ge,
}

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "create_fneg": torch.neg,
    "create_fabs": torch.abs,
    "create_iabs": torch.abs,
    "create_floor": torch.floor,
    "create_ceil": torch.ceil,
    "create_sqrt": torch.sqrt,
    "create_precise_sqrt": torch.sqrt,
    "create_rsqrt": torch.rsqrt,
    "create_exp": torch.exp,
    "create_exp2": torch.exp2,
    "create_log": torch.log,
    "create_log2": torch.log2,
    "create_sin": torch.sin,
    "create_cos": torch.cos,
    "create_erf": torch.erf,
}


class ElementwiseOperations:
    """The part of the builder that works element by element."""

    def create_fma(self, a: Registers, b: Registers, c: Registers) -> Registers:
        exact = a.data.double() * b.data.double() + c.data.double()
        return a.like(exact.to(c.data.dtype))

    def create_clampf(self, x: Registers, low: Registers, high: Registers, propagates_nan: Any) -> Registers:
        return x.like(torch.clamp(x.data, low.data, high.data))

    def create_select(self, condition: Registers, a: Registers, b: Registers) -> Registers:
        return a.like(torch.where(condition.data, a.data, b.data))

    def create_int_cast(self, x: Registers, type_: Type, is_signed: bool) -> Registers:
        data = x.data
        wider = type_.dtype.itemsize > data.dtype.itemsize
        return x.like((data if is_signed or not wider else _unsigned(data)).to(type_.dtype))

    def create_si_to_fp(self, x: Registers, type_: Type) -> Registers:
        return x.like(x.data.to(type_.dtype))

    def create_ui_to_fp(self, x: Registers, type_: Type) -> Registers:
        return x.like(_unsigned(x.data).to(type_.dtype))

    def create_fp_to_si(self, x: Registers, type_: Type) -> Registers:
        """Toward zero into 32 (or 64) bits, where it saturates; then wrapped to what is narrower."""
        bound = 2.0**63 if type_.dtype == torch.int64 else 2.0**31
        wide = torch.nan_to_num(x.data.double(), nan=0.0).clamp(
            -bound, bound - (1024 if bound > 2**32 else 1)
        )
        return x.like(wide.trunc().to(torch.int64).to(type_.dtype))

    create_fp_to_ui = create_fp_to_si

    def create_fp_ext(self, x: Registers, type_: Type) -> Registers:
        return x.like(x.data.to(type_.dtype))

    create_fp_trunc = create_fp_ext

    def create_fp_to_fp(self, x: Registers, type_: Type, rounding: Any) -> Registers:
        if "RTZ" in str(rounding):
            raise NotImplementedError("the Gluon emulator rounds conversions of floats to nearest only")
        return x.like(x.data.to(type_.dtype))

    def create_bitcast(self, x: Registers, type_: Type) -> Registers:
        if type_.pointee is not None:
            return Registers(x.data, x.layout, type_.pointee)
        return Registers(x.data.view(type_.dtype), x.layout)

    def create_int_to_ptr(self, x: Registers, type_: Type) -> Registers:
        return Registers(x.data.to(torch.int64), x.layout, type_.pointee)

    def create_ptr_to_int(self, x: Registers, type_: Type) -> Registers:
        return Registers(x.data.to(type_.dtype), x.layout)

    def create_addptr(self, pointer: Registers, offset: Registers) -> Registers:
        assert pointer.pointee is not None
        return pointer.like(pointer.data + offset.data.to(torch.int64) * pointer.pointee.itemsize)


def _binary(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Registers]:
    return lambda self, a, b: Registers(operation(a.data, b.data), a.layout or b.layout)


def _unary(operation: Callable[[Tensor], Tensor]) -> Callable[..., Registers]:
    return lambda self, x: Registers(operation(x.data), x.layout)


for _name, _two in BINARY.items():
    setattr(ElementwiseOperations, _name, _binary(_two))
for _name, _one in UNARY.items():
    setattr(ElementwiseOperations, _name, _unary(_one))
