"""`Deferred`: a quantized Linear's output that waits for the calls after it, to compute them in the same kernel.

In `gelu(linear(x))`, the grid is that of gelu's output, so `linear` cannot return codes yet. It returns a `Deferred`,
which records the calls that its layer was converted to expect. The last of them runs one kernel, which computes the
codes (epilogue.py). The model's code makes these calls and is not rewritten. An unexpected call raises a TypeError that
names it.
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
    """Computes a `Deferred` after its last step.

    Attributes:
        advice: what the user can do about an unexpected call.
        takes_residual: whether a sum may be among the steps. Then a QuantizedTensor leaves the sum to the Deferred.
    """

    advice: str
    takes_residual: bool

    def __call__(self, deferred: Deferred, taken: Mapping[str, Any]) -> Any:
        """Return the result. `deferred` expects the last step; `taken` holds all: {step: the other operand or None}."""


class Deferred:
    """`layer`'s output, which still expects `steps`.

    Args:
        like: has the output's dtype and device.
        shape: of the output.
        finish: computes the result.
        taken: the steps so far: {step: the other operand or None}.
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
        """Record a step; the last one returns the result. `other` is the operand that is multiplied or added.

        Raises:
            TypeError: the layer expects another step, or `other` cannot be used.
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
        """The error for an unexpected call."""
        return TypeError(self._message(met))

    def _message(self, met: str) -> str:
        return (
            f"QuantizedLinear {self.layer.module_name!r} was converted to hand over int8 through "
            f"{' and '.join(self.steps)}, found {met}: {self.finish.advice}"
        )


def _is_training(args: tuple[Any, ...], words: dict[str, Any]) -> bool:
    """Whether a call of functional.dropout(input, p, training, inplace) drops anything: in training, with p > 0."""
    p = args[1] if len(args) > 1 else words.get("p", 0.5)
    return bool(args[2] if len(args) > 2 else words.get("training", True)) and p > 0


def _refuse(self: Deferred, name: str, operands: tuple[Any, ...]) -> Any:
    raise self.refusal(f"the operator {name}")


refuse_operators(Deferred, _refuse, more=("getitem", "iter"))
