"""Layers of every scheme, for the tests of QuantizedLinear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.kernel_inputs import assert_same
from tritonq.nn.linear import QuantizedLinear
from tritonq.numerics import config
from tritonq.numerics.config import QuantConfig, QuantSpec

K, N = 314, 30
TOKEN, TOKEN_AFFINE = (QuantSpec(8, symmetric, "token", dynamic=True) for symmetric in (True, False))
SCHEMES = {
    "w8a16": config.W8A16(),
    "w8a16 g100 affine": config.W8A16(group_size=100, symmetric=False),
    "w8a16 tensor": QuantConfig(QuantSpec(8, True, "tensor")),
    "w4a16": config.W4A16(),
    "w4a16 g24 affine": config.W4A16(group_size=24, symmetric=False),
    "w4a16 channel affine": config.W4A16(group_size=-1, symmetric=False),
    "w4a16 tensor affine": QuantConfig(QuantSpec(4, False, "tensor")),
    "w8a8": config.W8A8(),
    "w8a8 affine": config.W8A8(symmetric=False, activation_symmetric=False),
    "w8a8 tensor affine": QuantConfig(QuantSpec(8, False, "tensor"), TOKEN_AFFINE),
    "w8a8 tensor": QuantConfig(QuantSpec(8, True, "tensor"), TOKEN),
    "w8a8_static": config.W8A8Static(),
    "w8a8_static symmetric": config.W8A8Static(activation_symmetric=True),
    "w8a8_static affine weight": config.W8A8Static(symmetric=False),
    "w4a8": config.W4A8(),
    "w4a8 channel": config.W4A8(group_size=None),
}
STATIC = [name for name in SCHEMES if "static" in name]


def input_qparams(scheme: str) -> tuple[Tensor, Tensor] | None:
    if not SCHEMES[scheme].static:
        return None
    return torch.tensor([0.03]), torch.tensor([0 if scheme.endswith("symmetric") else -20], dtype=torch.int8)


def quantized(
    scheme: str, device: str = "cpu", dtype: torch.dtype = torch.float32, bias: bool = True, **options: Any
) -> QuantizedLinear:
    options.setdefault("input_qparams", input_qparams(scheme))
    linear = nn.Linear(K, N, bias=bias).to(dtype)
    return QuantizedLinear.from_float(linear, SCHEMES[scheme], name="layers.0", **options).to(device)


def snapshot(layer: QuantizedLinear) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in layer.state_dict().items()}


def assert_unchanged(layer: QuantizedLinear, before: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    after = snapshot(layer)
    assert after.keys() == before.keys()
    for name in before.keys() - set(but):
        assert_same(after[name], before[name])
