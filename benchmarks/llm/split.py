"""Measures the Linears' part of a decoding step: all of them, one after the other, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.llm.contenders import PeerLinear
from tritonq.nn import QuantizedLinear
from tritonq.nn.int8_product import int8_product
from tritonq.util.timing import microseconds


@torch.no_grad()
def linear_milliseconds(model: nn.Module, batch: int) -> float:
    """Time to run every Linear of a model once on [batch, K], the head too; on a GPU in a CUDA graph.

    It includes the quantization of their inputs, even if the model does that elsewhere; siblings share one.
    """
    parameter = next(model.parameters())
    calls = _calls(model, batch, parameter.device, parameter.dtype)

    def run() -> None:
        for call in calls:
            call()

    return microseconds([run], parameter.device) / 1e3


def _calls(
    model: nn.Module, batch: int, device: torch.device, dtype: torch.dtype
) -> list[Callable[[], object]]:
    inputs: dict[int, Tensor] = {}
    layers: dict[int, nn.Module] = {}
    for module in model.modules():
        if (
            isinstance(module, QuantizedLinear)
            and module.siblings is not None
            and module.siblings.whole is not None
        ):
            module = module.siblings.whole
        if isinstance(module, (nn.Linear, QuantizedLinear, PeerLinear)):
            layers[id(module)] = module
    calls: list[Callable[[], object]] = []
    for layer in layers.values():
        assert isinstance(layer, (nn.Linear, QuantizedLinear, PeerLinear))
        columns = layer.in_features
        if columns not in inputs:
            inputs[columns] = torch.randn(batch, columns, device=device, dtype=dtype)
        if isinstance(layer, QuantizedLinear) and layer.config.static:
            # A fused layer waits for the activation that follows it, so call its product directly.
            calls.append(functools.partial(int8_product, layer, inputs[columns], in_float=True))
        else:
            calls.append(functools.partial(layer, inputs[columns]))
    return calls
