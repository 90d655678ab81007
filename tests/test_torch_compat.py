"""Programs written for torch.ao.quantization: the same words, with the import changed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import tritonq as quantization
from tritonq import QuantizedLinear
from tritonq.nn.stubs import DeQuantize, Quantize
from tritonq.observers import make_observer
from tritonq.observers.qconfig import resolve_config


class Model(nn.Module):
    """Two stubbed Linears and a nested block."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = quantization.QuantStub()
        self.fc1 = nn.Linear(16, 16)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        self.dequant = quantization.DeQuantStub()

    def forward(self, x):
        return self.dequant(self.block(self.fc1(self.quant(x))))


def quantized_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("backend", ["x86", "fbgemm", "qnnpack", "onednn"])
def test_eager_static_program(backend):
    model: Any = Model().eval()
    x = torch.randn(64, 16)
    model.qconfig = quantization.get_default_qconfig(backend)
    prepared = quantization.prepare(model, inplace=False)
    prepared(x)
    quantized = quantization.convert(prepared)
    assert quantized_names(quantized) == {"fc1", "block.0", "block.2"}
    assert relative_error(quantized(x), model(x)) < 0.03


def test_qconfigs_are_inherited_overridden_and_switched_off():
    model: Any = nn.Sequential(
        nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 8)
    )
    model.qconfig = quantization.default_qconfig
    model[1].qconfig = quantization.default_dynamic_qconfig
    model[1][1].qconfig = None
    prepared = quantization.prepare(model)
    plans = {
        name: m.quantization_plan.config.scheme
        for name, m in prepared.named_modules()
        if hasattr(m, "quantization_plan")
    }
    assert plans == {"0": "w8a8_static", "1.0": "w8a8", "2": "w8a8_static"}


def test_a_qconfig_of_the_class():
    class Quantizable(Model):
        qconfig = quantization.default_dynamic_qconfig

    assert len(quantized_names(quantization.convert(quantization.prepare(Quantizable())))) == 3


def test_only_a_part_has_a_qconfig():
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].qconfig = "w8a16"
    assert quantized_names(quantization.convert(quantization.prepare(model))) == {"1"}


def test_a_head_with_a_qconfig_is_not_ignored():
    model: Any = nn.ModuleDict({"fc": nn.Linear(8, 8), "lm_head": nn.Linear(8, 8)})
    model.qconfig = quantization.default_dynamic_qconfig
    assert quantized_names(quantization.convert(quantization.prepare(model))) == {"fc", "lm_head"}
    assert quantized_names(quantization.convert(quantization.prepare(model, ignore=["lm_head"]))) == {"fc"}


def test_a_stubs_own_qconfig():
    symmetric = quantization.QConfig(
        activation=quantization.MinMaxObserver.with_args(qscheme=torch.per_tensor_symmetric),
        weight=quantization.default_weight_observer,
    )
    model: Any = Model()
    model.qconfig = quantization.default_qconfig
    model.quant = quantization.QuantStub(symmetric)
    prepared = quantization.prepare(model)
    x = torch.randn(64, 16)
    prepared(x)
    quantized = quantization.convert(prepared)
    assert quantized.quant.zero_point == 0
    assert relative_error(quantized(x), model(x)) < 0.03


def test_wrapper_takes_the_modules_qconfig():
    inner: Any = nn.Sequential(nn.Linear(8, 8))
    inner.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(quantization.QuantWrapper(inner))
    prepared(torch.randn(4, 8))
    assert isinstance(quantization.convert(prepared).quant, Quantize)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, {"fc1", "block.0", "block.2"}),
        ({nn.Linear}, {"fc1", "block.0", "block.2"}),
        ({"fc1"}, {"fc1"}),
        ({"block"}, {"block.0", "block.2"}),
        ({nn.Sequential}, {"block.0", "block.2"}),
        ({"": quantization.default_dynamic_qconfig}, {"fc1", "block.0", "block.2"}),
        ({"block": quantization.default_dynamic_qconfig, "block.0": None}, {"block.2"}),
        ({nn.Linear: "w8a8", "fc1": None}, {"block.0", "block.2"}),
    ],
)
def test_quantize_dynamic(spec, expected):
    model: Any = Model().eval()
    quantized = quantization.quantize_dynamic(model, spec, dtype=torch.qint8)
    assert quantized_names(quantized) == expected
    assert quantized_names(model) == set()
    x = torch.randn(64, 16)
    assert relative_error(quantized(x), model(x)) < 0.03


def test_quantize_dynamic_and_the_head():
    model: Any = nn.ModuleDict({"fc": nn.Linear(8, 8), "lm_head": nn.Linear(8, 8)})
    assert quantized_names(quantization.quantize_dynamic(model)) == {"fc"}
    assert quantized_names(quantization.quantize_dynamic(model, ignore=())) == {"fc", "lm_head"}
    assert quantized_names(quantization.quantize_dynamic(model, {nn.Linear})) == {"fc", "lm_head"}


@pytest.mark.parametrize("key", ["encoder", nn.Bilinear, nn.ReLU])
def test_quantize_dynamic_warns_of_what_it_does_not_quantize(key):
    model = nn.ModuleDict({"model": Model(), "bilinear": nn.Bilinear(4, 4, 4)})
    with pytest.warns(UserWarning, match=r"qconfig_spec: .* matches no layer") as caught:
        quantization.quantize_dynamic(model, {nn.Linear, key})
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("qconfig", "scheme", "granularity", "symmetric"),
    [
        (quantization.default_qconfig, "w8a8_static", "channel", True),
        (quantization.default_dynamic_qconfig, "w8a8", "channel", True),
        (quantization.QConfig(None, quantization.default_weight_observer), "w8a16", "tensor", True),
        (quantization.QConfig(nn.Identity, quantization.PerChannelMinMaxObserver), "w8a16", "channel", False),
        (
            quantization.QConfig(
                nn.Identity,
                quantization.default_per_channel_weight_observer.with_args(quant_min=-8, quant_max=7),
            ),
            "w4a16",
            "channel",
            True,
        ),
    ],
)
def test_what_a_qconfig_means(qconfig, scheme, granularity, symmetric):
    config = resolve_config(qconfig)
    assert (config.scheme, config.weight.granularity, config.weight.symmetric) == (
        scheme,
        granularity,
        symmetric,
    )
    model: Any = nn.Sequential(nn.Linear(16, 8))
    x = torch.randn(64, 16)
    expected = model(x)
    error = relative_error(quantization.quantize_(model, qconfig, calibration=[x])(x), expected)
    assert error < (0.2 if scheme == "w4a16" else 0.03)


def test_the_default_dynamic_qconfig_is_w8a8():
    model: Any = nn.Sequential(nn.Linear(16, 8))
    x = torch.randn(64, 16)
    by_qconfig = quantization.quantize_dynamic(model, {nn.Linear: quantization.default_dynamic_qconfig})
    assert torch.equal(by_qconfig(x), quantization.quantize_dynamic(model)(x))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: quantization.QConfig(quantization.MinMaxObserver(), quantization.default_weight_observer),
            ValueError,
            "activation must be an observer class .*found an instance of MinMaxObserver",
        ),
        (
            lambda: resolve_config(quantization.QConfig(nn.ReLU, quantization.default_weight_observer)),
            TypeError,
            "QConfig: activation: an observer class",
        ),
        (
            lambda: resolve_config(quantization.QConfig(None, None)),
            TypeError,
            "QConfig: weight: an observer class .*found None",
        ),
        (
            lambda: resolve_config(quantization.QConfig(None, quantization.PlaceholderObserver)),
            ValueError,
            "weight must be an observer that observes",
        ),
        (
            lambda: resolve_config(
                quantization.QConfig(
                    quantization.PerChannelMinMaxObserver, quantization.default_weight_observer
                )
            ),
            ValueError,
            "activation must be a per-tensor observer, found PerChannelMinMaxObserver",
        ),
        (
            lambda: quantization.get_default_qconfig("tpu"),
            ValueError,
            "backend must be one of x86, .*found 'tpu'",
        ),
    ],
)
def test_bad_qconfigs(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_bad_qconfig_on_a_submodule_is_named():
    model: Any = Model()
    model.block.qconfig = 8
    with pytest.raises(TypeError, match="found 8"):
        quantization.prepare(model)


def torch_quantization():
    return pytest.importorskip("torch.ao.quantization")


def test_torch_stubs_and_qconfigs_in_a_model():
    theirs = torch_quantization()
    model: Any = Model().eval()
    model.quant, model.dequant = theirs.QuantStub(), theirs.DeQuantStub()
    model.qconfig = theirs.QConfig(
        activation=theirs.MinMaxObserver.with_args(dtype=torch.quint8),
        weight=theirs.default_per_channel_weight_observer,
    )
    prepared = quantization.prepare(model)
    x = torch.randn(64, 16)
    prepared(x)
    quantized = quantization.convert(prepared)
    assert isinstance(quantized.quant, Quantize)
    assert isinstance(quantized.dequant, DeQuantize)
    assert relative_error(quantized(x), model(x)) < 0.03


def test_torch_default_qconfigs():
    theirs = torch_quantization()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        histogram = theirs.get_default_qconfig("x86")
    assert resolve_config(theirs.default_qconfig).weight.granularity == "tensor"
    dynamic = resolve_config(theirs.default_dynamic_qconfig)
    assert dynamic.scheme == "w8a8"
    assert dynamic.activation is not None
    assert not dynamic.activation.symmetric
    static = resolve_config(histogram)
    assert (static.scheme, static.weight.granularity) == ("w8a8_static", "channel")
    assert static.activation is not None
    observer = make_observer(static.activation, for_weight=False)
    assert isinstance(observer, quantization.HistogramObserver)
    assert (observer.bins, observer.qmin, observer.qmax) == (2048, -128, -1)  # torch's reduce_range=True
    ours = resolve_config(quantization.get_default_qconfig("x86")).activation
    assert ours is not None
    assert (make_observer(ours, for_weight=False).qmin, make_observer(ours, for_weight=False).qmax) == (
        -128,
        127,
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("weight", ["default_weight_observer", "default_per_channel_weight_observer"])
def test_int8_weights_are_torchs_on_the_same_grid(weight):
    theirs = torch_quantization()
    words = {"quant_min": -128, "quant_max": 127}
    linear = nn.Linear(64, 32)
    observer = getattr(theirs, weight).with_args(**words)()
    observer(linear.weight.detach())
    scale, zero_point = observer.calculate_qparams()
    if weight == "default_weight_observer":
        expected = torch.quantize_per_tensor(
            linear.weight.detach(), float(scale), int(zero_point), torch.qint8
        )
    else:
        expected = torch.quantize_per_channel(linear.weight.detach(), scale, zero_point, 0, torch.qint8)
    config = quantization.QConfig(None, getattr(quantization, weight).with_args(**words))
    model: Any = quantization.quantize_(nn.Sequential(linear), config)
    # torch's -128 is one code that a symmetric grid here does not use.
    codes = expected.int_repr().clamp(min=-127)
    assert (model[0].int_weight() != codes).float().mean() <= 1e-3
