"""The two ways to compute a Deferred in one kernel.

StaticEpilogue       the product runs last; its epilogue computes activation, residual and codes
    gelu(linear(x))              → QuantizedTensor
    silu(gate(x)) * up(x)        two Deferreds: one kernel with two weights → QuantizedTensor
    relu(r + linear(x))          the residual r is float or int8; the sum may stay float
DynamicActivation    the product ran first, in float
    gelu(fc1(x))                 one kernel activates and quantizes per token → QuantizedTensor
    silu(gate(x)) * up(x)        one kernel activates, multiplies and quantizes per token → QuantizedTensor
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tritonq.nn.deferred import Deferred
from tritonq.nn.epilogue_steps import ACTIVATIONS
from tritonq.nn.handover import Edge
from tritonq.nn.input_version import input_version
from tritonq.nn.int8_product import activated, gated_product, int8_product, quantized_input
from tritonq.nn.packed_weight import PackedWeight
from tritonq.nn.quantized_tensor import QuantizedTensor


class StaticEpilogue:
    """`layer(x)` and the steps after it.

    Args:
        layer: static int8. It holds the grid of the result, unless it is the second factor of a product.
        x: its input, [..., K].
        edge: the steps. The second factor of a product does not lead. All other layers quantize x at once, because the
            model may overwrite x before the last step.
    """

    advice = "calibrate with data that takes the same path through the model, or convert(…, chain=False)"
    takes_residual = True

    def __init__(self, layer: PackedWeight, x: Tensor | QuantizedTensor, edge: Edge) -> None:
        self.layer, self.read = layer, x
        self.version = input_version(x) if "mul" in edge.steps else None
        self.source = quantized_input(layer, x) if edge.lead else x

    def __call__(self, deferred: Deferred, taken: Mapping[str, Any]) -> QuantizedTensor | Tensor:
        if "mul" in taken:
            return self._times(deferred, taken["mul"])
        return int8_product(self.layer, self.source, _activation(taken), taken.get("add"))

    def _times(self, deferred: Deferred, other: Any) -> QuantizedTensor:
        if (
            not isinstance(other, Deferred)
            or not isinstance(other.finish, StaticEpilogue)
            or other.steps != ("mul",)
        ):
            raise deferred.refusal("mul")
        factors = [(self, deferred.taken), (other.finish, other.taken)]
        (gate, before), (up, between) = factors if self.layer.output_scale is not None else factors[::-1]
        if (
            gate.read is not up.read
            or gate.version != up.version
            or gate.layer.output_scale is None
            or between
        ):
            raise deferred.refusal("mul")
        return gated_product(gate.layer, up.layer, gate.source, _activation(before))


class DynamicActivation:
    """The activation of a dynamic layer's output.

    Args:
        layer: the layer. The layers that read the result quantize their activations as it does.
        value: its output, float [..., N].
    """

    advice = "give fuse_activations_ inputs that take the same path through the model"
    takes_residual = False

    def __init__(self, layer: PackedWeight, value: Tensor) -> None:
        self.layer, self.value = layer, value

    def __call__(self, deferred: Deferred, taken: Mapping[str, Any]) -> QuantizedTensor:
        other = taken.get("mul")
        if "mul" in taken and not (
            isinstance(other, Tensor) and other.shape == deferred.shape and other.is_floating_point()
        ):
            raise deferred.refusal("mul with anything but a float tensor of its shape")
        return activated(self.value, other, _activation(taken), self.layer.activation_symmetric)


def _activation(taken: Mapping[str, Any]) -> str:
    return next((step for step in taken if step in ACTIVATIONS), "none")
