"""A dynamic Linear's output whose activation is quantized as it is computed, for the layer that reads it.

    gelu(fc1(x))              → one kernel activates and quantizes per token → QuantizedTensor
    silu(gate(x)) * up(x)     → one kernel activates, multiplies and quantizes per token → QuantizedTensor

The product itself has been computed, in float, whatever kernel does so best; what is saved is the activation's pass and
that of quantizing. The second factor of a product is any float tensor of its shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from tritonq.nn.deferred import Deferred
from tritonq.nn.int8_product import activated
from tritonq.nn.quantized_tensor import QuantizedTensor

if TYPE_CHECKING:
    from tritonq.nn.linear import QuantizedLinear


class DeferredActivation(Deferred):
    """`value`, to be activated, multiplied and quantized when `steps` have been taken.

    Args:
        layer: dynamic; its activations are quantized as those of the layers that will read the result.
        value: its output, float [..., N].
        steps: what is still to come.
        activation: what has been taken already.
    """

    advice = "give fuse_activations_ inputs that take the same path through the model"

    def __init__(
        self, layer: QuantizedLinear, value: Tensor, steps: tuple[str, ...], activation: str = "none"
    ) -> None:
        super().__init__(layer, steps, value, value.shape)
        self.value, self.activation = value, activation

    def _take(self, step: str, other: Any) -> DeferredActivation | QuantizedTensor:
        symmetric = self.layer.activation_symmetric
        if step == "mul":
            if not isinstance(other, Tensor) or other.shape != self.shape or not other.is_floating_point():
                raise self.refusal("mul with anything but a float tensor of its shape")
            return activated(self.value, other, self.activation, symmetric)
        if len(self.steps) > 1:
            return DeferredActivation(self.layer, self.value, self.steps[1:], step)
        return activated(self.value, None, step, symmetric)
