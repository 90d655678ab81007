"""A static Linear's output, before its epilogue is complete.

linear(x)                 DeferredLinear, expects gelu
gelu(linear(x))           → one kernel → QuantizedTensor

silu(gate(x)) * up(x)     two of them meet: one kernel with two weights → QuantizedTensor
r + linear(x)             the residual r, float or int8, joins the epilogue; the sum may be float
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tritonq.nn.deferred import Deferred
from tritonq.nn.int8_product import gated_product, int8_product, quantized_input
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.nn.rounds import state_of

if TYPE_CHECKING:
    from tritonq.nn.linear import QuantizedLinear


class DeferredLinear(Deferred):
    """`layer(source)`, to be computed when `steps` have been taken.

    Args:
        layer: static int8; holds the grid of what comes out in the end, unless it is the second factor of a product.
        source: its input, [..., K]. It is quantized at once, since the model may overwrite it before the last step
            comes; the second factor of a product leaves that to the first.
        steps: what is still to come.
        activation: what has been taken already.
        residual: likewise.
        origin: what `source` was when the layer was called, and in which state, itself if None: by it two factors know
            each other.
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
        origin: tuple[Tensor | QuantizedTensor, Any] | None = None,
    ) -> None:
        super().__init__(layer, steps, source, (*source.shape[:-1], layer.out_features))
        if origin is None:
            origin = (source, state_of(source, (), True) if "mul" in steps else None)
        self.origin = origin
        reads_codes = layer.edge is None or layer.edge.lead
        self.source = quantized_input(layer, source) if reads_codes else source
        self.activation, self.residual = activation, residual

    def _take(self, step: str, other: Any) -> DeferredLinear | QuantizedTensor | Tensor:
        if step == "mul":
            return self._times(other)
        if step == "add":
            if isinstance(other, Deferred) or not isinstance(other, (Tensor, QuantizedTensor)):
                raise self.refusal(f"add with {type(other).__name__}")
            if isinstance(other, QuantizedTensor) and other.per_token:
                raise self.refusal("add with a QuantizedTensor that has a scale per token")
            if torch.broadcast_shapes(self.shape, other.shape) != self.shape:
                raise self.refusal(f"add with shape {list(other.shape)} to {list(self.shape)}")
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
            raise self.refusal("mul")
        gate, up = (self, other) if self.layer.output_scale is not None else (other, self)
        read, state = up.origin
        if (
            gate.origin[0] is not read
            or gate.origin[1] != state
            or gate.layer.edge is None
            or up.activation != "none"
        ):
            raise self.refusal("mul")
        return gated_product(gate.layer, up.layer, gate.source, gate.activation)
