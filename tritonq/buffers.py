"""Buffers that move between devices but never change dtype.

`model.half()` and `model.to(torch.bfloat16)` cast every floating-point buffer they find. A scale that was
calibrated in float32, or the smallest value an observer has seen, must survive that untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def apply_keeping_dtypes(
    module: Module, apply: Callable[..., Any], fn: Callable[[Tensor], Tensor], recurse: bool = True
) -> Module:
    """What a module's `_apply` does to keep its own buffers' dtypes: `apply` is its super()._apply."""
    before = dict(module._buffers)
    apply(fn, recurse)
    for name, buffer in before.items():
        moved = module._buffers[name]
        if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
            module._buffers[name] = buffer.to(moved.device)
    return module


class FixedDtypeModule(nn.Module):
    """An nn.Module whose own buffers keep their dtype under `.half()`, `.to(dtype)` and the like."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedDtypeModule:
        return apply_keeping_dtypes(self, super()._apply, fn, recurse)
