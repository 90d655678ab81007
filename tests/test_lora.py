"""LoRA on a quantized base: the base stays packed and still, the adapters learn, merging changes nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

import tritonq
from tritonq.quantize.qat import LoRALinear, lora_parameters

quantize_: Any = tritonq.quantize_
add_lora_: Any = tritonq.qat.add_lora_
merge_lora_: Any = tritonq.qat.merge_lora_


def quantized(config="w4a16", dtype=torch.float32) -> Any:
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32)).to(dtype)
    return quantize_(model, config)


def train(model: nn.Module, x, target, steps: int = 40) -> list[float]:
    optimizer = torch.optim.Adam(lora_parameters(model), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(x).float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("config", ["w4a16", tritonq.W4A16(group_size=32, symmetric=False), "w8a16"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_learn_on_a_frozen_base(config, dtype):
    model = quantized(config, dtype)
    x, target = torch.randn(40, 64, dtype=dtype), torch.randn(40, 32)
    with torch.no_grad():
        expected = model(x)
    assert add_lora_(model, rank=4) is model
    assert torch.equal(model(x), expected)  # starts where the base is
    packed = [model[0].base.packed_weight.clone(), model[2].base.bias.detach().clone()]
    losses = train(model, x, target)
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(model[0].base.packed_weight, packed[0])
    assert torch.equal(model[2].base.bias, packed[1])
    assert [p.requires_grad for p in model.parameters()].count(True) == 4
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_gradients_are_those_of_the_dequantized_float_model():
    model = add_lora_(quantized(), rank=3, alpha=6)
    x = torch.randn(10, 64, requires_grad=True)
    for module in (model[0], model[2]):
        nn.init.normal_(module.lora_B)
    model(x).square().sum().backward()
    weights = [model[i].base.dequantize() + 2 * model[i].lora_B @ model[i].lora_A for i in (0, 2)]
    y = torch.relu(x @ weights[0].T + model[0].base.bias) @ weights[1].T + model[2].base.bias
    inputs = [x, *lora_parameters(model)]
    found: Any
    expected: Any
    for found, expected in zip(
        (t.grad for t in inputs), torch.autograd.grad(y.square().sum(), inputs), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-2 * expected.abs().max())


def test_merging():
    model = add_lora_(quantized(), rank=4)
    x = torch.randn(40, 64)
    train(model, x, torch.randn(40, 32))
    model.eval()
    with torch.no_grad():
        expected = model(x)
        merged = merge_lora_(model)
        assert merged is model
        assert type(merged[0]) is nn.Linear
        assert torch.allclose(merged(x), expected, atol=1e-4)
    again = quantize_(merged, "w8a16")
    assert float((again(x) - expected).norm() / expected.norm()) < 0.02


def test_merging_into_the_base_rounds_again():
    model = add_lora_(quantized("w8a16"), rank=4)
    nn.init.normal_(model[0].lora_B)
    config = model[0].base.config
    merge_lora_(model, requantize=True)
    assert isinstance(model[0], tritonq.QuantizedLinear)
    assert model[0].config == config
    tritonq.summary(model)


def test_targets_dropout_and_state():
    model = quantized()
    add_lora_(model, rank=2, targets=["0"], dropout=0.5)
    assert isinstance(model[0], LoRALinear)
    assert isinstance(model[2], tritonq.QuantizedLinear)
    nn.init.normal_(model[0].lora_B)
    x = torch.ones(1, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    adapters = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    assert list(adapters) == ["0.lora_A", "0.lora_B"]
    other = quantized()
    add_lora_(other, rank=2, targets=["0"])
    _, unexpected = other.load_state_dict(adapters, strict=False)
    assert unexpected == []
    assert torch.equal(other[0].lora_B, model[0].lora_B)
    assert "rank=2" in repr(model)
    assert (model[0].in_features, model[0].out_features) == (64, 48)


def test_static_or_dynamic_activations_are_refused():
    mixed = quantize_(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), {"0": "w8a8", "1": "w4a16"})
    with pytest.raises(
        ValueError, match=r"gradients pass weight-only layers \(w8a16, w4a16\) alone, found w8a8"
    ):
        add_lora_(mixed, targets=["0"])
    assert all(layer.bias.requires_grad for layer in mixed)
    add_lora_(mixed)
    assert isinstance(mixed[0], tritonq.QuantizedLinear)
    assert isinstance(mixed[1], LoRALinear)
    with pytest.raises(ValueError, match="nothing to adapt"):
        add_lora_(quantize_(nn.Sequential(nn.Linear(8, 8)), "w8a8"))


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"rank": 0}, ValueError, "rank must be an int ≥ 1, found 0"),
        ({"rank": 2.0}, ValueError, "rank must be an int"),
        ({"alpha": -1}, ValueError, "alpha must be a finite number > 0, found -1"),
        ({"dropout": 1}, ValueError, r"dropout must be a number in \[0, 1\), found 1"),
        ({"targets": "0"}, TypeError, "targets must be a list of patterns, found '0'"),
        ({"targets": ["fc7"]}, ValueError, "the pattern 'fc7' matches no quantized layer"),
    ],
)
def test_bad_words(words, error, match):
    model = quantized()
    with pytest.raises(error, match=match):
        add_lora_(model, **words)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


def test_what_is_not_there():
    with pytest.raises(TypeError, match="base must be a QuantizedLinear, found Linear"):
        LoRALinear(cast(Any, nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="merge_lora_ needs a model with adapters, found none"):
        merge_lora_(quantized())
    with pytest.raises(ValueError, match="0 already has an adapter"):
        add_lora_(add_lora_(quantized()))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, found int"):
        add_lora_(3)
