"""Compiling a model layer by layer: what was compiled for one serves all others, as it does with float layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tritonq

K, LAYERS = 32, 3


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(K)
        self.gate, self.up, self.down = (nn.Linear(K, K) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


def batch() -> Tensor:
    return torch.randn(2, 3, K, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "w4a16": lambda model: tritonq.quantize_(model, "w4a16"),
    "w4a16 siblings": lambda model: tritonq.fuse_siblings_(tritonq.quantize_(model, "w4a16")),
    "w8a8 all": lambda model: tritonq.fuse_siblings_(
        tritonq.fuse_activations_(tritonq.quantize_(model, "w8a8"), [batch()])
    ),
    "static": lambda model: tritonq.quantize_(model, "w8a8_static", calibration=[batch()]),
    "qat": lambda model: tritonq.prepare_qat(model.train(), "w8a8").eval(),
}


@pytest.mark.parametrize("name", MODELS)
def test_one_graph_for_all_layers(name):
    torch.manual_seed(0)
    model: Any = MODELS[name](nn.Sequential(*(Layer() for _ in range(LAYERS))).eval().requires_grad_(False))
    compiled = 0

    def backend(graph: Any, examples: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph

    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(batch())
        for layer in model:
            layer.compile(backend=backend, fullgraph=True)
        for _ in range(2):
            assert torch.equal(model(batch()), expected)
    assert compiled == 1
