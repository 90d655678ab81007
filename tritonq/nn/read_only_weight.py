"""The dequantized weight of a quantized layer, as a tensor that can be read, but raises if it is written to.

Hosts write into `layer.weight` to merge adapters (`layer.weight.data += delta`). The weight is computed at each access,
so the write would be lost silently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Methods that are named like in-place operators but do not write.
_READS = {"requires_grad_", "__index__", "__int__", "__invert__"}


class ReadOnlyWeight(Tensor):
    """See the module's docstring. Results computed from it are ordinary tensors."""

    #: transformers initializes no tensor that has this.
    _is_hf_initialized = True

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        words = kwargs or {}
        target = next(iter((*args, *words.values())), None) if _writes(name) else words.get("out")
        if isinstance(target, cls):
            # Not a TypeError: torch would then compute `weight + delta` for `weight += delta`.
            raise ValueError(
                f"the weight of a quantized layer is dequantized at each access, and a write to it ({name}) would "
                "vanish: merge adapters into float layers, or quantize the float weight again"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **words)
        own = [value for value in args if isinstance(value, cls)]
        if type(result) is Tensor and any(_share_memory(result, value) for value in own):
            return result.as_subclass(cls)  # a view, or `.data`
        return result


def read_only(weight: Tensor) -> Tensor:
    """The tensor as a ReadOnlyWeight; unchanged in a trace, where user code does not write to it."""
    return weight if torch.compiler.is_compiling() else weight.as_subclass(ReadOnlyWeight)


def _writes(name: str) -> bool:
    """True if a torch function of this name changes its first argument: add_, __iadd__, __setitem__, `.data = …`."""
    in_place = name.endswith("_") and not name.endswith("__")
    operator = name.startswith("__i") and name.endswith("__")
    return (in_place or operator or name in ("__setitem__", "__set__")) and name not in _READS


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata
