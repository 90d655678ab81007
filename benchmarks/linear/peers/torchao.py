"""torchao: weight-only and dynamic int8, weight-only int4 in tinygemm's layout.

int8 runs under torch.compile, as torchao's documentation recommends. Shapes are static, so each M compiles again. More
of them than torch's limit would silently run uncompiled, so reaching the limit is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.linear.contender import HALVES, Built, Contender

_GROUP_SIZE = 128
_MOST_COMPILATIONS = 256


def build_w4(linear: nn.Linear) -> Built:
    """int4, groups of 128, affine."""
    from torchao.quantization import Int4WeightOnlyConfig

    return Built(
        _quantized(linear, Int4WeightOnlyConfig(_GROUP_SIZE, int4_packing_format="tile_packed_to_4d"))
    )


def build_w8(linear: nn.Linear) -> Built:
    """int8 per channel."""
    from torchao.quantization import Int8WeightOnlyConfig

    return _compiled(_quantized(linear, Int8WeightOnlyConfig()))


def build_a8w8(linear: nn.Linear) -> Built:
    """int8 per channel by int8 per token."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _compiled(_quantized(linear, Int8DynamicActivationInt8WeightConfig()))


def _quantized(linear: nn.Linear, config: Any) -> nn.Linear:
    from torchao.quantization import quantize_

    copy = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    copy.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    quantize_(copy, config)
    return copy


def _compiled(layer: nn.Linear) -> Built:
    def call(x: Tensor) -> Tensor:
        limits = {"recompile_limit": _MOST_COMPILATIONS, "fail_on_recompile_limit_hit": True}
        with torch._dynamo.config.patch(limits):
            return _compiled_linear()(x, layer.weight)

    return Built(call)


@functools.cache
def _compiled_linear() -> Callable[[Tensor, Tensor], Tensor]:
    """One function for all layers, so that copies of a weight share the compiled code."""

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight)

    return torch.compile(linear, dynamic=False)


PEERS = (
    Contender(
        "torchao_w4",
        "w4a16",
        build_w4,
        tolerance=0.15,
        package="torchao",
        dtypes=(torch.bfloat16,),
        needs_gpu=True,
    ),
    Contender("torchao_w8", "w8a16", build_w8, tolerance=2e-2, package="torchao", dtypes=HALVES),
    Contender("torchao_a8w8", "w8a8", build_a8w8, tolerance=3e-2, package="torchao", dtypes=HALVES),
)
