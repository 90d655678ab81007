"""`QuantizedNorm`: a LayerNorm or RMSNorm that hands its output to int8 Linears as int8, in one pass over its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tritonq import ops
from tritonq.buffers import FixedDtypeModule
from tritonq.chaining.edge import Edge
from tritonq.chaining.norms import Norm
from tritonq.qparams import FLOAT_DTYPES
from tritonq.tensor import QuantizedTensor


class QuantizedNorm(FixedDtypeModule):
    """float [..., K] → QuantizedTensor [..., K] on one calibrated grid.

    Args:
        norm: the formula.
        weight, bias: Parameters [K] of the float norm, or None; shared with it.
        scale: float32 [1], > 0; zero_point: int8 [1].
        symmetric: codes in -127 … 127 rather than -128 … 127.
        name: the module's, for messages.

    Attributes:
        edge: which Linears read the codes.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    output_scale: Tensor
    output_zero_point: Tensor

    def __init__(
        self,
        norm: Norm,
        weight: nn.Parameter | None,
        bias: nn.Parameter | None,
        scale: Tensor,
        zero_point: Tensor,
        symmetric: bool,
        name: str = "",
    ) -> None:
        super().__init__()
        self.norm, self.symmetric, self.module_name = norm, symmetric, name
        self.edge: Edge | None = None
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        self.register_buffer("output_scale", scale)
        self.register_buffer("output_zero_point", zero_point)

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        norm: Norm,
        qparams: tuple[Tensor, Tensor],
        symmetric: bool,
        edge: Edge,
        name: str,
    ) -> QuantizedNorm:
        """What takes the place of a float norm, or of another QuantizedNorm: its parameters, and a grid of its own."""
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        layer = cls(norm, weight, bias, qparams[0].clone(), qparams[1].clone(), symmetric, name)
        layer.edge = edge
        return layer

    def forward(self, input: Tensor) -> QuantizedTensor:
        x = input
        self._check_input(x)
        rows = x.reshape(-1, self.norm.features)  # [M, K]
        weight: Tensor | None = self.weight
        if weight is not None and self.norm.weight_offset:
            weight = weight.float() + self.norm.weight_offset
        grid = (self.output_scale, self.output_zero_point, self.symmetric)
        if self.norm.kind == "layer_norm":
            codes = ops.layer_norm_quantize_per_tensor(rows, weight, self.bias, self.norm.eps, *grid)
        else:
            codes = ops.rms_norm_quantize_per_tensor(rows, weight, self.norm.eps, *grid)
        scale = ops.scale_with_history(self.output_scale, x)
        return QuantizedTensor(codes.reshape(x.shape), scale, self.output_zero_point, x.dtype)

    @property
    def eps(self) -> float:
        return self.norm.eps

    @property
    def normalized_shape(self) -> tuple[int]:
        return (self.norm.features,)

    def extra_repr(self) -> str:
        return f"{self.norm.features}, kind={self.norm.kind}, eps={self.norm.eps:g}, hands_over=int8"

    def _check_input(self, x: Any) -> None:
        where = f"QuantizedNorm {self.module_name!r}"
        if not isinstance(x, Tensor) or x.dtype not in FLOAT_DTYPES:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{where}: input must be float32, float16 or bfloat16, found {found}")
        if x.dim() < 1 or x.shape[-1] != self.norm.features:
            raise ValueError(
                f"{where}: input must have {self.norm.features} features last, found shape {list(x.shape)}"
            )
