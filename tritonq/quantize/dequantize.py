"""From a quantized model back to a float one, with the weights that quantization left."""

from __future__ import annotations

import torch
from torch import nn

from tritonq.flow.model_edges import edges_of
from tritonq.nn.linear import QuantizedLinear
from tritonq.select.patterns import places
from tritonq.select.replace import take_place


def dequantize_layers(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put an nn.Linear in the place of every quantized layer.

    Args:
        dtype: of the new weights; None takes that of each layer.

    Raises:
        ValueError: layers hand over int8, which float layers cannot take.
    """
    everything = places(model)
    edges = edges_of(everything)
    if edges:
        raise ValueError(
            f"the model must hand over float values to be dequantized, found {edges[0]}: quantize it with chain=False"
        )
    with torch.no_grad():
        for place in everything:
            if isinstance(place.module, QuantizedLinear):
                take_place(place.module, place.module.to_float(dtype=dtype), place)
