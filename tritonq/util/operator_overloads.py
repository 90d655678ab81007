"""Python's operators for classes that stand in for a tensor and have a meaning for few of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_BINARY = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "divmod",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
_UNARY = ("neg", "pos", "abs", "round", "invert", "bool", "float", "int", "index")
_OTHER = ("eq", "ne", "lt", "le", "gt", "ge", "contains", "setitem", "array")


def refuse_operators(
    cls: type, refuse: Callable[[Any, str, tuple[Any, ...]], Any], more: tuple[str, ...] = ()
) -> None:
    """Give a class all of Python's operators that it has no meaning for, but for `a += b` where it has a + b.

    Python looks them up in the class, never in `__getattr__`, and has a meaning of its own for == and bool.

    Args:
        refuse: (self, the operator's name, its operands) → raises, or returns NotImplemented.
        more: others to refuse, such as "getitem".
    """

    def refused(name: str) -> Callable[..., Any]:
        def operator(self: Any, *operands: Any) -> Any:
            return refuse(self, name, operands)

        operator.__name__ = name
        return operator

    own = frozenset(vars(cls))
    names = [f"{prefix}{name}" for name in _BINARY for prefix in ("", "r")]
    names += [f"i{name}" for name in _BINARY if f"__{name}__" not in own]
    for name in (*names, *_UNARY, *_OTHER, *more):
        if f"__{name}__" not in own:
            setattr(cls, f"__{name}__", refused(f"__{name}__"))
