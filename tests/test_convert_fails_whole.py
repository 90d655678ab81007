"""A conversion that fails leaves every layer as it was, whichever observer the fault lies with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tritonq.numerics.config import QuantConfig, QuantSpec
from tritonq.observers import MinMaxObserver, PerChannelMinMaxObserver

ONE_BIT = PerChannelMinMaxObserver.with_args(
    qscheme=torch.per_channel_affine, dtype=torch.qint8, quant_min=0, quant_max=1
)


class Broken(MinMaxObserver):
    """Finds a scale that is no positive number."""

    def calculate_qparams(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        scale, zero_point = super().calculate_qparams(dtype)
        return -scale, zero_point


def model_with_a_wide_weight() -> Any:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).half()
    weight = model[1].get_parameter("weight").data
    weight[0, 0], weight[0, 1] = 65504, -65504  # their distance is no float16
    return model


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def test_a_weights_observer():
    config = QuantConfig(QuantSpec(8, False, "channel", observer=ONE_BIT))
    message = "^1: the weight's observer must give finite, positive scales in torch.float16, found inf"
    model = model_with_a_wide_weight()
    prepared = tritonq.prepare(model, config)
    before = kinds(prepared)
    with pytest.raises(ValueError, match=message):
        tritonq.convert(prepared, inplace=True)
    assert kinds(prepared) == before
    assert all(hasattr(layer, "quantization_plan") for layer in prepared)
    before = kinds(model)
    with pytest.raises(ValueError, match=message):
        tritonq.quantize_(model, config)
    assert kinds(model) == before
    assert not any(hasattr(layer, "quantization_plan") for layer in model)


def test_an_activations_observer():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = kinds(model)
    with pytest.raises(ValueError, match=r"^0: the input's observer must give finite, positive scales"):
        tritonq.quantize_(model, tritonq.W8A8Static(observer=Broken), calibration=[torch.randn(4, 8)])
    assert kinds(model) == before
