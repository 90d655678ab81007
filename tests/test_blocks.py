"""Blocks of layers that hand int8 to each other."""

from __future__ import annotations

import re
from typing import Any, cast
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tritonq
from tests.test_static_flow import relative_error
from tritonq.nn import QuantizedGatedMLP, QuantizedLinear, QuantizedMLP, QuantizedProjections

ACTIVATIONS: dict[str, Any] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


class Layers(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.fc1, self.up, self.fc2 = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 8)
        self.activation, self.gated = ACTIVATIONS[activation], False

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.fc1(x))
        return self.fc2(h * self.up(x) if self.gated else h)


def static(activation: str = "gelu", gated: bool = True, config: Any = "w8a8_static") -> tuple[Any, Tensor]:
    """(layers that are static and not chained, what calibrated them)."""
    layers, x = Layers(activation).eval(), torch.randn(3, 5, 16)
    layers.gated = gated
    ignore = () if gated else ("up",)
    return tritonq.quantize_(layers, config, calibration=[x], chain=False, ignore=ignore), x


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_blocks_compute_what_their_layers_do(activation):
    layers, x = static(activation, gated=False)
    expected = layers(x)
    block = QuantizedMLP(layers.fc1, layers.fc2, activation)
    assert relative_error(block(x), expected) < 2e-3
    layers, x = static(activation)
    expected = layers(x)
    gated = QuantizedGatedMLP(layers.fc1, layers.up, layers.fc2, activation)
    assert relative_error(gated(x), expected) < 2e-3
    assert re.search(f"activation={activation}", repr(gated))
    with torch.no_grad():
        torch._dynamo.reset()
        assert torch.equal(torch.compile(gated, fullgraph=True, backend="aot_eager")(x), gated(x))


def test_projections_quantize_their_input_once(monkeypatch):
    layers, x = static()
    expected = [layers.fc1(x), layers.up(x)]
    projections = QuantizedProjections([layers.fc1, layers.up])
    quantize = mock.Mock(wraps=tritonq.ops.quantize_per_tensor)
    monkeypatch.setattr(tritonq.ops, "quantize_per_tensor", quantize)
    found = projections(x)
    assert quantize.call_count == 1
    assert all(map(torch.equal, found, expected))


def test_blocks_take_what_a_norm_hands_over():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layers = nn.RMSNorm(16), Layers("silu")
            self.layers.gated = True

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(self.norm(x))

    x = torch.randn(3, 5, 16)
    model: Any = tritonq.quantize_(Block(), "w8a8_static", calibration=[x])
    layers, expected = model.layers, model(x)
    for layer in (layers.fc1, layers.up):
        layer.hand_over(None, None)
    block = QuantizedGatedMLP(layers.fc1, layers.up, layers.fc2, "silu")
    assert torch.equal(block(model.norm(x)), expected)


def test_blocks_are_saved_and_loaded(tmp_path):
    layers, x = static("silu")
    model = nn.Sequential(QuantizedGatedMLP(layers.fc1, layers.up, layers.fc2))
    tritonq.save(model, tmp_path)
    other, _ = static("silu")
    empty = nn.Sequential(QuantizedGatedMLP(other.fc1, other.up, other.fc2))
    assert torch.equal(tritonq.load(tmp_path, empty)(x), model(x))


def linear(symmetric: bool = False, features: int = 16) -> QuantizedLinear:
    model = nn.Sequential(nn.Linear(features, 16))
    config = tritonq.W8A8Static(activation_symmetric=symmetric)
    tritonq.quantize_(model, config, calibration=[torch.ones(1, features)])
    layer = model[0]
    assert isinstance(layer, QuantizedLinear)
    return layer


def dynamic() -> Any:
    return tritonq.quantize_(nn.Sequential(nn.Linear(16, 16)), "w8a8")[0]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: QuantizedMLP(linear(), linear(), "tanh"),
            ValueError,
            "activation must be one of none, relu,",
        ),
        (
            lambda: QuantizedMLP(linear(), cast(Any, nn.Linear(16, 16))),
            TypeError,
            "fc2 must be a QuantizedLinear, found Linear",
        ),
        (
            lambda: QuantizedMLP(dynamic(), linear()),
            ValueError,
            "fc1 must be w8a8_static with a calibrated input, or all layers dynamic, found w8a8",
        ),
        (
            lambda: QuantizedMLP(linear(), linear(features=8)),
            ValueError,
            "fc2's in_features must be 16, found 8",
        ),
        (
            lambda: QuantizedMLP(linear(), linear(True)),
            ValueError,
            "fc1 and fc2 must all be symmetric, or all affine",
        ),
        (lambda: QuantizedMLP(static()[0].fc1, linear(True)), ValueError, "must all be symmetric"),
        (
            lambda: QuantizedGatedMLP(linear(), static()[0].up, linear()),
            ValueError,
            "up's out_features must be 16, found 32",
        ),
        (lambda: QuantizedProjections([]), ValueError, "needs at least one layer, found none"),
        (
            lambda: QuantizedProjections([linear(), static()[0].up]),
            ValueError,
            r"layers\[0\] and layers\[1\] must have equal input qparams",
        ),
    ],
)
def test_bad_blocks(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_layer_hands_over_once():
    first, second = linear(), linear()
    QuantizedMLP(first, second)
    with pytest.raises(ValueError, match="QuantizedMLP: fc1 already hands over int8: 0 → gelu → 0"):
        QuantizedMLP(first, second)
