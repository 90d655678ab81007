"""Bias correction: the shift is gone, the error smaller, the float model untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from tests.support.equalize_models import assert_unchanged, parameters_of, relative_error
from tritonq.optimize.equalize import correct_bias_


def mlp(bias: bool = True) -> Any:
    return nn.Sequential(
        nn.Linear(48, 64, bias), nn.ReLU(), nn.Linear(64, 64, bias), nn.ReLU(), nn.Linear(64, 10, bias)
    )


def positive_batches(count: int = 4) -> list[Tensor]:
    return [torch.rand(128, 48) for _ in range(count)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        tritonq.W4A16(group_size=-1),
        tritonq.W4A16(group_size=-1, symmetric=False),
        tritonq.W4A8(group_size=None),
        tritonq.W8A8Static(),
    ],
    ids=["w4a16", "w4a16 affine", "w4a8", "w8a8_static"],
)
def test_shift_and_error_shrink(config, bias):
    model, data = mlp(bias), positive_batches()
    before = parameters_of(model)
    quantized = tritonq.quantize_(copy.deepcopy(model), config, calibration=data)
    x = torch.rand(512, 48)
    with torch.no_grad():
        expected, plain = model(x), quantized(x)
        assert correct_bias_(quantized, model, data) is quantized
        corrected = quantized(x)
    shift = [(found - expected).mean(dim=0).norm() for found in (plain, corrected)]
    assert shift[1] < 0.35 * shift[0]
    assert relative_error(corrected, expected) < 0.9 * relative_error(plain, expected)
    assert_unchanged(model, before)


def test_what_is_taken_off_is_the_mean_error():
    model, data = mlp(), positive_batches()
    quantized = tritonq.quantize_(copy.deepcopy(model), tritonq.W4A16(group_size=-1))
    old = quantized[0].bias.detach().clone()
    x = torch.cat(data)
    with torch.no_grad():
        shift = (quantized[0](x).double() - model[0](x).double()).mean(dim=0)
    correct_bias_(quantized, model, data)
    assert torch.allclose(quantized[0].bias.double(), old.double() - shift, atol=1e-6)


def test_int8_handed_from_layer_to_layer():
    class Stubbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = tritonq.QuantStub(), tritonq.DeQuantStub()
            self.first, self.second = nn.Linear(48, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.second(torch.relu(self.first(self.quant(x)))))

    model, data = Stubbed(), positive_batches()
    config = tritonq.QuantConfig(tritonq.QuantSpec(8, True, "tensor"), tritonq.W8A8Static().activation)
    with torch.no_grad():  # rows of tiny weights under the tensor's one scale: a shift worth correcting
        model.first.weight[0, 0] = model.second.weight[0, 0] = 8.0
    quantized = tritonq.quantize_(copy.deepcopy(model), config, calibration=data)
    x = torch.rand(512, 48)
    with torch.no_grad():
        shift = [float((quantized(x) - model(x)).mean(dim=0).norm())]
        correct_bias_(quantized, model, data)
        shift.append(float((quantized(x) - model(x)).mean(dim=0).norm()))
    assert shift[1] < 0.5 * shift[0]


def test_a_shared_bias_is_not_changed_in_the_float_model():
    linear = nn.Linear(48, 10)
    model = nn.Sequential(linear)
    quantized = nn.Sequential(tritonq.QuantizedLinear.from_float(linear, tritonq.W4A16(group_size=-1)))
    assert quantized[0].bias is linear.bias
    before = parameters_of(model)
    correct_bias_(quantized, model, positive_batches())
    assert_unchanged(model, before)
    assert not torch.equal(quantized[0].bias, linear.bias)


def test_a_layer_that_no_batch_reaches_stays():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(48, 8, bias=False), nn.Linear(48, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    model = Partly()
    quantized = tritonq.quantize_(copy.deepcopy(model), "w4a16")
    correct_bias_(quantized, model, positive_batches())
    assert quantized.used.bias is not None
    assert quantized.unused.bias is None


def bad_batches() -> list[Tensor]:
    return [*positive_batches(1), torch.full((2, 48), float("inf"))]


def test_refused_and_unchanged():
    model = mlp()
    quantized = tritonq.quantize_(copy.deepcopy(model), "w4a16")
    before = parameters_of(quantized)
    other = mlp()
    other[2] = nn.Linear(64, 63)
    gone = nn.Sequential(*list(mlp())[:4])
    for arguments, message in (
        ((quantized, model, []), "at least one batch"),
        ((quantized, model, bad_batches()), "0: its outputs on the calibration data must be finite"),
        ((quantized, other, positive_batches()), r"2 must have a weight of \[64, 64\], found \[63, 64\]"),
        ((quantized, gone, positive_batches()), "must have an nn.Linear '4', found nothing"),
        ((quantized, quantized, positive_batches()), "must have an nn.Linear '0', found QuantizedLinear"),
        ((model, model, positive_batches()), "needs a model with quantized layers"),
    ):
        with pytest.raises(ValueError, match=message):
            correct_bias_(*arguments)
        assert_unchanged(quantized, before)
