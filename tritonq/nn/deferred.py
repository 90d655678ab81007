"""A quantized Linear's output before all that its reader's kernel computes has been called for.

A layer whose output is quantized behind an activation cannot return codes at once: in `gelu(linear(x))` the grid is
that of gelu's output. So it returns an object that takes the calls which its layer was converted to expect, and
computes codes when the last has come. The model's own code makes these calls; nothing in it is rewritten. A call that
is not expected is refused by name.

    deferred_linear.py        static layers: nothing is computed before the last step, then all of it in one kernel
    deferred_activation.py    dynamic layers: the product is there, in float; one kernel activates and quantizes it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from tritonq.nn.epilogue_steps import step_of
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.util.operator_overloads import refuse_operators

if TYPE_CHECKING:
    from tritonq.nn.linear import QuantizedLinear


class Deferred:
    """`layer`'s output, of which `steps` are still to come.

    Args:
        like: what has the output's dtype and device.
        shape: of the output.
    """

    #: What to do about a call that was not expected.
    advice = "calibrate with data that takes the same path through the model, or convert(…, chain=False)"

    def __init__(
        self,
        layer: QuantizedLinear,
        steps: tuple[str, ...],
        like: Tensor | QuantizedTensor,
        shape: tuple[int, ...],
    ) -> None:
        self.layer, self.steps = layer, steps
        self.shape, self.dtype, self.device = torch.Size(shape), like.dtype, like.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self.shape.numel()

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, step: str, other: Any = None) -> Any:
        """One more step; after the last the result. `other` is what is multiplied or added.

        Raises:
            TypeError: another step is to come, or `other` cannot be taken.
        """
        if self.steps[0] != step:
            raise self.refusal(step)
        return self._take(step, other)

    def _take(self, step: str, other: Any) -> Any:
        raise NotImplementedError

    def __mul__(self, other: Any) -> Any:
        return self.take("mul", other)

    def __rmul__(self, other: Any) -> Any:
        return self.take("mul", other)

    def __add__(self, other: Any) -> Any:
        return self.take("add", other)

    def __radd__(self, other: Any) -> Any:
        return self.take("add", other)

    def relu(self) -> Any:
        return self.take("relu")

    __hash__ = object.__hash__

    relu_ = relu
    mul = __mul__
    add = __add__

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        words = kwargs or {}
        step = step_of(func, args, words)
        operands = [*args, *words.values()]
        this = next(operand for operand in operands if isinstance(operand, Deferred))
        if func is functional.dropout and not _is_training(args, words):
            return this
        if step is None:
            raise this.refusal(getattr(func, "__name__", str(func)))
        return this.take(step, next((operand for operand in args if operand is not this), None))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(self._message(f"attribute {name!r}"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.layer.module_name!r}, shape={tuple(self.shape)}, expects={self.steps[0]})"

    def refusal(self, met: str) -> TypeError:
        """The error of a call that was not expected."""
        return TypeError(self._message(met))

    def _message(self, met: str) -> str:
        return (
            f"QuantizedLinear {self.layer.module_name!r} was converted to hand over int8 through "
            f"{' and '.join(self.steps)}, found {met}: {self.advice}"
        )


def _is_training(args: tuple[Any, ...], words: dict[str, Any]) -> bool:
    """What a call of functional.dropout(input, p, training, inplace) says; with p = 0 training changes nothing."""
    p = args[1] if len(args) > 1 else words.get("p", 0.5)
    return bool(args[2] if len(args) > 2 else words.get("training", True)) and p > 0


def _refuse(self: Deferred, name: str, operands: tuple[Any, ...]) -> Any:
    raise self.refusal(f"the operator {name}")


refuse_operators(Deferred, _refuse, more=("getitem", "iter"))
