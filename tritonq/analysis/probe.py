"""A forward hook on one float Linear, which measures its input and the errors of its quantized counterparts.

All results are sums or maxima over batches, on the layer's device; no activation is kept.

    Distortion      Σ exact², Σ (exact - rounded)²      their ratio in dB is the SQNR
    LayerProbe      largest |x| per input column, Σ x², and one Distortion for input and output per candidate
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tritonq import ops
from tritonq.nn.linear import QuantizedLinear
from tritonq.numerics import qparams


class Distortion:
    """Signal and quantization noise, summed up in float64."""

    def __init__(self) -> None:
        self.signal: Tensor | float = 0.0
        self.noise: Tensor | float = 0.0

    def add(self, exact: Tensor, rounded: Tensor) -> None:
        """Add exact and rounded values of any shape and float dtype."""
        exact = exact.float()
        self.signal = self.signal + exact.square().sum(dtype=torch.float64)
        self.noise = self.noise + (exact - rounded.float()).square().sum(dtype=torch.float64)

    def sqnr(self) -> float | None:
        """10 · log10(Σ exact² / Σ (exact - rounded)²) in dB; inf if nothing was lost, None without data."""
        if not isinstance(self.signal, Tensor) or not isinstance(self.noise, Tensor):
            return None
        if self.noise == 0:
            return float("inf")
        return float(10 * torch.log10(self.signal / self.noise))


class Candidate:
    """A quantized counterpart of a layer, and its errors: in its input, its output and the model's output."""

    def __init__(self, layer: QuantizedLinear) -> None:
        self.layer = layer
        self.input, self.output, self.model = Distortion(), Distortion(), Distortion()
        self.metric_change: float | None = None

    def observe(self, x: Tensor, output: Tensor) -> None:
        """Add one float input and output of the layer."""
        rounded = quantized_input(self.layer, x)
        if rounded is not None:
            self.input.add(x, rounded)
        self.output.add(output, self.layer(x))


class LayerProbe:
    """Observes one Linear, or replaces its output by a quantized layer's output.

    Attributes:
        name, linear: the layer.
        candidates: its quantized counterparts.
        reached: a list shared by all probes; each appends itself at its first call, so it has the order of execution.
        observes: True to observe the layer's calls.
        stand_in: the layer whose output to return instead; None for the layer's own output.
        channel_amax: float32 [K], the largest |x| of each input column; None before the first row.
        square_sum, count: Σ x² and the number of values.
        output_amax: the largest |output|, float32.
    """

    def __init__(
        self, name: str, linear: nn.Linear, candidates: list[Candidate], reached: list[LayerProbe]
    ) -> None:
        self.name, self.linear, self.candidates = name, linear, candidates
        self.reached = reached
        self.channel_amax: Tensor | None = None
        self.output_amax: Tensor | None = None
        self.square_sum: Tensor | float = 0.0
        self.count = 0
        self.observes = False
        self.stand_in: QuantizedLinear | None = None

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the hook inside the block. It runs before the user's hooks, which must see the quantized output."""
        handle = self.linear.register_forward_hook(self._hook, prepend=True, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def check_finite(self) -> None:
        """Raise a ValueError that names the layer if its input or output held NaN or Inf. Waits for the device."""
        for side, amax in (("input", self.channel_amax), ("output", self.output_amax)):
            if amax is not None and not torch.isfinite(amax.max()):
                raise ValueError(
                    f"{self.name}: analyze needs finite activations, found NaN or Inf in its {side}"
                )

    def _hook(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        x: Tensor = args[0] if args else kwargs["input"]
        if self.stand_in is not None:
            found = self.stand_in(x)
            assert isinstance(found, Tensor)
            return found.to(output.dtype)  # autocast changes the float layer's
        if self.observes and x.numel():
            if not self.count:
                self.reached.append(self)
            self._observe(x.detach(), output.detach())
        return None

    def _observe(self, x: Tensor, output: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        self.channel_amax = _larger(self.channel_amax, rows.abs().amax(dim=0))
        self.output_amax = _larger(self.output_amax, output.abs().amax().float())
        self.square_sum = self.square_sum + rows.square().sum(dtype=torch.float64)
        self.count += rows.numel()
        for candidate in self.candidates:
            candidate.observe(x, output)


def _larger(largest: Tensor | None, newest: Tensor) -> Tensor:
    return newest if largest is None else torch.maximum(largest, newest)


def quantized_input(layer: QuantizedLinear, x: Tensor) -> Tensor | None:
    """The input quantized and dequantized as for the layer's integer product, float32; None if it stays float."""
    activation = layer.config.activation
    if activation is None:
        return None
    rows = x.reshape(-1, x.shape[-1])
    if activation.dynamic:
        codes, scale, zero_point = ops.quantize_per_token(rows, activation.symmetric)
    else:
        assert layer.input_scale is not None
        assert layer.input_zero_point is not None
        scale, zero_point = layer.input_scale, layer.input_zero_point
        codes = ops.quantize_per_tensor(rows, scale, zero_point, activation.symmetric)
    return qparams.dequantize(codes, scale, zero_point, torch.float32).reshape(x.shape)
