"""The promise of quantization-aware training: what is deployed is what was trained, code for code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tritonq import DeQuantStub, QATLinear, QuantStub
from tritonq.numerics.config import QuantConfig, QuantSpec

prepare_qat: Any = tritonq.prepare_qat
convert: Any = tritonq.convert

WIDTHS = (160, 144, 96)
CONFIGS = {
    "w8a16": tritonq.W8A16(),
    "w8a16 per tensor": QuantConfig(QuantSpec(8, True, "tensor")),
    "w8a16 affine group": tritonq.W8A16(group_size=32, symmetric=False),
    "w4a16": tritonq.W4A16(group_size=32),
    "w4a16 channel": tritonq.W4A16(group_size=None),
    "w4a16 affine, short last group": tritonq.W4A16(group_size=100, symmetric=False),
    "w8a8": tritonq.W8A8(),
    "w8a8 affine": tritonq.W8A8(symmetric=False, activation_symmetric=False),
    "w8a8_static": tritonq.W8A8Static(),
    "w8a8_static affine weight": tritonq.W8A8Static(symmetric=False),
    "w8a8_static symmetric": tritonq.W8A8Static(activation_symmetric=True),
    "w4a8": tritonq.W4A8(group_size=32),
    "w4a8 channel": tritonq.W4A8(group_size=None),
}
MIN_SQNR = 50.0
#: dB that two models may differ by chance in how near they are to a third.
CHANCE = 0.1


def sqnr(found, expected) -> float:
    noise = (found.double() - expected.double()).square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / noise))


def make_model(dtype, stubs: bool) -> Any:
    layers: list[nn.Module] = [nn.Linear(WIDTHS[0], WIDTHS[1]), nn.ReLU(), nn.Linear(WIDTHS[1], WIDTHS[2])]
    if stubs:
        layers = [QuantStub(), *layers, DeQuantStub()]
    return nn.Sequential(*layers).to(dtype).train()


def train(model: nn.Module, dtype, steps: int = 4) -> None:
    learned = tritonq.qat.scale_parameters(model)
    others = [parameter for parameter in model.parameters() if all(parameter is not one for one in learned)]
    optimizer = torch.optim.Adam(
        [{"params": others, "lr": 1e-3}, *([{"params": learned, "lr": 1e-5}] if learned else [])]
    )
    x, target = torch.randn(200, WIDTHS[0], dtype=dtype), torch.randn(200, WIDTHS[2], dtype=dtype)
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(x).float(), target.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def inputs_of(model: nn.Module, kinds, x) -> list:
    """What reached each module of these kinds, in order."""
    found: list = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: found.append((module, args[0])))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        output = model(x)
    for handle in handles:
        handle.remove()
    return [*found, output]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("learnable", [False, True], ids=["computed", "learned"])
@pytest.mark.parametrize("stubs", [False, True], ids=["no stubs", "stubs"])
@pytest.mark.parametrize("scheme", CONFIGS)
def test_the_deployed_model_is_the_trained_one(scheme, stubs, learnable, dtype):
    config: Any = CONFIGS[scheme]
    affine = not config.weight.symmetric or (config.static and not config.activation.symmetric)
    model = make_model(dtype, stubs)
    prepared = prepare_qat(
        model, config, learnable_scale=learnable, learnable_zero_point=learnable and affine
    )
    train(prepared, dtype)
    prepared.eval()
    converted = convert(prepared)
    x = torch.randn(3000, WIDTHS[0], dtype=dtype)

    for trained, deployed in zip(prepared, converted, strict=True):
        if isinstance(trained, QATLinear):
            assert torch.equal(trained.int_weight(), deployed.int_weight())
            with torch.no_grad():
                assert torch.equal(trained.weight_fake_quant(trained.weight), deployed.dequantize())
    *seen, expected = inputs_of(prepared, QATLinear, x)
    *arrived, found = inputs_of(converted, tritonq.QuantizedLinear, x)
    assert found.dtype == expected.dtype == dtype
    assert expected.float().std(dim=0).min() > 0.01  # every output varies from row to row
    if dtype == torch.float32:
        assert sqnr(found, expected) >= MIN_SQNR
    else:  # both are rounded to 8 bits, and so is what their layers hand on: the deployed one loses no more by it
        with torch.no_grad():
            exact = copy.deepcopy(prepared).float()(x.float())
        assert sqnr(found, exact) >= sqnr(expected, exact) - CHANCE
    if config.activation is None:
        return
    different = total = 0
    for (trained, x_trained), (deployed, x_deployed) in zip(seen, arrived, strict=True):
        if isinstance(x_deployed, tritonq.QuantizedTensor):
            codes = x_deployed.data
            expected_codes = tritonq.ops.quantize_per_tensor(
                x_trained, x_deployed.scale, x_deployed.zero_point, config.activation.symmetric
            )
        else:
            grid = trained.activation_post_process
            expected_codes, codes = grid.quantize(x_trained), grid.quantize(x_deployed)
            if config.static:
                assert torch.equal(deployed.input_scale, grid.calculate_qparams()[0])
                assert torch.equal(deployed.input_zero_point, grid.calculate_qparams()[1])
        different += int((codes != expected_codes).sum())
        total += codes.numel()
    # In bfloat16 the fake weights and activations are rounded to 8 bits, and with them what the first layer hands on.
    assert different <= (1e-5 if dtype == torch.float32 else 0.1) * total


@pytest.mark.parametrize("scheme", CONFIGS)
def test_the_fake_input_is_the_deployed_one(scheme):
    """One layer, so that nothing before it differs: not one code may."""
    config: Any = CONFIGS[scheme]
    if config.activation is None:
        pytest.skip("float activations")
    layer: Any = QATLinear.from_float(nn.Linear(64, 8), config)
    grid = layer.activation_post_process
    x = torch.randn(300, 64) * torch.logspace(-3, 3, 300)[:, None]
    grid(x)
    grid.eval()
    faked = grid(x)
    if config.static:
        scale, zero = grid.calculate_qparams()
        codes = tritonq.ops.quantize_per_tensor(x, scale, zero, config.activation.symmetric)
    else:
        codes, scale, zero = tritonq.ops.quantize_per_token(x, config.activation.symmetric)
    assert torch.equal(grid.quantize(x), codes)
    assert torch.equal(faked, tritonq.numerics.qparams.dequantize(codes, scale, zero, x.dtype))


def test_saved_and_loaded_it_is_still_the_trained_one(tmp_path):
    model = make_model(torch.float32, stubs=True)
    prepared = prepare_qat(model, tritonq.W8A8Static())
    train(prepared, torch.float32)
    prepared.eval()
    converted = convert(prepared)
    tritonq.save(converted, tmp_path / "model")
    loaded = tritonq.load(tmp_path / "model", copy.deepcopy(model).eval())
    x = torch.randn(50, WIDTHS[0])
    with torch.no_grad():
        assert torch.equal(loaded(x), converted(x))
        assert sqnr(loaded(x), prepared(x)) >= MIN_SQNR
