"""`QuantizedNorm`: a LayerNorm or RMSNorm that returns int8 for int8 Linears, in one pass over its input.

static     on the calibrated grid of the layers that read it
dynamic    with one grid per row, as those layers would quantize it
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tritonq import ops
from tritonq.nn.handover import Edge
from tritonq.nn.int8_product import per_token
from tritonq.nn.norm_kinds import Norm, norm_of
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.numerics.qparams import FLOAT_DTYPES
from tritonq.util.fixed_dtype import FixedDtypeModule


class QuantizedNorm(FixedDtypeModule):
    """float [..., K] → QuantizedTensor [..., K]; with a residual (that, the sum), as pre-norm Transformers need it:

        y, x = norm(attention, x)        x ← attention + x, rounded to its dtype;  y ← norm(x), int8

    Args:
        norm: the formula.
        weight, bias: Parameters [K] of the float norm, or None; shared with it.
        scale: float32 [1], > 0, or None for a grid per token; zero_point: int8 [1], None where scale is.
        symmetric: codes in -127 … 127 instead of -128 … 127; per token, the zero point is then 0.
        name: the module's name, for messages.

    Attributes:
        edge: the Linears that read the codes.
        input_name: the name of the float norm's input argument.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    output_scale: Tensor | None
    output_zero_point: Tensor | None

    def __init__(
        self,
        norm: Norm,
        weight: nn.Parameter | None,
        bias: nn.Parameter | None,
        scale: Tensor | None,
        zero_point: Tensor | None,
        symmetric: bool,
        name: str = "",
    ) -> None:
        super().__init__()
        self.norm, self.symmetric, self.module_name = norm, symmetric, name
        self.edge: Edge | None = None
        self.input_name = "input"
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        self.register_buffer("output_scale", scale)
        self.register_buffer("output_zero_point", zero_point)

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        norm: Norm | None = None,
        qparams: tuple[Tensor, Tensor] | None = None,
        symmetric: bool = True,
        edge: Edge | None = None,
        name: str = "",
    ) -> QuantizedNorm:
        """The replacement of a float norm, or of another QuantizedNorm, with the same parameters and a new grid.

        Args:
            module: nn.LayerNorm, nn.RMSNorm or a norm with the same results.
            norm: its formula; None finds it out.
            qparams: the grid; None for one per token.
            symmetric: must match the layers that read it; w8a8 and w4a8 are symmetric.

        Raises:
            TypeError: `module` is no norm over its last dimension.
        """
        norm = norm or (module.norm if isinstance(module, QuantizedNorm) else norm_of(module))
        if norm is None:
            raise TypeError(
                f"QuantizedNorm {name!r} must be made of a LayerNorm or RMSNorm over the last dimension, found "
                f"{type(module).__name__}"
            )
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        scale, zero_point = qparams or (None, None)
        scale = None if scale is None else scale.clone()
        zero_point = None if zero_point is None else zero_point.clone()
        layer = cls(norm, weight, bias, scale, zero_point, symmetric, name)
        layer.edge, layer.input_name = edge, _input_name(module)
        return layer

    def forward(
        self, input: Tensor | None = None, residual: Tensor | None = None, **named: Tensor
    ) -> QuantizedTensor | tuple[QuantizedTensor, Tensor]:
        """int8 of norm(input), or (int8 of norm(input + residual), that sum in input's dtype).

        `input` may also be passed by the name of the float norm's argument.
        """
        x = named.pop(self.input_name, None) if input is None else input
        if named:
            raise TypeError(f"{self._where} takes input and residual, found {', '.join(named)}")
        self._check_input(x, residual)
        assert x is not None
        rows = x.reshape(-1, self.norm.features)  # [M, K]
        if residual is None:
            return self._quantized(x, self._codes(rows))
        others = residual.reshape(-1, self.norm.features)
        if self.norm.kind == "rms_norm":
            total, *found = self._codes_of_sum(rows, others)
        else:
            total = (rows + others).to(x.dtype)
            found = list(self._codes(total))
        return self._quantized(x, found), total.reshape(x.shape)

    def _codes(self, rows: Tensor) -> tuple[Tensor, ...]:
        """codes [M, K]; per token, scales and zero points [M, 1] too."""
        weight, eps = self._weight(), self.norm.eps
        if self.norm.kind == "layer_norm":
            if self._grid is None:
                return ops.layer_norm_quantize_per_token(rows, weight, self.bias, eps, self.symmetric)
            return (
                ops.layer_norm_quantize_per_tensor(rows, weight, self.bias, eps, *self._grid, self.symmetric),
            )
        if self._grid is None:
            return ops.rms_norm_quantize_per_token(rows, weight, eps, self.symmetric)
        return (ops.rms_norm_quantize_per_tensor(rows, weight, eps, *self._grid, self.symmetric),)

    def _codes_of_sum(self, rows: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        """The sum [M, K], and `_codes` of it."""
        arguments = (rows, residual, self._weight(), self.norm.eps)
        if self._grid is None:
            return ops.add_rms_norm_quantize_per_token(*arguments, self.symmetric)
        return ops.add_rms_norm_quantize_per_tensor(*arguments, *self._grid, self.symmetric)

    def _quantized(self, x: Tensor, found: Sequence[Tensor]) -> QuantizedTensor:
        if self.output_scale is None:
            return per_token(found, x.shape, self.symmetric, x.dtype)
        (codes,) = found
        scale = ops.scale_with_history(self.output_scale, x)
        return QuantizedTensor(codes.reshape(x.shape), scale, self.output_zero_point, x.dtype)

    def _weight(self) -> Tensor | None:
        weight: Tensor | None = self.weight
        if weight is not None and self.norm.weight_offset:
            weight = weight.float() + self.norm.weight_offset
        return weight

    @property
    def _grid(self) -> tuple[Tensor, Tensor] | None:
        if self.output_scale is None or self.output_zero_point is None:
            return None
        return self.output_scale, self.output_zero_point

    @property
    def dynamic(self) -> bool:
        """True if every token gets its own grid."""
        return self.output_scale is None

    @property
    def eps(self) -> float:
        return self.norm.eps

    @property
    def normalized_shape(self) -> tuple[int]:
        return (self.norm.features,)

    def extra_repr(self) -> str:
        grid = "token" if self.dynamic else "tensor"
        return (
            f"{self.norm.features}, kind={self.norm.kind}, eps={self.norm.eps:g}, hands_over=int8, per={grid}"
        )

    @property
    def _where(self) -> str:
        """How messages begin. Nothing else looks at the name: one compiled forward then serves all layers alike."""
        return f"QuantizedNorm {self.module_name!r}"

    def _check_input(self, x: Any, residual: Any) -> None:
        for what, found in (("input", x), ("residual", residual)):
            if found is None and what == "residual":
                continue
            if not isinstance(found, Tensor) or found.dtype not in FLOAT_DTYPES:
                kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
                raise TypeError(f"{self._where}: {what} must be float32, float16 or bfloat16, found {kind}")
        if x.dim() < 1 or x.shape[-1] != self.norm.features:
            raise ValueError(
                f"{self._where}: input must have {self.norm.features} features last, found shape {list(x.shape)}"
            )
        if residual is not None and residual.shape != x.shape:
            raise ValueError(
                f"{self._where}: residual must have the input's shape {list(x.shape)}, found {list(residual.shape)}"
            )


def _input_name(module: nn.Module) -> str:
    """The first parameter of a norm's forward."""
    if isinstance(module, QuantizedNorm):
        return module.input_name
    return next(iter(inspect.signature(module.forward).parameters))
