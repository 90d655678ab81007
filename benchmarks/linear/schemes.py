"""tritonq's contenders: every scheme as a whole layer; w8a8 also as a product alone, w8a8_static also int8 to int8."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import tritonq
from benchmarks.linear.contender import INT8_TO_INT8, LINEAR, MATMUL, OURS, Built, Contender
from tritonq import ops
from tritonq.nn.int8_product import quantized_input
from tritonq.observers import MinMaxObserver

#: Largest error compared with float32 on the layer's dequantized weight. int8 activations lose precision by design:
#: about 1 % for normally distributed inputs, and as much again if the output is rounded to int8.
TOLERANCES = {"w8a8": 2e-2, "w8a8_static": 2e-2, "w4a16": 3e-3, "w8a16": 3e-3, "w4a8": 2e-2}
_REQUANTIZED_TOLERANCE = 3e-2
#: Rows of normally distributed input that static grids are calibrated on.
_CALIBRATION_ROWS = 256


def _whole(linear: nn.Linear, scheme: str) -> Built:
    grid = _grid(_sample(linear)) if scheme == "w8a8_static" else None
    layer = tritonq.QuantizedLinear.from_float(linear, scheme, input_qparams=grid)
    return Built(layer, weight=functools.partial(layer.dequantize, torch.float32))


def _product(linear: nn.Linear) -> Built:
    """The int8 product and its scales; the quantization of the input is not timed."""
    layer = tritonq.QuantizedLinear.from_float(linear, "w8a8")

    def prepare(x: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
        codes, scale, _ = ops.quantize_per_token(x, True)
        return codes, scale, x.dtype

    def call(prepared: tuple[Tensor, Tensor, torch.dtype]) -> Tensor:
        codes, scale, dtype = prepared
        assert layer.code_sums is not None
        weight = (layer.packed_weight, layer.scales, layer.zero_points, layer.code_sums)
        return ops.int8_linear(codes, scale, None, *weight, None, dtype)

    return Built(call, prepare, weight=functools.partial(layer.dequantize, torch.float32))


def _handing_over(linear: nn.Linear) -> Built:
    """A static layer between two others: int8 in, int8 out."""
    sample = _sample(linear)
    layer = tritonq.QuantizedLinear.from_float(
        linear, "w8a8_static", input_qparams=_grid(sample), output_qparams=_grid(linear(sample))
    )

    def finish(out: Any, prepared: Any) -> Tensor:
        return out.dequantize()

    prepare = functools.partial(quantized_input, layer)
    return Built(layer, prepare, finish, functools.partial(layer.dequantize, torch.float32))


def _sample(linear: nn.Linear) -> Tensor:
    weight = linear.weight
    return torch.randn(_CALIBRATION_ROWS, linear.in_features, device=weight.device, dtype=weight.dtype)


def _grid(values: Tensor) -> tuple[Tensor, Tensor]:
    observer = MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_affine).to(values.device)
    observer(values)
    return observer.calculate_qparams()


def contenders(schemes: list[str]) -> list[Contender]:
    """The contenders of these schemes."""
    found = []
    for scheme in schemes:
        build = functools.partial(_whole, scheme=scheme)
        found.append(Contender(OURS, scheme, build, TOLERANCES[scheme], LINEAR))
        if scheme == "w8a8":
            found.append(Contender(OURS, scheme, _product, TOLERANCES[scheme], MATMUL))
        if scheme == "w8a8_static":
            found.append(Contender(OURS, scheme, _handing_over, _REQUANTIZED_TOLERANCE, INT8_TO_INT8))
    return found
