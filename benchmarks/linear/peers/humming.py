"""humming (humming-kernels): CUDA kernels compiled for the shape, configured by its own heuristics.

A layer takes a float weight, quantizes it, and packs it for its kernels. int8 activations are quantized per token,
inside the layer. A group size of 0 is one scale per channel.
"""

from __future__ import annotations

import functools

from torch import nn

from benchmarks.linear.contender import HALVES, Built, Contender


def build(linear: nn.Linear, weight: str, group_size: int, activation: str | None) -> Built:
    """Weights "int4" or "int8"; activations "int8", or None for float."""
    from humming.layer import HummingLayer

    layer = HummingLayer(
        shape_n=linear.out_features,
        shape_k=linear.in_features,
        weight_config={"dtype": weight, "group_size": group_size},
        input_config=None if activation is None else {"dtype": activation},
        torch_dtype=linear.weight.dtype,
    ).to(linear.weight.device)
    layer.load_from_unquantized(linear.weight.detach())
    layer.transform()
    return Built(layer)


def _peer(
    by: str, scheme: str, tolerance: float, weight: str, group_size: int = 0, activation: str | None = None
) -> Contender:
    build_this = functools.partial(build, weight=weight, group_size=group_size, activation=activation)
    return Contender(by, scheme, build_this, tolerance, package="humming", dtypes=HALVES, needs_gpu=True)


PEERS = (
    _peer("humming_w4", "w4a16", 0.15, "int4", 128),
    _peer("humming_w8", "w8a16", 2e-2, "int8"),
    _peer("humming_a8w8", "w8a8", 3e-2, "int8", activation="int8"),
    _peer("humming_w4a8", "w4a8", 0.2, "int4", activation="int8"),
    _peer("humming_w4g_a8", "w4a8", 0.15, "int4", 128, activation="int8"),
)
