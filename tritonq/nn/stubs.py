"""Stubs that mark where a model's values become int8, and where they become float again.

Before conversion QuantStub and DeQuantStub return their input. `convert` replaces the first by a `Quantize` with a
calibrated scale and zero point, the second by a `DeQuantize`. Between them, layers pass a `QuantizedTensor`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tritonq import ops
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.numerics.qparams import FLOAT_DTYPES
from tritonq.observers.registry import is_from_torch
from tritonq.util.fixed_dtype import FixedDtypeModule


class QuantStub(nn.Module):
    """Marks where float values become int8. Identity until `convert`.

    Args:
        qconfig: a QConfig for this stub; None takes the enclosing module's.
    """

    def __init__(self, qconfig: Any = None) -> None:
        super().__init__()
        if qconfig is not None:
            self.qconfig = qconfig

    def forward(self, x: Tensor) -> Tensor:
        return x


class DeQuantStub(nn.Module):
    """Marks where int8 values become float again. Identity until `convert`.

    Args:
        qconfig: accepted for torch's sake and ignored.
    """

    def __init__(self, qconfig: Any = None) -> None:
        super().__init__()
        if qconfig is not None:
            self.qconfig = qconfig

    def forward(self, x: Tensor) -> Tensor:
        return x


class Quantize(FixedDtypeModule):
    """A converted QuantStub: float of any shape → QuantizedTensor with this scale and zero point.

    Args:
        scale: float32 [1], > 0.
        zero_point: int8 [1].
        symmetric: codes in -127 … 127 instead of -128 … 127.
        name: the module's name, for messages.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, symmetric: bool, name: str = "") -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.symmetric, self.module_name = symmetric, name

    def forward(self, x: Any) -> QuantizedTensor:
        self._check_input(x)
        codes = ops.quantize_per_tensor(x, self.scale, self.zero_point, self.symmetric)
        return QuantizedTensor(codes, ops.scale_with_history(self.scale, x), self.zero_point, x.dtype)

    def _check_input(self, x: Any) -> None:
        where = f"Quantize {self.module_name!r}" if self.module_name else "Quantize"
        if isinstance(x, QuantizedTensor):
            raise TypeError(f"{where} needs a float tensor, found a QuantizedTensor: two QuantStubs in a row")
        if not isinstance(x, Tensor) or x.dtype not in FLOAT_DTYPES:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{where}: input must be float32, float16 or bfloat16, found {found}")

    def extra_repr(self) -> str:
        if self.scale.is_meta:
            return f"symmetric={self.symmetric}"
        return f"scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}, symmetric={self.symmetric}"


class DeQuantize(nn.Module):
    """A converted DeQuantStub: QuantizedTensor → float tensor of its dtype; a float tensor passes unchanged."""

    def forward(self, x: QuantizedTensor | Tensor) -> Tensor:
        return x.dequantize() if isinstance(x, QuantizedTensor) else x


class QuantWrapper(nn.Module):
    """A module between a QuantStub and a DeQuantStub: dequant(module(quant(x))).

    Args:
        module: takes and returns one tensor; the stubs get its `qconfig`, if it has one.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        qconfig = getattr(module, "qconfig", None)
        self.quant = QuantStub(qconfig)
        self.dequant = DeQuantStub(qconfig)
        self.module = module
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.module(self.quant(x)))


def is_quant_stub(module: nn.Module) -> bool:
    """True for a QuantStub of tritonq or torch."""
    return isinstance(module, QuantStub) or is_from_torch(module, "QuantStub")


def is_dequant_stub(module: nn.Module) -> bool:
    """True for a DeQuantStub of tritonq or torch."""
    return isinstance(module, DeQuantStub) or is_from_torch(module, "DeQuantStub")
