"""Bias correction: quantization shifts the mean of a layer's outputs, and the bias compensates it.

If the inputs have a nonzero mean, as behind a ReLU, the rounding errors of a weight's row do not cancel. The errors of
clipped values do not cancel either. They leave a shift that is the same for all inputs:

    shift = E[quantized output] − E[float output]                  bias ← bias − shift

Both expectations are over the layer's inputs in the quantized model; the float output is that of the float weight on
the same inputs. So each layer corrects only its own error, and one pass corrects all layers.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2; with data, as
in its appendix D.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tritonq.nn.int8_product import int8_product
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.select.calibrate import calibrate
from tritonq.select.patterns import Model, named_modules, places
from tritonq.select.select import is_plain_linear


class Shift:
    """The mean of quantized minus float output of one layer, [N], over all its calls."""

    def __init__(self, name: str, layer: QuantizedLinear, linear: nn.Linear) -> None:
        self.name, self.layer, self.linear = name, layer, linear
        self.rows = 0
        self.total: Tensor | None = None

    def observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook."""
        source = args[0] if args else kwargs["input"]
        x = _as_float(source)
        if self.layer.edge is not None:
            output = int8_product(
                self.layer, source, in_float=True
            )  # the product before the activation and before requantization
        rows = x.reshape(-1, x.shape[-1]).float()
        bias = self.linear._parameters["bias"]
        exact = nn.functional.linear(
            rows, self.linear.weight.to(rows), None if bias is None else bias.to(rows)
        )
        error = _as_float(output).reshape(exact.shape).float() - exact
        total = error.sum(dim=0, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        self.rows += len(rows)

    def mean(self) -> Tensor | None:
        """float64 [N]; None if the layer was not called.

        Raises:
            ValueError: the mean is not finite.
        """
        if self.total is None or not self.rows:
            return None
        mean = self.total / self.rows
        if not torch.isfinite(mean).all():
            raise ValueError(
                f"{self.name}: its outputs on the calibration data must be finite, found NaN or Inf"
            )
        return mean


def correct_bias_(quantized: Model, float_model: nn.Module, calibration: Iterable[Any]) -> Model:
    """Subtract the mean output error of every quantized layer from its bias, in place.

    A layer without a bias gets one. A layer that the data does not reach stays as it is.

    Args:
        quantized: from `quantize_` or `convert`.
        float_model: the float model it was made from, with the same layer names; after `smooth_`, the smoothed model.
        calibration: batches, as for `quantize_`.

    Returns:
        The quantized model.

    Raises:
        TypeError, ValueError: nothing is quantized, the float model lacks a layer or has another shape for it, or the
            calibration data is empty or gives values that are not finite. The model is then unchanged.
    """
    shifts = _pair(quantized, float_model)
    with contextlib.ExitStack() as stack:
        for shift in shifts:
            # Before the user's hooks, because the bias is added before them too.
            handle = shift.layer.register_forward_hook(shift.observe, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        calibrate(quantized, calibration)
    means = [shift.mean() for shift in shifts]
    for shift, mean in zip(shifts, means, strict=True):
        if mean is not None:
            layer, old = shift.layer, shift.layer.bias
            bias = (-mean if old is None else old.detach().double() - mean).to(layer.dtype)
            # A new parameter, because the float model may share the old one.
            layer.bias = nn.Parameter(bias, requires_grad=old is not None and old.requires_grad)
    return quantized


def _pair(quantized: nn.Module, float_model: nn.Module) -> list[Shift]:
    """Pair each quantized layer with the float layer of the same name."""
    linears = dict(named_modules(float_model))
    shifts = []
    for place in places(quantized):
        layer = place.module
        if not isinstance(layer, QuantizedLinear):
            continue
        linear = linears.get(place.name)
        if linear is None or not is_plain_linear(linear):
            found = "nothing" if linear is None else type(linear).__name__
            raise ValueError(f"float_model must have an nn.Linear {place.name!r}, found {found}")
        assert isinstance(linear, nn.Linear)
        wanted = (layer.out_features, layer.in_features)
        if tuple(linear.weight.shape) != wanted:
            raise ValueError(
                f"float_model: {place.name} must have a weight of {list(wanted)}, found {list(linear.weight.shape)}"
            )
        shifts.append(Shift(place.name, layer, linear))
    if not shifts:
        raise ValueError("correct_bias_ needs a model with quantized layers, found none")
    return shifts


def _as_float(value: Tensor | QuantizedTensor) -> Tensor:
    return value.dequantize() if isinstance(value, QuantizedTensor) else value
