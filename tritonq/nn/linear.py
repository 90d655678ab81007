"""`QuantizedLinear`: what replaces `nn.Linear`.

The weight, its scales and their two layouts are in packed_weight.py; here is what is computed with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tritonq import ops
from tritonq.nn.check import check_linear, largest_in_features
from tritonq.nn.deferred import Deferred
from tritonq.nn.epilogue import DynamicActivation, StaticEpilogue
from tritonq.nn.handover import Edge
from tritonq.nn.int8_product import as_rows, dynamic_product, int8_product, shaped_like
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.nn.siblings import JoinableWeight
from tritonq.numerics import checkpoint_layout, qparams
from tritonq.numerics.config import QuantConfig, as_config

_SQNR_ROWS = 256


class QuantizedLinear(JoinableWeight):
    """y = x · Wᵀ + b with W in int8 or int4, and x in float or int8, as `config` says.

    Built by `from_float`, or by the constructor for a checkpoint to fill. Takes inputs of any rank ≥ 1 with
    `in_features` last, any strides, float32, float16 or bfloat16, and returns the input's dtype; a static layer also
    takes, and where it has output qparams returns, a `QuantizedTensor`.

    Attributes: those of PackedWeight, and
        module_name: the layer's, for messages.
        edge: the hand-over of int8 to the next layers that calibration proved possible, None where there is none.
        why_float: why not, where a static layer hands over float.
        siblings, sibling_index: the layers that are computed with it by one launch, and its place among them; None
            where it is alone.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: QuantConfig,
        *,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        has_input_qparams: bool = False,
        has_output_qparams: bool = False,
        name: str = "",
    ) -> None:
        """An empty layer, for `from_float` or a checkpoint to fill; see the class for the words."""
        super().__init__(
            in_features,
            out_features,
            config,
            bias=bias,
            dtype=dtype,
            device=device,
            has_input_qparams=has_input_qparams,
            has_output_qparams=has_output_qparams,
        )
        self.module_name = name
        self.edge: Edge | None = None
        self.why_float = ""
        self._activation = None if config.activation is None else ("dynamic" if config.dynamic else "static")

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        config: QuantConfig | str,
        *,
        weight_qparams: tuple[Tensor, Tensor | None] | None = None,
        input_qparams: tuple[Tensor, Tensor] | None = None,
        output_qparams: tuple[Tensor, Tensor] | None = None,
        name: str = "",
        checked: bool = False,
    ) -> QuantizedLinear:
        """Quantize a float layer.

        Args:
            linear: weight [N, K], finite, float32, float16 or bfloat16. It is not changed; its bias is shared.
            config: a QuantConfig or a preset's name.
            weight_qparams: (scale, zero point or None) found by an observer, shaped as `qparams.weight_qparams`
                returns them; None computes them from the weight.
            input_qparams, output_qparams: (scale float32 [1], zero point int8 [1]) of a static layer.
            name: the layer's, for error messages.
            checked: the caller has called `check_linear`, which reads the whole weight.

        Raises:
            TypeError, ValueError: naming the layer, what was found and what is allowed.
        """
        config = as_config(config)
        if not checked:
            check_linear(linear, config, name)
        # What is made here must work outside of inference mode too.
        with torch.inference_mode(False), torch.no_grad():
            return cls._from_checked(linear, config, weight_qparams, input_qparams, output_qparams, name)

    @classmethod
    def _from_checked(
        cls,
        linear: nn.Linear,
        config: QuantConfig,
        weight_qparams: tuple[Tensor, Tensor | None] | None,
        input_qparams: tuple[Tensor, Tensor] | None,
        output_qparams: tuple[Tensor, Tensor] | None,
        name: str,
    ) -> QuantizedLinear:
        weight = linear.weight.detach()
        layer = cls(
            linear.in_features,
            linear.out_features,
            config,
            bias=False,
            dtype=weight.dtype,
            device="meta",
            has_input_qparams=input_qparams is not None,
            has_output_qparams=output_qparams is not None,
            name=name,
        )
        layer.bias = linear.bias
        layer.train(linear.training)
        codes, scale, zero_point = qparams.quantize_weight(weight, config.weight, weight_qparams)
        layer.hold_weight(layer._packed(codes.__getitem__, scale, zero_point))
        for side, pair in (("input", input_qparams), ("output", output_qparams)):
            if pair is not None:
                layer._buffers[f"{side}_scale"] = (
                    pair[0].detach().float().reshape(1).to(weight.device, copy=True)
                )
                layer._buffers[f"{side}_zero_point"] = (
                    pair[1].to(torch.int8).reshape(1).to(weight.device, copy=True)
                )
        layer.weight_sqnr = _sqnr(weight, codes, scale, zero_point, layer.group_size)
        return layer

    def to_float(self, weight: Tensor | None = None, dtype: torch.dtype | None = None) -> nn.Linear:
        """An nn.Linear with this layer's dequantized weight, or another one, and its bias; in `dtype`, else its own."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dtype = dtype or self.dtype
        linear.weight = nn.Parameter((self.dequantize(dtype) if weight is None else weight).to(dtype))
        bias = self.bias
        if bias is not None and bias.dtype != dtype:
            bias = nn.Parameter(bias.detach().to(dtype), requires_grad=bias.requires_grad)
        linear.register_parameter("bias", bias)
        return linear.train(self.training)

    @classmethod
    def from_state(
        cls,
        in_features: int,
        out_features: int,
        config: QuantConfig,
        state: Mapping[str, Tensor],
        *,
        bias: bool,
        dtype: torch.dtype | None = None,
        name: str = "",
    ) -> QuantizedLinear:
        """A layer from its tensors in the layout of files, on the device that they are on.

        Args:
            in_features, out_features: K and N.
            state: local name ("weight_packed") → tensor; see packed_weight.py. Codes may be a file's map, they are
                packed anew; the layer keeps the other tensors.
            bias: whether the layer has one; `state` may then hold one of zeros where it has none.
            dtype: what the layer stands for; None takes that of the bias, or of the scales.
            name: the layer's, for messages.

        Raises:
            ValueError: beginning with the tensor's name: one is missing or has a wrong dtype, shape or value.
        """
        limit = largest_in_features(config)
        if in_features > limit:
            raise ValueError(
                f"in_features must be at most {limit:,} for {config.scheme}, found {in_features:,}"
            )
        stored_bias = _checked_bias(state, out_features, bias)
        layer = cls(
            in_features,
            out_features,
            config,
            bias=False,
            dtype=dtype or (state["weight_scale"] if stored_bias is None else stored_bias).dtype,
            device="meta",
            has_input_qparams="input_scale" in state,
            has_output_qparams="output_scale" in state,
            name=name,
        )
        layer.load_canonical_state(state)
        if stored_bias is not None and bias:
            layer.bias = nn.Parameter(stored_bias)
        return layer

    def extra_repr(self) -> str:
        weight = self.config.weight
        words = [
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}",
            f"scheme={self.config.scheme}, granularity={weight.granularity}",
        ]
        if weight.granularity == "group":
            words.append(f"group_size={self.group_size}")
        words.append(f"symmetric={weight.symmetric}")
        if self.input_order is not None:
            words.append("activation_order=True")
        if self.output_scale is not None or self.edge is not None:
            words.append("hands_over=int8")
        if self.siblings is not None and self.siblings.whole is not None:
            words.append(f"launched_with={self.siblings.whole.module_name}")
        return ", ".join(words)

    # --- forward ---------------------------------------------------------------------------------------------------

    def forward(self, input: Tensor | QuantizedTensor) -> Tensor | QuantizedTensor | Deferred:
        """Float [..., K] → [..., N] of the same dtype. One of int8 activations also takes, and may return, int8.

        Returns:
            A QuantizedTensor where the layer has output qparams; a Deferred, which becomes one, where an activation or
            a sum lies between this layer and the one that reads it.
        """
        x = input  # named as nn.Linear's, for callers who say input=
        if torch._C._is_any_autocast_enabled() and isinstance(x, Tensor):
            x = autocast(x)
        self._check_input(x)
        edge = self.edge
        out: Any = None if self.siblings is None else self.siblings.output(self, x)
        if out is None:
            if self._activation == "static":
                if edge is None or not edge.steps:
                    return int8_product(self, x)
                shape = (*x.shape[:-1], self.out_features)
                return Deferred(self, edge.steps, x, shape, StaticEpilogue(self, x, edge))
            out = self._product(x)
        if edge is not None and edge.lead:
            return Deferred(self, edge.steps, out, out.shape, DynamicActivation(self, out))
        return out

    def _product(self, x: Tensor | QuantizedTensor) -> Any:
        """Of a layer without grids: float or per-token int8 [..., K] → float [..., N]."""
        if isinstance(x, QuantizedTensor):
            return int8_product(self, x)
        rows = as_rows(x, self.in_features)
        codes, scales, zero_points, _, order = self.kernel_weight()
        if order is not None:
            rows = rows.index_select(1, order)
        if self._activation is None:
            out = ops.weight_only_linear(rows, codes, scales, zero_points, self.held_bias(), self.group_size)
        else:
            out = dynamic_product(self, rows)
        return shaped_like(x, out)

    @property
    def _where(self) -> str:
        """How messages begin. Nothing else looks at the name: one compiled forward then serves all layers alike."""
        return f"QuantizedLinear {self.module_name!r}"

    def _check_input(self, x: Any) -> None:
        """Raise a TypeError or ValueError unless `forward` can compute this input."""
        if (
            type(x) is Tensor
            and self._activation != "static"
            and x.dtype in qparams.FLOAT_DTYPES
            and x.dim() > 0
            and x.shape[-1] == self.in_features
            and x.device == self._parameters["weight_scale"].device  # type: ignore[union-attr]
        ):
            return
        if isinstance(x, QuantizedTensor):
            if self._activation is None:
                raise TypeError(
                    f"{self._where} ({self.config.scheme}) takes float inputs, found a QuantizedTensor: put a "
                    "DeQuantStub before it, or give it the scheme w8a8_static"
                )
            if self.layout.form != "int8" and x.zero_point is not None:
                raise TypeError(
                    f"{self._where} ({self.config.scheme}) takes symmetric int8 activations, found a QuantizedTensor "
                    "with a zero point: put a DeQuantStub before it"
                )
        elif not isinstance(x, Tensor) or x.dtype not in qparams.FLOAT_DTYPES:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{self._where}: input must be float32, float16 or bfloat16, found {found}")
        elif self._activation == "static" and self.input_scale is None:
            raise TypeError(
                f"{self._where} has no grid for its input and takes a QuantizedTensor, found a float tensor: put a "
                "QuantStub before it, or leave it out with ignore"
            )
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self._where}: input must have {self.in_features} features last, found shape {list(x.shape)}"
            )
        device = self._weight_parameter("weight_scale").device
        if x.device != device:
            raise ValueError(f"{self._where} is on {device}, found an input on {x.device}")

    def hand_over(self, edge: Edge | None, output_qparams: tuple[Tensor, Tensor] | None) -> None:
        """Hand int8 to the layers that `edge` names, on the grid (scale float32 [1], zero point int8 [1]).

        No grid is for the factor of a product whose partner holds it, and for sums that stay float; no edge ends it.
        """
        self.edge, self.why_float = edge, ""
        scale, zero_point = output_qparams or (None, None)
        self.output_scale = None if scale is None else scale.clone()
        self.output_zero_point = None if zero_point is None else zero_point.clone()
        if self.siblings is not None:
            self.siblings.enter(self.sibling_index, self)


def autocast(x: Tensor) -> Tensor:
    """x as F.linear computes with it: in autocast's dtype where that is on for its device."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype not in qparams.FLOAT_DTYPES:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _checked_bias(state: Mapping[str, Tensor], out_features: int, wanted: bool) -> Tensor | None:
    """The bias of a stored layer, None where there is none to be found."""
    if "bias" not in state:
        if wanted:
            raise ValueError("bias is missing")
        return None
    bias = checkpoint_layout.expect(state, "bias", (out_features,), qparams.FLOAT_DTYPES).detach()
    if not torch.isfinite(bias).all():
        raise ValueError("bias must be finite, found NaN or Inf")
    if not wanted and bias.any():
        raise ValueError("bias must be zero, since the model's layer has none, found other values")
    return bias


def _sqnr(weight: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int) -> float:
    """10 · log10(Σ w² / Σ (w - ŵ)²) in dB, ŵ being what the codes stand for; inf where nothing was lost."""
    columns = weight.shape[1]
    scale = qparams.expand_groups(scale, columns, group_size).expand(len(weight), -1)
    zero = None
    if zero_point is not None:
        zero = qparams.expand_groups(zero_point, columns, group_size).expand(len(weight), -1)
    signal = noise = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, len(weight), _SQNR_ROWS):
        rows = slice(start, start + _SQNR_ROWS)
        exact = weight[rows].double()
        rounded = qparams.dequantize(
            codes[rows], scale[rows], None if zero is None else zero[rows], torch.float32
        )
        signal = signal + exact.square().sum()
        noise = noise + (exact - rounded.double()).square().sum()
    return float(10 * torch.log10(signal / noise)) if noise > 0 else float("inf")
