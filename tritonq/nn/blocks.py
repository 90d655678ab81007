"""Blocks of layers that hand int8 to each other, for code that is written with them.

`convert` finds the same edges in any static model (tritonq/quantize/chain), `fuse_activations_` finds those of
dynamic layers.

    QuantizedMLP              fc2(act(fc1(x)))                       int8 between
    QuantizedGatedMLP         down(act(gate(x)) · up(x))             one kernel makes the int8 product
    QuantizedProjections      [q(x), k(x), v(x)]                     one quantization of x for all

x may be float, or a QuantizedTensor from a QuantizedNorm or another block. Between static layers the product's epilogue
computes the activation and rounds to the reader's grid. Between dynamic layers (w8a8, w4a8) the product is float, and
one more kernel computes the activation and quantizes per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tritonq.nn.epilogue_steps import ACTIVATIONS
from tritonq.nn.handover import Edge
from tritonq.nn.int8_product import activated, gated_product, int8_product, quantized_input
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.quantized_tensor import QuantizedTensor

Value = Tensor | QuantizedTensor


class QuantizedMLP(nn.Module):
    """fc2(act(fc1(x))): x [..., K] → [..., N].

    Args:
        fc1, fc2: dynamic; or static with input qparams. A static fc1 hands over int8 from now on.
        activation: "relu", "gelu", "gelu_tanh", "silu" or "none".

    Raises:
        TypeError, ValueError: the message names the layer, what was found and what is allowed. The layers are then
            unchanged.
    """

    def __init__(self, fc1: QuantizedLinear, fc2: QuantizedLinear, activation: str = "gelu") -> None:
        super().__init__()
        self.dynamic = _check("QuantizedMLP", activation, {"fc1": fc1, "fc2": fc2})
        _check_sizes("QuantizedMLP", "fc2's in_features", fc2.in_features, fc1.out_features)
        self.fc1, self.fc2, self.activation = fc1, fc2, activation
        if self.dynamic:
            return
        steps = () if activation == "none" else (activation,)
        first, second = _names({"fc1": fc1, "fc2": fc2})
        fc1.hand_over(Edge(first, steps, (second,)), _input_grid(fc2))

    def forward(self, x: Value) -> Value:
        if self.dynamic:
            return self.fc2(activated(self.fc1(x), None, self.activation, self.fc2.activation_symmetric))
        return int8_product(self.fc2, int8_product(self.fc1, x, self.activation))

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class QuantizedGatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)), the middle of Llama's layers: x [..., K] → [..., N].

    Args:
        gate, up, down: dynamic; or static with input qparams, which must be equal for gate and up.
        activation: as for QuantizedMLP; Llama's is "silu".

    Raises:
        TypeError, ValueError: as QuantizedMLP.
    """

    def __init__(
        self, gate: QuantizedLinear, up: QuantizedLinear, down: QuantizedLinear, activation: str = "silu"
    ) -> None:
        super().__init__()
        where = "QuantizedGatedMLP"
        self.dynamic = _check(where, activation, {"gate": gate, "up": up, "down": down})
        _check_sizes(where, "up's in_features", up.in_features, gate.in_features)
        _check_sizes(where, "up's out_features", up.out_features, gate.out_features)
        _check_sizes(where, "down's in_features", down.in_features, gate.out_features)
        self.gate, self.up, self.down, self.activation = gate, up, down, activation
        if self.dynamic:
            return
        _check_one_grid(where, {"gate": gate, "up": up})
        steps = ("mul",) if activation == "none" else (activation, "mul")
        one, other, reader = _names({"gate": gate, "up": up, "down": down})
        gate.hand_over(Edge(one, steps, (reader,), other), _input_grid(down))
        up.hand_over(Edge(other, ("mul",), (reader,), one, lead=False), None)

    def forward(self, x: Value) -> Value:
        if self.dynamic:
            codes = quantized_input(self.gate, x)
            gate, up = self.gate(codes), self.up(codes)
            return self.down(activated(gate, up, self.activation, self.down.activation_symmetric))
        return int8_product(self.down, gated_product(self.gate, self.up, x, self.activation))

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class QuantizedProjections(nn.Module):
    """Several layers that read one input, such as attention's q, k and v: x [..., K] → a list of [..., N].

    Args:
        layers: dynamic; or static, with equal input qparams.

    Raises:
        TypeError, ValueError: as QuantizedMLP.
    """

    def __init__(self, layers: Sequence[QuantizedLinear]) -> None:
        super().__init__()
        where = "QuantizedProjections"
        if not layers:
            raise ValueError(f"{where} needs at least one layer, found none")
        named = {f"layers[{index}]": layer for index, layer in enumerate(layers)}
        if not _check(where, "none", named):
            _check_one_grid(where, named)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Value) -> list[Value]:
        first = self.layers[0]
        assert isinstance(first, QuantizedLinear)
        codes = quantized_input(first, x)
        return [layer(codes) for layer in self.layers]


def _names(layers: dict[str, QuantizedLinear]) -> list[str]:
    """The layers' names for an edge; layers without a name get one here."""
    for name, layer in layers.items():
        layer.module_name = layer.module_name or name
    return [layer.module_name for layer in layers.values()]


def _input_grid(layer: QuantizedLinear) -> tuple[Tensor, Tensor]:
    assert layer.input_scale is not None
    assert layer.input_zero_point is not None
    return layer.input_scale, layer.input_zero_point


def _check(where: str, activation: str, layers: dict[str, QuantizedLinear]) -> bool:
    """True if all layers are dynamic, False if all are static; raises otherwise."""
    allowed = ("none", *ACTIVATIONS)
    if activation not in allowed:
        raise ValueError(f"{where}: activation must be one of {', '.join(allowed)}, found {activation!r}")
    for name, layer in layers.items():
        if not isinstance(layer, QuantizedLinear):
            raise TypeError(f"{where}: {name} must be a QuantizedLinear, found {type(layer).__name__}")
        if layer.edge is not None:
            raise ValueError(f"{where}: {name} already hands over int8: {layer.edge}")
        if layer.config.weight_only:
            raise ValueError(f"{where}: {name} must quantize its input to int8, found {layer.config.scheme}")
    dynamic = all(layer.config.dynamic for layer in layers.values())
    for name, layer in layers.items():
        if not dynamic and (not layer.config.static or layer.input_scale is None):
            raise ValueError(
                f"{where}: {name} must be w8a8_static with a calibrated input, or all layers dynamic, found "
                f"{layer.config.scheme}{' without input qparams' if layer.config.static else ''}"
            )
    if len({layer.activation_symmetric for layer in layers.values()}) > 1:
        raise ValueError(
            f"{where}: {' and '.join(layers)} must all be symmetric, or all affine, in their activations, found both"
        )
    return dynamic


def _check_sizes(where: str, what: str, found: int, allowed: int) -> None:
    if found != allowed:
        raise ValueError(f"{where}: {what} must be {allowed}, found {found}")


def _check_one_grid(where: str, layers: dict[str, QuantizedLinear]) -> None:
    (first, *others) = (_input_grid(layer) for layer in layers.values())
    if not all(torch.equal(first[0], scale) and torch.equal(first[1], zero) for scale, zero in others):
        raise ValueError(
            f"{where}: {' and '.join(layers)} must have equal input qparams, since they read one input, found others"
        )
