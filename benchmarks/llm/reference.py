"""The expected results of a quantized model: torch's float32 products of its dequantized codes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from tritonq.nn import QuantizedLinear
from tritonq.nn.int8_product import quantized_input
from tritonq.nn.quantized_tensor import QuantizedTensor


@contextlib.contextmanager
def reference_path() -> Iterator[None]:
    """Inside the block, every QuantizedLinear dequantizes its weight and its input, and returns float."""
    original = QuantizedLinear.forward
    QuantizedLinear.forward = _forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        QuantizedLinear.forward = original  # type: ignore[method-assign]


def _forward(layer: QuantizedLinear, input: Tensor | QuantizedTensor) -> Tensor:
    x = input if layer.config.weight_only else quantized_input(layer, input)
    if isinstance(x, QuantizedTensor):
        values = QuantizedTensor(x.data, x.scale, x.zero_point, torch.float32).dequantize()
    else:
        values = x.float()
    bias = None if layer.bias is None else layer.bias.float()
    return functional.linear(values, layer.dequantize(torch.float32), bias).to(input.dtype)
