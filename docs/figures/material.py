"""What all figures are drawn from: the trained model that ships with tritonq, and its texts."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import tritonq
from tritonq.demo.evaluate import bits_per_byte, cut_windows
from tritonq.demo.model import load_demo_model
from tritonq.demo.text import calibration_bytes, heldout_bytes

BATCH = 16


@dataclasses.dataclass
class Material:
    """The float model, batches to calibrate with, and text to measure on.

    Args:
        limit: how many bytes of either text to use; None for all.
    """

    limit: int | None = None

    def __post_init__(self) -> None:
        self.model = load_demo_model()
        windows, _ = cut_windows(calibration_bytes()[: self.limit])
        self.batches = list(windows.split(BATCH))
        self.text = heldout_bytes()[: self.limit]
        self.float_bits = self.bits(self.model)

    def weight(self, layer: str) -> Tensor:
        """A layer's float weight [N, K]."""
        linear = self.model.get_submodule(layer)
        assert isinstance(linear, nn.Linear)
        return linear.weight.detach()

    def inputs(self, layer: str) -> Tensor:
        """What goes into a layer for the first calibration batch: float32 [tokens, K]."""
        seen: list[Tensor] = []
        handle = self.model.get_submodule(layer).register_forward_pre_hook(
            lambda module, arguments: seen.append(arguments[0])
        )
        with torch.no_grad():
            self.model(self.batches[0])
        handle.remove()
        return seen[0].flatten(0, -2)

    def quantized(self, config: Any) -> nn.Module:
        """A quantized copy of the model."""
        return tritonq.quantize_(copy.deepcopy(self.model), config, calibration=self.batches)

    def bits(self, model: nn.Module) -> float:
        """Bits per byte on the held-out text."""
        return bits_per_byte(model, self.text)
