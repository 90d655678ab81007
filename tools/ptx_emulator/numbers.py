"""16-bit floats as bits, and operations that NumPy rounds differently from a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

#: An array of lanes, or one number for all of them.
Value = Any


def either(condition: Value, one: Value, other: Value) -> Value:
    """np.where, but returns a number if all arguments are numbers."""
    return np.where(condition, one, other)[()]  # type: ignore[call-overload]


def from_bfloat16(bits: Value) -> Value:
    """uint16 → float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float16(bits: Value) -> Value:
    """uint16 → float32."""
    return bits.view(np.float16).astype(np.float32)


def to_bfloat16(values: Value) -> Value:
    """float32 or float64 → uint16, rounded once, to nearest even."""
    if values.dtype == np.float64:
        values = _rounded_to_odd(values)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return either(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


def to_float16(values: Value) -> Value:
    """float32 or float64 → uint16."""
    return values.astype(np.float16).view(np.uint16)


def _rounded_to_odd(values: Value) -> Value:
    """float64 → float32 such that a second rounding gives what one rounding would."""
    near = np.asarray(values.astype(np.float32))
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    inexact = (back != values) & np.isfinite(values)
    bits = np.where(inexact & (np.abs(back) > np.abs(values)), bits - np.uint32(1), bits)
    return np.where(inexact, bits | np.uint32(1), bits).view(np.float32)


#: Type → (bits → float32, float32 or float64 → bits).
HALVES = {"bf16": (from_bfloat16, to_bfloat16), "f16": (from_float16, to_float16)}


def halves(bits: Value) -> tuple[Value, Value]:
    """uint32 → its lower and its upper 16 bits."""
    return bits.astype(np.uint16), (bits >> np.uint32(16)).astype(np.uint16)


def joined(low: Value, high: Value) -> Value:
    """The inverse of `halves`."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def clipped(values: Value, dtype: Any) -> Value:
    """Whole float64 numbers → an integer type, at whose ends they saturate; 0 for NaN."""
    limits = np.iinfo(dtype)
    whole = np.nan_to_num(values, nan=0.0, posinf=2.0**70, neginf=-(2.0**70))
    low, high = whole <= float(limits.min), whole >= float(limits.max)
    inside = np.where(low | high, 0.0, whole).astype(dtype)
    return either(low, dtype.type(limits.min), either(high, dtype.type(limits.max), inside))
