"""A quantized Linear's output before its epilogue is complete.

A layer that hands over int8 through an activation cannot return codes at once: in `gelu(linear(x))` the grid is that of
gelu's output. So it returns a `DeferredLinear`, which remembers layer and input, takes the calls that its layer was
converted to expect, and computes all of it in one kernel when the last has come:

    linear(x)                 DeferredLinear, expects gelu
    gelu(linear(x))           → one kernel → QuantizedTensor

    silu(gate(x)) * up(x)     two of them meet: one kernel with two weights → QuantizedTensor
    r + linear(x)             the residual r, float or int8, joins the epilogue; the sum may be float

The model's own code makes these calls; nothing in it is rewritten. A call that is not expected is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from tritonq.chaining.steps import step_of
from tritonq.nn.int8_product import gated_product, int8_product, quantized_input
from tritonq.tensor import QuantizedTensor, refuse_operators

if TYPE_CHECKING:
    from tritonq.nn.linear import QuantizedLinear


class DeferredLinear:
    """`layer(source)`, to be computed when `steps` have been taken.

    Args:
        layer: static int8; holds the grid of what comes out in the end, unless it is the second factor of a product.
        source: its input, [..., K]. It is quantized at once, since the model may overwrite it before the last step
            comes; the second factor of a product leaves that to the first.
        steps: what is still to come.
        activation: what has been taken already.
        residual: likewise.
        origin: what `source` was when the layer was called, itself if None: by it two factors know each other.
    """

    #: QuantizedTensor leaves a sum with one of these to it.
    takes_residual = True

    def __init__(
        self,
        layer: QuantizedLinear,
        source: Tensor | QuantizedTensor,
        steps: tuple[str, ...],
        activation: str = "none",
        residual: Tensor | QuantizedTensor | None = None,
        origin: Tensor | QuantizedTensor | None = None,
    ) -> None:
        self.layer, self.steps = layer, steps
        self.origin = source if origin is None else origin
        reads_codes = layer.edge is None or layer.edge.lead
        self.source = quantized_input(layer, source) if reads_codes else source
        self.activation, self.residual = activation, residual

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.source.shape[:-1], self.layer.out_features))

    @property
    def ndim(self) -> int:
        return len(self.source.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype the values stand for."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        return self.source.device

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self.shape.numel()

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, step: str, other: Any = None) -> DeferredLinear | QuantizedTensor | Tensor:
        """One more step; after the last the result. `other` is what is multiplied or added."""
        if self.steps[0] != step:
            raise self._refusal(step)
        if step == "mul":
            return self._times(other)
        if step == "add":
            if isinstance(other, DeferredLinear) or not isinstance(other, (Tensor, QuantizedTensor)):
                raise self._refusal(f"add with {type(other).__name__}")
            if torch.broadcast_shapes(self.shape, other.shape) != self.shape:
                raise self._refusal(f"add with shape {list(other.shape)} to {list(self.shape)}")
            taken = self._advanced(self.activation, other)
        else:
            taken = self._advanced(step, self.residual)
        if taken.steps:
            return taken
        return int8_product(taken.layer, taken.source, taken.activation, taken.residual)

    def _advanced(self, activation: str, residual: Tensor | QuantizedTensor | None) -> DeferredLinear:
        return DeferredLinear(self.layer, self.source, self.steps[1:], activation, residual, self.origin)

    def _times(self, other: Any) -> QuantizedTensor:
        if not isinstance(other, DeferredLinear) or other.steps != ("mul",) or self.steps != ("mul",):
            raise self._refusal("mul")
        gate, up = (self, other) if self.layer.output_scale is not None else (other, self)
        if gate.origin is not up.origin or gate.layer.edge is None or up.activation != "none":
            raise self._refusal("mul")
        return gated_product(gate.layer, up.layer, gate.source, gate.activation)

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
        this = next(operand for operand in operands if isinstance(operand, DeferredLinear))
        if func is functional.dropout and not _is_training(args, words):
            return this
        if step is None:
            raise this._refusal(getattr(func, "__name__", str(func)))
        return this.take(step, next((operand for operand in args if operand is not this), None))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(self._message(f"attribute {name!r}"))

    def __repr__(self) -> str:
        return (
            f"DeferredLinear({self.layer.module_name!r}, shape={tuple(self.shape)}, expects={self.steps[0]})"
        )

    def _refusal(self, met: str) -> TypeError:
        return TypeError(self._message(met))

    def _message(self, met: str) -> str:
        return (
            f"QuantizedLinear {self.layer.module_name!r} was converted to hand over int8 through "
            f"{' and '.join(self.steps)}, found {met}: calibrate with data that takes the same path through the model, "
            "or convert(…, chain=False)"
        )


def _is_training(args: tuple[Any, ...], words: dict[str, Any]) -> bool:
    """What a call of functional.dropout(input, p, training, inplace) says; with p = 0 training changes nothing."""
    p = args[1] if len(args) > 1 else words.get("p", 0.5)
    return bool(args[2] if len(args) > 2 else words.get("training", True)) and p > 0


def _refuse(self: DeferredLinear, name: str, operands: tuple[Any, ...]) -> Any:
    raise self._refusal(f"the operator {name}")


refuse_operators(DeferredLinear, _refuse, more=("getitem", "iter"))
