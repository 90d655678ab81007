"""The one way in which a kernel is launched."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

from .operands import Operand

#: kernel, grid, arguments, constants.
Instead = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]

_instead: Instead | None = None


class Launch:
    """kernel[grid](*arguments, **constants), with operands in the places of tensors.

    Args:
        kernel: a function decorated with `triton.jit` or `gluon.jit`.
        grid: programs along up to three axes.
        arguments: what the kernel takes at run time, in its order: operands, descriptors of operands, integers, floats,
            None.
        constants: its constexprs, and Triton's launch options (num_warps, num_stages, enable_fp_fusion …).

    Attributes:
        compiled: what Triton compiled the kernel to, once it was launched.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        self.kernel, self.grid, self.arguments, self.constants = kernel, grid, arguments, constants
        self.compiled: Any = None

    def operands(self) -> list[Operand]:
        """Those that the kernel is given, in its order; one may come twice."""
        bases = [value.base if is_descriptor(value) else value for value in self.arguments]
        return [base for base in bases if isinstance(base, Operand)]

    def start(self, tensor_of: Callable[[Operand], Any]) -> None:
        """Launch on the current device and stream."""
        arguments = tuple(
            tensor_of(value) if isinstance(value, Operand)
            else moved(value, tensor_of(value.base)) if is_descriptor(value)
            else value
            for value in self.arguments
        )  # fmt: skip
        if _instead is not None:
            _instead(self.kernel, self.grid, arguments, self.constants)
        else:
            self.compiled = self.kernel[self.grid](*arguments, **self.constants)

    def values(self) -> list[Any]:
        """Of all the kernel's parameters in order, constexprs too."""
        rest = self.kernel.params[len(self.arguments) :]
        return [*self.arguments, *(self.constants.get(p.name, p.default) for p in rest)]


def is_descriptor(value: Any) -> bool:
    """True for a descriptor of a tensor, plain Triton's or Gluon's."""
    return hasattr(value, "base") and hasattr(value, "block_shape")


def moved(descriptor: Any, base: Any) -> Any:
    """A descriptor with another base; its checks do not run again."""
    moved = copy.copy(descriptor)
    moved.base = base
    return moved


def is_replaced() -> bool:
    """True while something else gets every launch."""
    return _instead is not None


@contextlib.contextmanager
def launching(instead: Instead) -> Iterator[None]:
    """Meanwhile `instead` gets every launch of the process, and nothing is launched."""
    global _instead
    before, _instead = _instead, instead
    try:
        yield
    finally:
        _instead = before


def compile_only(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """A launch up to the launch itself: what it would need is compiled and in Triton's cache on disk."""
    kernel.warmup(*arguments, grid=grid, **constants)
