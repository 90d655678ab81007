"""Turns off torch's fused encoder layer, which reads the weights of Linears instead of calling the Linears.

In eval mode and without gradients, nn.TransformerEncoderLayer passes `linear1.weight` and `linear2.weight` to one fused
float operator. A QuantizedLinear dequantizes its weight when it is read, so results would stay nearly right. But its
forward would never run: activations would stay float, and every call would dequantize both weights. A model in
quantization-aware training would be evaluated without rounding.

With `activation_relu_or_gelu` set to 0 (any other activation), the layer takes its ordinary path, which calls `linear1`
and `linear2`; nothing else reads that attribute at run time. With `use_nested_tensor` set, nn.TransformerEncoder turns
padded inputs into nested tensors, which only the fused operator accepts, so it is cleared.
"""

from __future__ import annotations

from torch import nn

from tritonq.nn.attention import MultiheadAttention
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.qat_linear import QATLinear


def leave_fast_path(model: nn.Module) -> None:
    """Make encoder layers call the QuantizedLinears, QATLinears and attentions of ours that they hold."""
    ours = (MultiheadAttention, QuantizedLinear, QATLinear)
    bypassed = {
        module
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        and any(isinstance(module._modules[name], ours) for name in ("self_attn", "linear1", "linear2"))
    }
    for module in model.modules():
        if module in bypassed:
            vars(module)["activation_relu_or_gelu"] = 0
        elif isinstance(module, nn.TransformerEncoder) and bypassed & set(module.layers):
            vars(module)["use_nested_tensor"] = False
