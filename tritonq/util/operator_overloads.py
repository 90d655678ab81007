"""Refuses Python's operators on classes that stand in for a tensor and support only a few of them."""

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
    """Define every Python operator that `cls` does not define; each calls `refuse`.

    They must be defined because Python looks operators up in the class, never through `__getattr__`, and has defaults
    for == and bool. `a += b` stays undefined if the class defines `a + b`, which Python then uses.

    Args:
        refuse: (self, the operator's name, its operands) → raises, or returns NotImplemented.
        more: further operators to refuse, such as "getitem".
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
