"""Three ways to quantize a small MLP, in a program for torch.ao.quantization with only its import changed.

    dynamic     int8 weights, activations quantized on the fly
    static      int8 weights, activations on calibrated grids; linear1 passes int8 directly to linear2
    w4a16       int4 weights in groups of columns, activations in float

Run it: python examples/introductory_mlp.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import tritonq as quantization

SIZES = (768, 512, 314, 128, 64)
SEED = 100


class MLP(nn.Module):
    """768 → 512 → 314 → 128 → 64 with a stub at each border of int8 and float."""

    qconfig: quantization.QConfig

    def __init__(self) -> None:
        super().__init__()
        self.quant = quantization.QuantStub()
        self.linear1 = nn.Linear(SIZES[0], SIZES[1])
        self.linear2 = nn.Linear(SIZES[1], SIZES[2])
        self.linear3 = nn.Linear(SIZES[2], SIZES[3])
        self.linear4 = nn.Linear(SIZES[3], SIZES[4])
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()
        self.dequant = quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        x = self.linear1(x)
        x = self.linear2(x)
        x = self.dequant(x)
        x = self.relu(x)
        x = self.quant(x)
        x = self.linear3(x)
        x = self.dequant(x)
        x = self.relu(x)
        x = self.quant(x)
        x = self.linear4(x)
        x = self.dequant(x)
        return self.sigmoid(x)


class MLPWithAStubAPlace(MLP):
    """The same with one QuantStub per place, so that each place gets the grid its values need."""

    def __init__(self) -> None:
        super().__init__()
        self.quant2 = quantization.QuantStub()
        self.quant3 = quantization.QuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear2(self.linear1(self.quant(x)))
        x = self.relu(self.dequant(x))
        x = self.linear3(self.quant2(x))
        x = self.relu(self.dequant(x))
        x = self.linear4(self.quant3(x))
        return self.sigmoid(self.dequant(x))


def float_model(cls: type[MLP] = MLP, seed: int = SEED) -> MLP:
    """A randomly initialized model."""
    torch.manual_seed(seed)
    return cls().eval()


def dynamic(model: MLP) -> MLP:
    """int8 weights, activations quantized on the fly."""
    return quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def static(model: MLP, batch: Tensor) -> MLP:
    """int8 weights, activations on grids that `batch` calibrates."""
    model.qconfig = quantization.QConfig(
        activation=quantization.MinMaxObserver.with_args(dtype=torch.quint8, qscheme=torch.per_tensor_affine),
        weight=quantization.PerChannelMinMaxObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_channel_symmetric
        ),
    )
    prepared = quantization.prepare(model)
    prepared(batch)
    return quantization.convert(prepared)


def w4a16(model: MLP) -> MLP:
    """int4 weights in groups of 128 columns, in place. torch has no name for this scheme."""
    return quantization.quantize_(model, "w4a16")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    """Quantize in all three ways; print errors, codes and sizes."""
    model = float_model()
    batch = torch.randn(1, SIZES[0])
    with torch.no_grad():
        expected = model(batch)
        ways: dict[str, Any] = {
            "dynamic": dynamic(model),
            "static": static(model, batch),
            "static, a stub a place": static(float_model(MLPWithAStubAPlace), batch),
            "w4a16": w4a16(float_model()),
        }
        for name, quantized in ways.items():
            size = quantization.summary(quantized).weight_bytes
            error = relative_error(quantized(batch), expected)
            print(f"{name:24} relative error of the output {error:.1e}, {size:,} bytes of weights")
    linear1 = ways["dynamic"].linear1
    print(f"\nlinear1 in int8: {linear1.int_weight()[:2, :8].tolist()} …")
    print(f"\nstatic:\n{ways['static']}\n\n{quantization.summary(ways['static'])}")


if __name__ == "__main__":
    main()
