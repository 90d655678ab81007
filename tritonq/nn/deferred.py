"""A quantized Linear's output before all that its reader's kernel computes has been called for.

A layer whose output is quantized behind an activation cannot return codes at once: in `gelu(linear(x))` the grid is
that of gelu's output. So it returns a `Deferred`, which takes the calls that its layer was converted to expect. The
last one finishes it (epilogue.py): one kernel computes codes. The model's own code makes these calls; nothing in it is
rewritten. A call that is not expected is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tritonq.nn.epilogue_steps import step_of
from tritonq.nn.packed_weight import PackedWeight
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.util.operator_overloads import refuse_operators


class Finish(Protocol):
    """What computes a `Deferred` when its last step has come.

    Attributes:
        advice: what to do about a call that was not expected.
        takes_residual: whether a sum may be among the steps; a QuantizedTensor then leaves it to the Deferred.
    """

    advice: str
    takes_residual: bool

    def __call__(self, deferred: Deferred, taken: Mapping[str, Any]) -> Any:
        """The result. `deferred` expects the last step; `taken` has all of them: {step: what it multiplies or adds}."""


class Deferred:
    """`layer`'s output, of which `steps` are still to come.

    Args:
        like: what has the output's dtype and device.
        shape: of the output.
        finish: computes the result.
        taken: the steps that have come: {step: what it adds, or None}.
    """

    def __init__(
        self,
        layer: PackedWeight,
        steps: tuple[str, ...],
        like: Tensor | QuantizedTensor | Deferred,
        shape: tuple[int, ...],
        finish: Finish,
        taken: Mapping[str, Any] | None = None,
    ) -> None:
        self.layer, self.steps, self.finish, self.taken = layer, steps, finish, taken or {}
        self.shape = torch.Size(shape)
        self.dtype: torch.dtype = like.dtype
        self.device: torch.device = like.device
        self.takes_residual = finish.takes_residual

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
        if step == "add":
            self._check_residual(other)
        taken = {**self.taken, step: other}
        if len(self.steps) == 1:
            return self.finish(self, taken)
        return Deferred(self.layer, self.steps[1:], self, self.shape, self.finish, taken)

    def _check_residual(self, other: Any) -> None:
        if not isinstance(other, (Tensor, QuantizedTensor)):
            raise self.refusal(f"add with {type(other).__name__}")
        if isinstance(other, QuantizedTensor) and other.per_token:
            raise self.refusal("add with a QuantizedTensor that has a scale per token")
        if torch.broadcast_shapes(self.shape, other.shape) != self.shape:
            raise self.refusal(f"add with shape {list(other.shape)} to {list(self.shape)}")

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
        return f"Deferred({self.layer.module_name!r}, shape={tuple(self.shape)}, expects={self.steps[0]})"

    def refusal(self, met: str) -> TypeError:
        """The error of a call that was not expected."""
        return TypeError(self._message(met))

    def _message(self, met: str) -> str:
        return (
            f"QuantizedLinear {self.layer.module_name!r} was converted to hand over int8 through "
            f"{' and '.join(self.steps)}, found {met}: {self.finish.advice}"
        )


def _is_training(args: tuple[Any, ...], words: dict[str, Any]) -> bool:
    """What a call of functional.dropout(input, p, training, inplace) says; with p = 0 training changes nothing."""
    p = args[1] if len(args) > 1 else words.get("p", 0.5)
    return bool(args[2] if len(args) > 2 else words.get("training", True)) and p > 0


def _refuse(self: Deferred, name: str, operands: tuple[Any, ...]) -> Any:
    raise self.refusal(f"the operator {name}")


refuse_operators(Deferred, _refuse, more=("getitem", "iter"))
