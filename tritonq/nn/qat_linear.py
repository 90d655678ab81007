"""`QATLinear`: an nn.Linear that computes in float what the quantized layer will compute in integers.

    y = fq_in(x) · fq_w(W)ᵀ + b            without QuantStubs, or with a dynamic scheme
    y = fq_out(x · fq_w(W)ᵀ + b)           static, between QuantStub and DeQuantStub: x is already on a grid

Weight and bias are the Parameter objects of the float layer, so an optimizer's references stay valid. `convert` keeps
the codes of the forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonq.nn.check import check_linear
from tritonq.nn.fake_quantize import FakeQuantize
from tritonq.numerics.config import QuantConfig


class QATLinear(nn.Linear):
    """A Linear layer in quantization-aware training; built by `from_float`.

    Attributes:
        config: the QuantConfig.
        weight, bias: Parameters [N, K] and [N] or None, float, trained as usual.
        weight_fake_quant: the FakeQuantize of the weight.
        activation_post_process: that of the input or output; None if activations stay in float.
        fakes: the side it rounds: "input", "output" or None.
    """

    config: QuantConfig
    module_name: str
    weight_fake_quant: FakeQuantize
    activation_post_process: FakeQuantize | None
    fakes: str | None

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        config: QuantConfig,
        *,
        fakes: str = "input",
        learnable_scale: bool = False,
        learnable_zero_point: bool = False,
        name: str = "",
    ) -> QATLinear:
        """Wrap a float layer's own parameters.

        Args:
            linear: weight [N, K], finite, float32, float16 or bfloat16.
            config: how it will be quantized.
            fakes: the side where a static activation is rounded, "input" or "output".
            learnable_scale, learnable_zero_point: learn scales, and zero points if affine; dynamic ones cannot learn.
            name: the layer's name, for messages.

        Raises:
            TypeError, ValueError: the message names the layer, what was found and what is allowed.
        """
        check_linear(linear, config, name)
        if fakes not in ("input", "output"):
            raise ValueError(f"QATLinear {name!r}: fakes must be 'input' or 'output', found {fakes!r}")
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer._parameters["weight"] = linear.get_parameter("weight")
        layer.register_parameter("bias", linear.bias)
        layer.config, layer.module_name = config, name
        weight = config.weight
        layer.weight_fake_quant = FakeQuantize(
            weight,
            linear.weight,
            learnable_scale=learnable_scale,
            learnable_zero_point=learnable_zero_point and not weight.symmetric,
            name=name,
        )
        layer.activation_post_process, layer.fakes = None, None
        if config.activation is not None:
            layer.fakes = fakes if config.static else "input"
            layer.activation_post_process = activation_fake_quantize(
                config, linear.weight.device, learnable_scale, learnable_zero_point, name
            )
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x float [..., K] → [..., N]."""
        self._check_input(x)
        if self.fakes == "input" and self.activation_post_process is not None:
            x = self.activation_post_process(x)
        y = functional.linear(x, self.weight_fake_quant(self.weight), self.bias)
        if self.fakes == "output" and self.activation_post_process is not None:
            y = self.activation_post_process(y)
        return y

    def int_weight(self) -> Tensor:
        """The weight's codes that `forward` uses, int8 [N, K]."""
        return self.weight_fake_quant.quantize(self.weight.detach())

    def weight_qparams(self) -> tuple[Tensor, Tensor | None]:
        """The weight's scale, in its dtype, and zero point int8 or None; shaped as `qparams.weight_qparams`."""
        return self.weight_fake_quant.weight_qparams(self.weight.detach())

    def extra_repr(self) -> str:
        fakes = "" if self.fakes is None else f", fakes={self.fakes}"
        return f"{super().extra_repr()}, scheme={self.config.scheme}{fakes}"

    @property
    def _where(self) -> str:
        """The beginning of messages. Nothing else reads the name, so all layers can share one compiled forward."""
        return f"QATLinear {self.module_name!r}"

    def _check_input(self, x: Any) -> None:
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{self._where}: input must be a float tensor, found {found}")
        if x.dim() < 1 or x.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"{self._where}: input must have {self.weight.shape[1]} features last, found shape {list(x.shape)}"
            )


def activation_fake_quantize(
    config: QuantConfig, device: torch.device, learnable_scale: bool, learnable_zero_point: bool, name: str
) -> FakeQuantize:
    """The FakeQuantize of an activation. Only a static one can learn, and its zero point only if it is affine."""
    assert config.activation is not None
    learns = learnable_scale and config.static
    return FakeQuantize(
        config.activation,
        learnable_scale=learns,
        learnable_zero_point=learns and learnable_zero_point and not config.activation.symmetric,
        device=device,
        name=name,
    )
