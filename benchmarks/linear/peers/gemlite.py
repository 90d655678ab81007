"""gemlite: Triton kernels, autotuned at their first call or configured by the file that it ships for the GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.linear.contender import HALVES, Built, Contender
from tritonq import W4A16
from tritonq.numerics import qparams

_GROUP_SIZE = 128


def build_w4(linear: nn.Linear) -> Built:
    """int4, groups of 128, affine: (code - zero) · scale with codes 0 … 15."""
    from gemlite.helper import A16W4_HQQ_INT

    weight = linear.weight.detach()
    config = W4A16(group_size=_GROUP_SIZE, symmetric=False)
    codes, scale, zero = qparams.quantize_weight(weight, config.weight)
    assert zero is not None
    helper = A16W4_HQQ_INT(device=str(weight.device), dtype=weight.dtype)
    return Built(helper.from_weights(_unsigned(codes), scale, _unsigned(zero).to(weight.dtype)))


def build_w8(linear: nn.Linear) -> Built:
    """int8 per channel."""
    from gemlite.helper import A16W8_INT8

    weight = linear.weight.detach()
    return Built(A16W8_INT8(device=str(weight.device), dtype=weight.dtype).from_weights(weight))


def build_a8w8(linear: nn.Linear) -> Built:
    """int8 per channel by int8 per token."""
    from gemlite.helper import A8W8_int8_dynamic

    weight = linear.weight.detach()
    return Built(A8W8_int8_dynamic(device=str(weight.device), dtype=weight.dtype).from_weights(weight))


def _unsigned(codes: Tensor) -> Tensor:
    """-8 … 7 → 0 … 15."""
    return (codes + 8).to(torch.uint8)


def _peer(by: str, scheme: str, build: Callable[[nn.Linear], Built], tolerance: float) -> Contender:
    return Contender(by, scheme, build, tolerance, package="gemlite", dtypes=HALVES, needs_gpu=True)


PEERS = (
    _peer("gemlite_w4", "w4a16", build_w4, 0.15),
    _peer("gemlite_w8", "w8a16", build_w8, 2e-2),
    _peer("gemlite_a8w8", "w8a8", build_a8w8, 3e-2),
)
