"""Models that are not plain trees of called Linears: cycles, lazy layers, torch's fused encoder, layers with extras."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tritonq import QuantizedLinear


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.parent = parent

    def forward(self, x):
        return self.fc(x)


def cyclic() -> Any:
    model: Any = nn.Sequential(nn.Linear(8, 8))
    model.append(Child(model))
    model.append(Child(model[1]))
    return model


@pytest.mark.parametrize("way", ["quantize_", "qconfig", "dynamic"])
def test_a_child_that_holds_its_parent(way):
    model, x = cyclic(), torch.randn(4, 8)
    expected = model(x)
    if way == "quantize_":
        tritonq.quantize_(model, "w8a16")
    elif way == "qconfig":
        model.qconfig = tritonq.default_dynamic_qconfig
        model = tritonq.convert(tritonq.prepare(model))
    else:
        model = tritonq.quantize_dynamic(model, {nn.Linear})
    assert [type(layer) for layer in (model[0], model[1].fc, model[2].fc)] == [QuantizedLinear] * 3
    assert (model(x) - expected).norm() < 0.05 * expected.norm()


def test_a_cyclic_model_in_a_checkpoint(tmp_path):
    model, x = tritonq.quantize_(cyclic(), "w8a16"), torch.randn(4, 8)
    tritonq.save(model, tmp_path)
    assert torch.equal(tritonq.load(tmp_path, cyclic())(x), model(x))


@pytest.mark.parametrize("way", [tritonq.quantize_, tritonq.prepare, tritonq.prepare_qat])
def test_lazy_layers_need_a_batch_first(way):
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(4))
    with pytest.raises(
        ValueError, match=r"Linear '1': weight must hold values, found LazyLinear .*run one batch"
    ):
        way(model, "w8a8")
    assert type(model[0]) is nn.Linear
    assert not hasattr(model[0], "quantization_plan")
    model(torch.randn(2, 8))
    assert type(tritonq.quantize_(model, "w8a8")[1]) is QuantizedLinear


class Counted:
    """Counts forwards of quantized layers without a hook, which would itself keep torch off its fused operator."""

    def __init__(self, monkeypatch, kind: type[nn.Module] = QuantizedLinear) -> None:
        self.calls = 0
        forward = kind.forward

        def count(layer, x):
            self.calls += 1
            return forward(layer, x)

        monkeypatch.setattr(kind, "forward", count)


def encoder() -> Any:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("only", [None, 0, 1])
def test_the_fused_encoder_does_not_pass_quantized_layers_by(padded, only, monkeypatch):
    model, x = encoder(), torch.randn(3, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2]) if padded else None
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=mask)
        keep = (
            (lambda module, name: True) if only is None else (lambda module, name: f"layers.{only}." in name)
        )
        tritonq.quantize_(model, "w8a8", filter_fn=keep)
        counted = Counted(monkeypatch)
        found = model(x, src_key_padding_mask=mask)
    assert counted.calls == (12 if only is None else 6)  # q, k, v, out, linear1, linear2
    there = torch.ones(3, 5, dtype=torch.bool) if mask is None else ~mask
    assert (found - expected)[there].norm() < 0.05 * expected[there].norm()


def test_the_fused_encoder_from_a_checkpoint(tmp_path, monkeypatch):
    model, x = encoder(), torch.randn(3, 5, 16)
    tritonq.save(tritonq.quantize_(copy.deepcopy(model), "w8a8"), tmp_path)
    tritonq.load(tmp_path, model)
    counted = Counted(monkeypatch)
    with torch.no_grad():
        model(x)
    assert counted.calls == 12


def test_the_fused_encoder_in_quantization_aware_training(monkeypatch):
    model = tritonq.prepare_qat(encoder().train(), "w8a8").eval()
    counted = Counted(monkeypatch, tritonq.QATLinear)
    with torch.no_grad():
        model(torch.randn(3, 5, 16))
    assert counted.calls == 12


@pytest.mark.parametrize("way", ["quantize_", "static", "qat", "load"])
def test_what_users_attach_to_a_layer_stays(way, tmp_path):
    model: Any = tritonq.QuantWrapper(nn.Sequential(nn.Linear(8, 8)))
    x = torch.randn(4, 8)
    if way == "load":
        tritonq.save(tritonq.quantize_(copy.deepcopy(model), "w8a16"), tmp_path)
    model.module[0].tag, model.module[0].config = {"rank": 3}, "not the layer's own"
    model.quant.tag = "in"
    if way == "quantize_":
        tritonq.quantize_(model, "w8a16")
    elif way == "load":
        tritonq.load(tmp_path, model)
    else:
        model = (tritonq.prepare if way == "static" else tritonq.prepare_qat)(model, "w8a8_static")
        model(x)
        model = tritonq.convert(model)
    layer = model.module[0]
    assert type(layer) is QuantizedLinear
    assert layer.tag == {"rank": 3}
    assert layer.config.weight.bits == 8
    assert model.quant.tag == "in"
    # Nothing else came along: no float weight, no plan, nothing of the training's layers.
    assert vars(layer).keys() - vars(QuantizedLinear(8, 8, layer.config)).keys() == {"tag"}
