"""Small words of torch.ao.quantization: names, positions and arguments that its programs use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tritonq as quantization
from tritonq import QuantizedLinear
from tritonq.observers.qconfig import resolve_config


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("default_per_channel_qconfig", "w8a8_static"), ("per_channel_dynamic_qconfig", "w8a8")],
)
def test_qconfigs_with_one_scale_per_channel(name, scheme):
    config = resolve_config(getattr(quantization, name))
    assert (config.scheme, config.weight.granularity) == (scheme, "channel")


@pytest.mark.parametrize(
    "observer",
    [
        quantization.MinMaxObserver,
        quantization.MovingAverageMinMaxObserver,
        quantization.PerChannelMinMaxObserver,
        quantization.MovingAveragePerChannelMinMaxObserver,
    ],
)
def test_factory_kwargs(observer):
    made = observer.with_args(factory_kwargs={"device": "cpu", "dtype": torch.float32})()
    made(torch.tensor([[-1.0, 2.0]]))
    assert float(made.max_val) == 2
    with pytest.raises(TypeError, match="factory_kwargs must be a dictionary or None, found 'cpu'"):
        observer(factory_kwargs="cpu")


def test_eps_comes_after_factory_kwargs_as_in_torch():
    observer = quantization.MinMaxObserver(
        torch.quint8, torch.per_tensor_affine, False, None, None, None, 0.25
    )
    assert observer.eps == 0.25


def prepared() -> Any:
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    model.qconfig = quantization.default_dynamic_qconfig
    model[1][0].qconfig = quantization.per_channel_dynamic_qconfig
    return quantization.prepare(model)


def test_converts_positions():
    model = prepared()
    assert quantization.convert(model, None, True) is model
    assert type(model[0]) is QuantizedLinear
    assert quantization.convert(prepared(), mapping=None, inplace=False, remove_qconfig=True) is not model


@pytest.mark.parametrize("remove", [True, False])
def test_converts_qconfigs(remove):
    model = prepared()
    found = quantization.convert(model, remove_qconfig=remove)
    left = [name for name, module in found.named_modules() if hasattr(module, "qconfig")]
    assert left == ([] if remove else ["", "1.0"])
    assert hasattr(model, "qconfig")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mapping": {nn.Linear: nn.Linear}}, "convert: mapping must be None, found"),
        ({"remove_qconfig": 1}, "convert: remove_qconfig must be True or False, found 1"),
        ({"inplace": None}, "inplace must be True or False, found None"),
    ],
)
def test_what_convert_refuses(words, message):
    model = prepared()
    with pytest.raises(TypeError, match=message):
        quantization.convert(model, **words)
    assert type(model[0]) is nn.Linear
