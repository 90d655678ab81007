"""Quantization-aware training of a small MLP, in a program for torch.ao.quantization with only its import changed.

The data is 30,000 random rows of 768 features with 64 random targets in (0, 1). After ten steps of Adam on all rows,
`convert` makes an integer model with the results of the trained one.

Run it: python examples/qat_introductory_mlp.py
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

import tritonq as quantization
from tritonq.util.progress import track

SIZES = (768, 512, 314, 128, 64)
SEED = 100
ROWS = 30_000
STEPS = 10
LEARNING_RATE = 0.01


class MLP(nn.Module):
    """768 → 512 → 314 → 128 → 64 with a stub at each border of int8 and float."""

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
        return self.sigmoid(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """The values before the sigmoid, which would hide differences."""
        x = self.linear2(self.linear1(self.quant(x)))
        x = self.relu(self.dequant(x))
        x = self.dequant(self.linear3(self.quant(x)))
        x = self.relu(x)
        return self.dequant(self.linear4(self.quant(x)))


def train(model: nn.Module, data: Tensor, targets: Tensor, steps: int = STEPS) -> list[float]:
    """Run steps of Adam on all rows at once; returns the loss before each step and after the last."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in track(range(steps), "Training"):
        loss = nn.functional.mse_loss(model(data), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(nn.functional.mse_loss(model(data), targets).item())
    return losses


def sqnr(found: Tensor, expected: Tensor) -> float:
    """10 · log10(Σ expected² / Σ (found - expected)²) in dB; inf if they are equal."""
    noise = (found.double() - expected.double()).square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / noise))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Prepare, train, convert; print the losses and how well both models agree."""
    parser = argparse.ArgumentParser(description="Quantization-aware training of a small MLP")
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args(arguments)
    torch.manual_seed(SEED)
    model: Any = MLP().train()
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    prepared: Any = quantization.prepare_qat(model)
    data, targets = torch.randn(options.rows, SIZES[0]), torch.rand(options.rows, SIZES[-1])
    losses = train(prepared, data, targets)
    prepared.eval()
    converted: Any = quantization.convert(prepared)
    with torch.no_grad():
        expected, found = prepared.logits(data[:1000]), converted.logits(data[:1000])
    layers = ("linear1", "linear2", "linear3", "linear4")
    differing = sum(
        int((getattr(prepared, name).int_weight() != getattr(converted, name).int_weight()).sum())
        for name in layers
    )
    result = {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "differing_weight_codes": differing,
        "sqnr": sqnr(found, expected),
        "logits_std": float(expected.std()),
    }
    print(f"loss {losses[0]:.5f} → {losses[-1]:.5f} in {STEPS} steps on {options.rows:,} rows")
    print(f"weight codes that differ between the trained and the converted model: {differing}")
    print(f"its outputs before the sigmoid (std {result['logits_std']:.3f}): SQNR {result['sqnr']:.1f} dB")
    return result


if __name__ == "__main__":
    main()
